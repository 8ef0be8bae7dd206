//! `tv-agent status`, `flows` and `cache`: what the running daemon says.

use std::fmt::Write as _;
use std::path::Path;

use http::Method;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use super::{chain, print};
use crate::cli::{CacheCommand, ControlArgs, FlowsArgs, Output, exit};
use crate::control::{self, Status, ask};
use crate::flows::Flow;
use crate::redirect::Narrowing;
use crate::token::Cached;

pub async fn status(args: &ControlArgs) -> u8 {
    answered(
        one::<Status>(&args.socket, Method::GET, "/status").await,
        |status| {
            print(args.output.output, &status, || drawn(&status));
        },
    )
}

pub async fn flows(args: &FlowsArgs) -> u8 {
    let target = if args.follow { "/flows?follow" } else { "/flows" };
    let output = args.control.output.output;
    let asked = ask::<Flow>(&args.control.socket, Method::GET, target, |flow| {
        told(output, &flow);
        true
    });
    answered(asked.await, |()| {})
}

pub async fn cache(command: &CacheCommand) -> u8 {
    match command {
        CacheCommand::List(args) => {
            let mut rows = Vec::new();
            let asked = ask::<Cached>(&args.socket, Method::GET, "/cache", |row| {
                rows.push(row);
                true
            });
            let asked = asked.await;
            answered(asked, |()| print(args.output.output, &rows, || listed(&rows)))
        }
        CacheCommand::Flush(args) => answered(
            one::<u64>(&args.socket, Method::POST, "/cache/flush").await,
            |count| {
                print(args.output.output, &count, || format!("{count} entries dropped"));
            },
        ),
    }
}

async fn one<T: DeserializeOwned>(socket: &Path, method: Method, target: &str) -> Result<T, control::Error> {
    let mut answer = None;
    ask(socket, method, target, |value| {
        answer = Some(value);
        false
    })
    .await?;
    answer.ok_or_else(|| control::Error::Silent {
        path: socket.to_owned(),
    })
}

fn answered<T>(answer: Result<T, control::Error>, show: impl FnOnce(T)) -> u8 {
    match answer {
        Ok(value) => {
            show(value);
            exit::OK
        }
        Err(error) => {
            tracing::error!("{}", chain(&error));
            exit::FAILED
        }
    }
}

fn told(output: Output, flow: &Flow) {
    match output {
        // One line each, so that a following program can read them.
        Output::Json => super::print_line(&serde_json::to_string(flow).expect("plain data serialises")),
        Output::Text => super::print_line(&flow_line(flow)),
    }
}

fn flow_line(flow: &Flow) -> String {
    let seconds = i64::try_from(flow.time_ms / 1000).unwrap_or(0);
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let host = flow.host.as_deref().or(flow.origin.as_deref()).unwrap_or("?");
    let mut line = format!(
        "{:02}:{:02}:{:02}.{:03} {} pid {} → {host} ",
        time.hour(),
        time.minute(),
        time.second(),
        flow.time_ms % 1000,
        who(flow),
        flow.tgid,
    );
    // Writing to a String cannot fail.
    match (&flow.request, flow.status) {
        (Some(request), Some(status)) => {
            let _ = write!(line, "{request} {status} {}", flow.outcome);
        }
        _ => {
            let _ = write!(line, "connection: {}", flow.outcome);
        }
    }
    if let Some(reason) = &flow.reason {
        let _ = write!(line, " ({reason})");
    }
    let _ = write!(line, " {:.1} ms", flow.took_us as f64 / 1000.0);
    line
}

/// The shortest name that says it: a pod, a unit, else the cgroup.
fn who(flow: &Flow) -> String {
    let short = |id: &str| id.chars().take(12).collect::<String>();
    match (&flow.pod, &flow.container, &flow.unit) {
        (Some(pod), Some(container), _) => format!("pod {pod}/{}", short(container)),
        (Some(pod), None, _) => format!("pod {pod}"),
        (None, Some(container), _) => format!("container {}", short(container)),
        (None, None, Some(unit)) => unit.clone(),
        (None, None, None) => flow.cgroup.clone().unwrap_or_else(|| "?".to_owned()),
    }
}

fn drawn(status: &Status) -> String {
    let mut text = format!(
        "tv-agent {} (pid {}), {}, up {} s\n",
        status.version,
        status.pid,
        if status.ready { "ready" } else { "not ready" },
        status.uptime_s
    );
    let _ = writeln!(
        text,
        "kernel half: sha256 {}",
        status.bpf_sha256.as_deref().unwrap_or("none")
    );
    let _ = writeln!(text, "listening: {}", status.listeners.join(", "));
    for cgroup in &status.cgroups {
        let _ = writeln!(text, "enrolled: {}", cgroup.display());
    }
    let _ = writeln!(text, "routes: {}", status.routes.join(", "));
    let _ = writeln!(
        text,
        "open connections: {}, cached tokens: {}",
        status.open_connections, status.cached_tokens
    );
    if let Some(narrowing) = &status.narrowing {
        let _ = writeln!(text, "{}", narrowed(narrowing));
    }
    for (reason, count) in status.kernel.iter().filter(|(_, count)| *count > 0) {
        let _ = writeln!(text, "  {reason}: {count}");
    }
    text
}

fn narrowed(narrowing: &Narrowing) -> String {
    if narrowing.capture != "dns" {
        return format!("capture: {}", narrowing.capture);
    }
    let everywhere = if narrowing.all_unsure_s == 0 {
        format!("{} network namespaces unsure", narrowing.unsure_namespaces)
    } else {
        format!(
            "everything is looked at for {} s more, since names were looked up unseen",
            narrowing.all_unsure_s
        )
    };
    format!(
        "capture: dns, {} candidate addresses, {everywhere}",
        narrowing.candidates
    )
}

fn listed(rows: &[Cached]) -> String {
    if rows.is_empty() {
        return "the cache is empty".to_owned();
    }
    let times = |row: &Cached| match (row.age_s, row.left_s) {
        (Some(age), Some(left)) => format!(", {age} s old, {left} s left"),
        _ => String::new(),
    };
    rows.iter()
        .map(|row| format!("{} {}{}\n", row.key, row.state, times(row)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_is_one_line() {
        let narrowing = |capture: &'static str, all_unsure_s| Narrowing {
            capture: capture.into(),
            candidates: 3,
            unsure_namespaces: 1,
            all_unsure_s,
        };
        let sure = "capture: dns, 3 candidate addresses, 1 network namespaces unsure";
        assert_eq!(narrowed(&narrowing("dns", 0)), sure);
        assert!(narrowed(&narrowing("dns", 7)).contains("everything is looked at for 7 s more"));
        assert_eq!(narrowed(&narrowing("cidr", 0)), "capture: cidr");
    }

    #[test]
    fn a_flow_is_one_line() {
        let request = Flow {
            time_ms: 3_723_004,
            cgroup: Some("/a.service".into()),
            tgid: 7,
            host: Some("api.github.com".into()),
            outcome: "forwarded".into(),
            request: Some("GET /user".into()),
            status: Some(200),
            took_us: 1500,
            ..Flow::default()
        };
        let line = "01:02:03.004 /a.service pid 7 → api.github.com GET /user 200 forwarded 1.5 ms";
        assert_eq!(flow_line(&request), line);
        let connection = Flow {
            origin: Some("192.0.2.1:443".into()),
            outcome: "tunnel".into(),
            reason: Some("no_sni".into()),
            ..Flow::default()
        };
        assert_eq!(
            flow_line(&connection),
            "00:00:00.000 ? pid 0 → 192.0.2.1:443 connection: tunnel (no_sni) 0.0 ms"
        );
    }
}
