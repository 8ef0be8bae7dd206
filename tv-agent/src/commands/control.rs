//! `tv-agent status`, `flows` and `cache`: what the running daemon says.

use std::fmt::Write as _;
use std::path::Path;

use http::Method;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use super::{chain, print};
use crate::cli::{CacheCommand, ControlArgs, FlowsArgs, LogArgs, Output, exit};
use crate::control::{self, Logging, Status, ask};
use crate::flows::Flow;
use crate::kubernetes;
use crate::redirect::Narrowing;
use crate::token::{Cached, Filter};

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
    if output == Output::Text {
        super::print_line(&flow_head());
    }
    let asked = ask::<Flow>(&args.control.socket, Method::GET, target, |flow| {
        told(output, &flow);
        true
    });
    answered(asked.await, |()| {})
}

pub async fn log(args: &LogArgs) -> u8 {
    let (method, target) = match &args.filter {
        Some(filter) => (Method::POST, control::log_target(filter)),
        None => (Method::GET, "/log".to_owned()),
    };
    match one::<Logging>(&args.control.socket, method, &target).await {
        Ok(Logging::Refused(problem)) => {
            tracing::error!(
                "the filter is refused: {problem}; allowed: a level, or a filter such as tv_agent=debug"
            );
            exit::USAGE
        }
        said => answered(said, |said| {
            print(args.control.output.output, &said, || match &said {
                Logging::Filter(filter) | Logging::Refused(filter) => filter.clone(),
            });
        }),
    }
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
        CacheCommand::Flush(args) => {
            let target = control::flush_target(&Filter {
                route: args.route.clone(),
                vault: args.vault.clone(),
                subject: args.subject.clone(),
            });
            let flushed = one::<u64>(&args.control.socket, Method::POST, &target).await;
            answered(flushed, |count| {
                print(args.control.output.output, &count, || {
                    format!("{count} entries dropped")
                });
            })
        }
    }
}

pub(super) async fn one<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    target: &str,
) -> Result<T, control::Error> {
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

pub(super) fn answered<T>(answer: Result<T, control::Error>, show: impl FnOnce(T)) -> u8 {
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

/// Widths of the columns before the last, which is what happened: 120 characters hold the usual line.
const COLUMNS: [(&str, usize); 6] = [
    ("TIME", 12),
    ("WHO", 22),
    ("PROCESS", 14),
    ("USER", 7),
    ("WHERE TO", 20),
    ("ROUTE", 8),
];

fn flow_head() -> String {
    flow_columns(COLUMNS.map(|(name, _)| name.to_owned()), "WHAT HAPPENED")
}

fn flow_line(flow: &Flow) -> String {
    let seconds = i64::try_from(flow.time_ms / 1000).unwrap_or(0);
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (hour, minute, second) = time.to_hms();
    let milliseconds = flow.time_ms % 1000;
    let columns = [
        format!("{hour:02}:{minute:02}:{second:02}.{milliseconds:03}"),
        who(flow),
        format!("{}[{}]", flow.process.as_deref().unwrap_or("?"), flow.tgid),
        flow.user.clone().unwrap_or_else(|| flow.uid.to_string()),
        flow.host
            .as_deref()
            .or(flow.origin.as_deref())
            .unwrap_or("?")
            .to_owned(),
        flow.route.as_deref().unwrap_or("-").to_owned(),
    ];
    let mut what = match (&flow.request, flow.status) {
        (Some(request), Some(status)) => format!("{request} {status} {}", flow.outcome),
        _ => flow.outcome.clone(),
    };
    // Writing to a String cannot fail.
    if let Some(identity) = &flow.identity {
        let _ = write!(what, " as {identity}");
    }
    if let Some(reason) = &flow.reason {
        let _ = write!(what, " ({reason})");
    }
    let _ = write!(what, " {:.1} ms", flow.took_us as f64 / 1000.0);
    flow_columns(columns, &what)
}

fn flow_columns(columns: [String; 6], last: &str) -> String {
    let mut line = String::new();
    for (text, (_, width)) in columns.iter().zip(COLUMNS) {
        let _ = write!(line, "{:width$} ", cut(text, width));
    }
    line + last
}

/// At most `width` characters. The end is what tells names apart (a container of a pod, a host of a domain).
pub(super) fn cut(text: &str, width: usize) -> String {
    match text.chars().count().checked_sub(width) {
        None | Some(0) => text.to_owned(),
        Some(over) => std::iter::once('…').chain(text.chars().skip(over + 1)).collect(),
    }
}

/// The shortest name that says it: a pod, a container, a unit, else the cgroup.
pub(super) fn who(flow: &Flow) -> String {
    let short = |id: &str| id.chars().take(12).collect::<String>();
    let pod = match (&flow.pod_namespace, &flow.pod_name, &flow.pod) {
        (Some(namespace), Some(name), _) => Some(format!("{namespace}/{name}")),
        (_, _, Some(uid)) => Some(format!("pod {}", short(uid))),
        _ => None,
    };
    match (pod, &flow.container, &flow.unit) {
        (Some(pod), Some(container), _) => format!("{pod}/{}", short(container)),
        (Some(pod), None, _) => pod,
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
    if status.uncaptured_connections > 0 {
        let _ = writeln!(
            text,
            "went past the agent: {} connections (`tv-agent flows` and the log say which)",
            status.uncaptured_connections
        );
    }
    if let Some(kubernetes) = &status.kubernetes {
        text += &followed(kubernetes);
    }
    if let Some(narrowing) = &status.narrowing {
        let _ = writeln!(text, "{}", narrowed(narrowing));
    }
    for (reason, count) in status.kernel.iter().filter(|(_, count)| *count > 0) {
        let _ = writeln!(text, "  {reason}: {count}");
    }
    text
}

fn followed(status: &kubernetes::Status) -> String {
    let mut text = String::new();
    for (resource, feed) in [("pods", &status.pods), ("namespaces", &status.namespaces)] {
        let state = match (feed.current, feed.listed, feed.stale_s) {
            (true, ..) => "followed".to_owned(),
            (false, true, Some(seconds)) => format!("as of {seconds} s ago"),
            _ => "not known yet".to_owned(),
        };
        let error = feed
            .error
            .as_deref()
            .map(|error| format!(": {error}"))
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "kubernetes {resource}: {state}, {} failures{error}",
            feed.failures
        );
    }
    if let Some(problem) = &status.credentials {
        let _ = writeln!(text, "kubernetes credentials: {problem}");
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
    let row = |row: &Cached| {
        let unknown = |text: String| if text.is_empty() { "?".to_owned() } else { text };
        format!(
            "{} subject {} vault {} route {}: {}, {} hits{}\n",
            row.key,
            unknown(row.subject.clone()),
            unknown(row.vault.clone()),
            unknown(row.routes.join(",")),
            row.state,
            row.hits,
            times(row)
        )
    };
    rows.iter().map(row).collect()
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
    fn a_flow_is_one_line_in_columns() {
        let request = Flow {
            time_ms: 3_723_004,
            cgroup: Some("/a.service".into()),
            tgid: 7,
            process: Some("curl".into()),
            user: Some("root".into()),
            host: Some("api.github.com".into()),
            route: Some("github".into()),
            outcome: "forwarded".into(),
            request: Some("GET /user".into()),
            status: Some(200),
            took_us: 1500,
            ..Flow::default()
        };
        let line = "01:02:03.004 /a.service             curl[7]        root    api.github.com       github   \
                    GET /user 200 forwarded 1.5 ms";
        assert_eq!(flow_line(&request), line);
        assert!(line.chars().count() <= 120, "{}", line.chars().count());
        let connection = Flow {
            origin: Some("192.0.2.1:443".into()),
            uid: 1000,
            outcome: "tunnel".into(),
            reason: Some("no_sni".into()),
            ..Flow::default()
        };
        let line = "00:00:00.000 ?                      ?[0]           1000    192.0.2.1:443        -        \
                    tunnel (no_sni) 0.0 ms";
        assert_eq!(flow_line(&connection), line);
        let at = |line: &str| line.find("WHAT").map(|at| line[..at].chars().count());
        assert_eq!(at(&flow_head()), line.find("tunnel"));
    }

    #[test]
    fn who_is_the_shortest_name_and_long_names_are_cut_in_front() {
        let mut flow = Flow {
            pod: Some("8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff".into()),
            container: Some("0123456789abcdef".into()),
            ..Flow::default()
        };
        assert_eq!(who(&flow), "pod 8f6a1c2e-1b2/0123456789ab");
        (flow.pod_namespace, flow.pod_name) = (Some("shop".into()), Some("cart-0".into()));
        assert_eq!(who(&flow), "shop/cart-0/0123456789ab");
        assert_eq!(cut("storage.googleapis.com", 10), "…eapis.com");
        assert_eq!(cut("ééé", 3), "ééé");
    }
}
