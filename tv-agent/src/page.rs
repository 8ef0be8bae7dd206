//! The page for people: what is intercepted now, for whom, and what was refused and why. A view in, HTML out.
//!
//! It has no script, loads nothing, and changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::clock;
use crate::control::Status;
use crate::flows::Flow;
use crate::trust::{Belief, Known};

/// What there is to show.
pub struct View {
    pub status: Status,
    /// Oldest first.
    pub flows: Vec<Arc<Flow>>,
    /// The processes that were seen connecting.
    pub processes: Vec<Known>,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

impl View {
    /// What there is now.
    pub fn of(status: Status, flows: Vec<Arc<Flow>>, processes: Vec<Known>) -> Self {
        Self {
            status,
            flows,
            processes,
            now_ms: clock::unix_now_ms(),
        }
    }
}

/// Rows of the list of what was refused, and of what happened last.
const ROWS: usize = 50;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --bad: #b3261e; --good: #146c2e; }
@media (prefers-color-scheme: dark) { :root { --bad: #ffb4ab; --good: #8fd89b; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; } dt { opacity: .7; } dd { margin: 0; }
div { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.bad { color: var(--bad); } .good { color: var(--good); }
";

/// What the page may load and do: its own style, nothing else (CSP level 3).
pub fn content_security_policy() -> &'static str {
    static POLICY: OnceLock<String> = OnceLock::new();
    POLICY.get_or_init(|| {
        let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(STYLE));
        format!(
            "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        )
    })
}

pub fn render(view: &View) -> String {
    let mut html = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    html.push_str("<meta http-equiv=\"refresh\" content=\"5\">\n");
    html.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    let _ = write!(
        html,
        "<title>tv-agent</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>tv-agent</h1>\n"
    );
    overview(&mut html, &view.status);
    callers(&mut html, view);
    refused(&mut html, view);
    trust(&mut html, view);
    last(&mut html, view);
    html.push_str("</body>\n</html>\n");
    html
}

fn overview(html: &mut String, status: &Status) {
    html.push_str("<dl>\n");
    let ready = if status.ready {
        "<span class=\"good\">ready</span>"
    } else {
        "<span class=\"bad\">not ready</span>"
    };
    let cgroups: Vec<String> = status
        .cgroups
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    for (name, value) in [
        ("State", ready.to_owned()),
        (
            "Version",
            escape(&format!("{} (process {})", status.version, status.pid)),
        ),
        ("Running for", escape(&duration(status.uptime_s))),
        ("Enrolled", escape(&cgroups.join(", "))),
        ("Routes", escape(&status.routes.join(", "))),
        ("Open connections", status.open_connections.to_string()),
        ("Cached tokens", status.cached_tokens.to_string()),
        ("Went past the agent", past(status.uncaptured_connections)),
    ] {
        let _ = writeln!(html, "<dt>{name}</dt><dd>{value}</dd>");
    }
    html.push_str("</dl>\n");
}

fn past(count: u64) -> String {
    let class = if count > 0 { " class=\"bad\"" } else { "" };
    format!("<span{class}>{count} connections</span>")
}

/// Of one caller and one host.
#[derive(Default)]
struct Sum {
    route: Option<String>,
    swapped: u64,
    refused: u64,
    tunnelled: u64,
    last_ms: u64,
}

fn callers(html: &mut String, view: &View) {
    let mut sums: BTreeMap<(String, String), Sum> = BTreeMap::new();
    for flow in &view.flows {
        let host = flow.host.as_deref().or(flow.origin.as_deref()).unwrap_or("?");
        let sum = sums.entry((who(flow), host.to_owned())).or_default();
        sum.route = flow.route.clone().or(sum.route.take());
        sum.last_ms = sum.last_ms.max(flow.time_ms);
        match (&*flow.kind, &*flow.outcome) {
            ("connection", "tunnel") => sum.tunnelled += 1,
            ("connection", "terminate") => {}
            _ if is_refusal(flow) => sum.refused += 1,
            ("request", _) => sum.swapped += 1,
            _ => {}
        }
    }
    let rows = sums.into_iter().map(|((who, host), sum)| {
        let bad = if sum.refused > 0 { " class=\"bad\"" } else { "" };
        format!(
            "<td>{}</td><td>{}</td><td>{}</td><td>{}</td><td{bad}>{}</td>\
             <td>{}</td><td>{}</td>",
            escape(&who),
            escape(&host),
            escape(sum.route.as_deref().unwrap_or("none")),
            sum.swapped,
            sum.refused,
            sum.tunnelled,
            escape(&ago(view.now_ms, sum.last_ms)),
        )
    });
    let head = [
        "Workload",
        "Host",
        "Route",
        "Answered",
        "Refused",
        "Let through",
        "Last",
    ];
    table(html, "Who calls what", &head, rows.collect());
}

fn refused(html: &mut String, view: &View) {
    let rows = view
        .flows
        .iter()
        .rev()
        .filter(|flow| is_refusal(flow))
        .take(ROWS)
        .map(|flow| {
            format!(
                "<td>{}</td><td>{}</td><td>{}</td><td class=\"bad\">{}</td><td>{}</td><td>{}</td>",
                clock(flow.time_ms),
                escape(&who(flow)),
                escape(flow.host.as_deref().or(flow.origin.as_deref()).unwrap_or("?")),
                escape(&flow.outcome),
                escape(flow.reason.as_deref().unwrap_or("")),
                escape(flow.fault.as_deref().unwrap_or("")),
            )
        });
    let head = ["Time (UTC)", "Workload", "Host", "What", "Why", "Whose fault"];
    table(html, "Refused", &head, rows.collect());
}

/// Who does not trust the CA first, and what to do about it.
fn trust(html: &mut String, view: &View) {
    const ORDER: [Belief; 5] = [
        Belief::Untrusted,
        Belief::NeedsRestart,
        Belief::Unknown,
        Belief::Installed,
        Belief::Verified,
    ];
    let _ = writeln!(html, "<h2>Who trusts the CA</h2>");
    let counts: Vec<String> = ORDER
        .into_iter()
        .map(|belief| {
            (
                belief,
                view.processes.iter().filter(|p| p.belief == belief).count(),
            )
        })
        .filter(|(_, count)| *count > 0)
        .map(|(belief, count)| format!("{count} {}", belief.label()))
        .collect();
    let rank = |known: &Known| ORDER.iter().position(|belief| *belief == known.belief);
    let mut processes: Vec<(String, &Known)> = view.processes.iter().map(|p| (who(&p.who), p)).collect();
    processes.sort_by(|(a, x), (b, y)| (rank(x), a, x.who.tgid).cmp(&(rank(y), b, y.who.tgid)));
    let rows = processes.iter().take(ROWS).map(|(who, known)| {
        let class = match known.belief {
            Belief::Untrusted | Belief::NeedsRestart => " class=\"bad\"",
            Belief::Verified => " class=\"good\"",
            Belief::Unknown | Belief::Installed => "",
        };
        format!(
            "<td>{}</td><td>{}</td><td>{}</td><td{class}>{}</td><td>{}</td><td>{}</td>",
            escape(who),
            escape(&process(&known.who)),
            known.runtime.label(),
            known.belief.label(),
            escape(known.reason.as_deref().unwrap_or("")),
            escape(&known.advice),
        )
    });
    let head = [
        "Workload",
        "Process",
        "Runtime",
        "State",
        "How it showed",
        "What to do",
    ];
    if !counts.is_empty() {
        let _ = writeln!(
            html,
            "<p>Of the processes seen connecting: {}.</p>",
            counts.join(", ")
        );
    }
    rows_of(html, &head, rows.collect());
}

fn last(html: &mut String, view: &View) {
    let rows = view.flows.iter().rev().take(ROWS).map(|flow| {
        let what = match (&flow.request, flow.status) {
            (Some(request), Some(status)) => format!("{request} {status} {}", flow.outcome),
            _ => flow.outcome.clone(),
        };
        format!(
            "<td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1}</td>",
            clock(flow.time_ms),
            escape(&who(flow)),
            escape(&process(flow)),
            escape(flow.host.as_deref().or(flow.origin.as_deref()).unwrap_or("?")),
            escape(&what),
            flow.took_us as f64 / 1000.0,
        )
    });
    let head = ["Time (UTC)", "Workload", "Process", "Host", "What happened", "ms"];
    table(html, "Last connections and requests", &head, rows.collect());
}

fn table(html: &mut String, title: &str, head: &[&str], rows: Vec<String>) {
    let _ = writeln!(html, "<h2>{title}</h2>");
    rows_of(html, head, rows);
}

fn rows_of(html: &mut String, head: &[&str], rows: Vec<String>) {
    if rows.is_empty() {
        html.push_str("<p>Nothing so far.</p>\n");
        return;
    }
    html.push_str("<div><table>\n<thead><tr>");
    head.iter().for_each(|name| {
        let _ = write!(html, "<th scope=\"col\">{name}</th>");
    });
    html.push_str("</tr></thead>\n<tbody>\n");
    rows.iter().for_each(|row| {
        let _ = writeln!(html, "<tr>{row}</tr>");
    });
    html.push_str("</tbody></table></div>\n");
}

fn is_refusal(flow: &Flow) -> bool {
    flow.fault.is_some() || matches!(&*flow.outcome, "refuse" | "uncaptured")
}

/// The name that says most: pod, unit, container, cgroup.
fn who(flow: &Flow) -> String {
    let pod = match (&flow.pod_namespace, &flow.pod_name) {
        (Some(namespace), Some(name)) => Some(format!("{namespace}/{name}")),
        _ => flow.pod.as_ref().map(|uid| format!("pod {uid}")),
    };
    pod.or_else(|| flow.unit.clone())
        .or_else(|| flow.container.as_ref().map(|id| format!("container {id}")))
        .or_else(|| flow.cgroup.clone())
        .unwrap_or_else(|| "?".to_owned())
}

fn process(flow: &Flow) -> String {
    format!("{}[{}]", flow.process.as_deref().unwrap_or("?"), flow.tgid)
}

fn clock(time_ms: u64) -> String {
    let seconds = i64::try_from(time_ms / 1000).unwrap_or(0);
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (hour, minute, second) = time.to_hms();
    format!("{hour:02}:{minute:02}:{second:02}")
}

fn ago(now_ms: u64, then_ms: u64) -> String {
    format!("{} ago", duration(now_ms.saturating_sub(then_ms) / 1000))
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Names come from processes, hosts and paths: none of it may become markup.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(flows: Vec<Flow>) -> View {
        View {
            status: Status {
                version: "1.2.3".into(),
                bpf_sha256: None,
                pid: 7,
                data_path: None,
                ready: true,
                uptime_s: 7300,
                listeners: vec![],
                cgroups: vec!["/a&b".into()],
                routes: vec!["github".into()],
                open_connections: 2,
                cached_tokens: 1,
                uncaptured_connections: 0,
                kubernetes: None,
                narrowing: None,
                kernel: vec![],
            },
            flows: flows.into_iter().map(Arc::new).collect(),
            processes: vec![],
            now_ms: 100_000,
        }
    }

    fn request(outcome: &str, fault: Option<&str>) -> Flow {
        Flow {
            time_ms: 40_000,
            kind: "request".into(),
            pod_namespace: Some("shop".into()),
            pod_name: Some("cart-0".into()),
            process: Some("<script>alert(1)</script>".into()),
            host: Some("api.github.com".into()),
            route: Some("github".into()),
            outcome: outcome.into(),
            fault: fault.map(str::to_owned),
            reason: fault.map(|_| "the token's \"audience\" is another".to_owned()),
            request: Some("GET /user".into()),
            status: Some(200),
            ..Flow::default()
        }
    }

    #[test]
    fn it_says_who_calls_what_and_what_was_refused() {
        let html = render(&view(vec![
            request("forwarded", None),
            request("forwarded", None),
            request("token_exchange_failed", Some("caller")),
        ]));
        let row = "<td>shop/cart-0</td><td>api.github.com</td><td>github</td><td>2</td>\
                   <td class=\"bad\">1</td>";
        assert!(html.contains(row), "{html}");
        assert!(html.contains("<td>60 s ago</td>") && html.contains("2 h"));
        assert!(html.contains("the token&#39;s &quot;audience&quot; is another"));
        assert!(html.contains("/a&amp;b"));
    }

    #[test]
    fn nothing_that_is_shown_becomes_markup_and_nothing_is_loaded() {
        let html = render(&view(vec![request("<b>", Some("us"))]));
        assert!(!html.contains("<script") && !html.contains("<b>"), "{html}");
        for loading in ["src=", "href=", "url(", "@import", "http:", "https:"] {
            assert!(!html.contains(loading), "{loading}");
        }
        let policy = content_security_policy();
        assert!(
            policy.starts_with("default-src 'none'; style-src 'sha256-"),
            "{policy}"
        );
        // The hash is over exactly what stands between the tags.
        let style = html
            .split("<style>")
            .nth(1)
            .unwrap()
            .split("</style>")
            .next()
            .unwrap();
        let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(style));
        assert!(policy.contains(&hash));
    }

    #[test]
    fn it_is_bounded_and_says_so_when_there_is_nothing() {
        let html = render(&view(vec![]));
        assert_eq!(html.matches("Nothing so far.").count(), 4);
        let many = (0..1000).map(|_| request("refused", Some("caller"))).collect();
        let html = render(&view(many));
        assert_eq!(html.matches("<td>00:00:40</td>").count(), 2 * ROWS);
    }

    #[test]
    fn who_does_not_trust_the_ca_stands_first_with_what_to_do() {
        let known = |process: &str, belief, advice: &str| Known {
            who: Flow {
                process: Some(process.into()),
                ..request("", None)
            },
            runtime: crate::trust::Runtime::Node,
            belief,
            reason: (belief == Belief::Untrusted).then(|| "TLS alert <unknown_ca>".to_owned()),
            advice: advice.into(),
        };
        let mut view = view(vec![]);
        view.processes = vec![
            known("good", Belief::Verified, ""),
            known("<b>", Belief::Untrusted, "start it with NODE_EXTRA_CA_CERTS"),
        ];
        let html = render(&view);
        assert!(html.contains("1 untrusted, 1 verified"), "{html}");
        let (bad, good) = (
            html.find("start it with NODE_EXTRA_CA_CERTS"),
            html.find("good[0]"),
        );
        assert!(bad.unwrap() < good.unwrap());
        assert!(html.contains("TLS alert &lt;unknown_ca&gt;") && !html.contains("<b>"));
        view.processes = (0..1000).map(|_| known("p", Belief::Installed, "")).collect();
        assert_eq!(render(&view).matches("<td>installed</td>").count(), ROWS);
    }
}
