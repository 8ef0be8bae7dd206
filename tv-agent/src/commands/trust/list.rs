//! `tv-agent trust list`: what the running daemon believes of each enrolled process, and what to do.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use http::Method;

use crate::cli::ControlArgs;
use crate::commands::control::{answered, cut, who};
use crate::commands::print;
use crate::control::{TrustRow, ask};
use crate::flows::Flow;

pub(super) async fn run(args: &ControlArgs) -> u8 {
    let mut rows = Vec::new();
    let asked = ask::<TrustRow>(&args.socket, Method::GET, "/trust", |row| {
        rows.push(row);
        true
    });
    let asked = asked.await;
    answered(asked, |()| print(args.output.output, &rows, || drawn(&rows)))
}

/// Widths of the columns before the last.
const COLUMNS: [(&str, usize); 4] = [("WORKLOAD", 26), ("PROCESS", 20), ("RUNTIME", 7), ("STATE", 13)];

/// One line for all processes of a workload that are alike.
fn drawn(rows: &[TrustRow]) -> String {
    if rows.is_empty() {
        return "no process is enrolled".to_owned();
    }
    let mut alike = BTreeMap::<[String; 5], Vec<u32>>::new();
    for row in rows {
        let key = [
            whose(row),
            row.process.clone(),
            row.runtime.label().to_owned(),
            row.state.label().to_owned(),
            what(row),
        ];
        alike.entry(key).or_default().push(row.pid);
    }
    let mut text = line(COLUMNS.map(|(name, _)| name.to_owned()), "WHAT TO DO");
    for ([whose, name, runtime, state, what], pids) in alike {
        let process = match pids[..] {
            [pid] => format!("{name}[{pid}]"),
            _ => format!("{name} ({})", pids.len()),
        };
        text += &line([whose, process, runtime, state], &what);
    }
    let mut unreached: Vec<String> = rows
        .iter()
        .flat_map(|row| row.unreached.iter().map(|store| (whose(row), store)))
        .map(|(whose, store)| {
            format!(
                "{whose}: {} did not take the CA: {}\n",
                store.path.display(),
                store.why
            )
        })
        .collect();
    unreached.sort();
    unreached.dedup();
    text + &unreached.concat()
}

fn line(columns: [String; 4], last: &str) -> String {
    let mut line = String::new();
    for (text, (_, width)) in columns.iter().zip(COLUMNS) {
        // Writing to a String cannot fail.
        let _ = write!(line, "{:width$} ", cut(text, width));
    }
    format!("{}\n", (line + last).trim_end())
}

fn whose(row: &TrustRow) -> String {
    who(&Flow {
        cgroup: Some(row.cgroup.clone()),
        unit: row.unit.clone(),
        pod: row.pod.clone(),
        container: row.container.clone(),
        ..Flow::default()
    })
}

/// What was seen, and what to do about it.
fn what(row: &TrustRow) -> String {
    match &row.reason {
        Some(reason) => format!("{reason}: {}", row.advice),
        None if row.advice.is_empty() => "-".to_owned(),
        None => row.advice.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{Belief, MntnsId, Runtime, StoreKind, Unreached};

    fn row(pid: u32, process: &str, runtime: Runtime, state: Belief) -> TrustRow {
        TrustRow {
            pid,
            started: 7,
            mntns: MntnsId { number: 4, ino: 1 },
            cgroup: "/system.slice/mail.service".into(),
            unit: Some("mail.service".into()),
            pod: None,
            container: None,
            process: process.into(),
            runtime,
            state,
            reason: None,
            roots: ["ab".to_owned()].into(),
            stores: [StoreKind::Bundle].into(),
            unreached: vec![Unreached {
                path: "/etc/ssl/certs".into(),
                why: "read-only".into(),
            }],
            advice: String::new(),
        }
    }

    #[test]
    fn each_workload_says_what_to_do_and_what_is_alike_is_one_line() {
        let restart = TrustRow {
            reason: Some("TLS alert bad_certificate".into()),
            advice: "restart it".into(),
            ..row(12, "mailer", Runtime::Go, Belief::Untrusted)
        };
        let curl = |pid| row(pid, "curl", Runtime::Curl, Belief::Verified);
        let text = drawn(&[curl(1), restart, curl(3)]);
        let lines: Vec<&str> = text.lines().collect();
        let expected = [
            "WORKLOAD                   PROCESS              RUNTIME STATE         WHAT TO DO",
            "mail.service               curl (2)             curl    verified      -",
            "mail.service               mailer[12]           go      untrusted     TLS alert bad_certificate: restart it",
            "mail.service: /etc/ssl/certs did not take the CA: read-only",
        ];
        assert_eq!(lines, expected);
        assert_eq!(drawn(&[]), "no process is enrolled");
    }

    #[test]
    fn a_row_is_read_back_as_it_was_written() {
        let row = row(1, "x", Runtime::Dotnet, Belief::NeedsRestart);
        let text = serde_json::to_string(&row).unwrap();
        assert!(text.contains(r#""state":"needs_restart""#), "{text}");
        assert_eq!(serde_json::from_str::<TrustRow>(&text).unwrap(), row);
    }
}
