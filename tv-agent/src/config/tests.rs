//! Good configurations, and each way to be wrong: the message has to name line, key, value and what is allowed.

use super::*;
use crate::policy::OnMissingToken;

const GOOD: &str = r#"
intercept:
  cgroups: ["/kubepods.slice", "/system.slice/billing.service/"]
  ports: [443, 8443]
  bypass_cidrs: [10.0.0.0/8, "fd00::/8"]
  on_unknown_name: refuse
vaults:
  main:
    kind: auth0_token_vault
    domain: tenant.eu.auth0.com
    client_id: id
    client_auth: { method: client_secret_basic, secret: { env: SECRET } }
routes:
  - name: google
    hosts: ["*.googleapis.com", calendar.google.com]
    vault: main
    connection: google-oauth2
  - name: github
    hosts: [api.github.com]
    vault: main
    connection: github
    on_missing_token: passthrough
    workloads: ["/system.slice/*"]
admin: { metrics: "127.0.0.1:1" }
ca: { dir: /tmp/ca }
"#;

fn env(name: &str) -> Option<String> {
    (name == "SECRET").then(|| "s3cret".to_owned())
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("tv.yaml"), &env).map_err(|e| e.to_string())
}

#[test]
fn a_whole_file_is_understood() {
    let config = parse(GOOD).unwrap();
    assert_eq!(
        config.intercept.cgroups,
        ["/kubepods.slice", "/system.slice/billing.service"]
    );
    assert_eq!(config.intercept.ports, [443, 8443]);
    assert_eq!(config.intercept.on_unknown_name, OnUnknownName::Refuse);
    let vault = &config.vaults["main"].settings;
    assert_eq!(
        vault.token_endpoint.as_str(),
        "https://tenant.eu.auth0.com/oauth/token"
    );
    assert_eq!(vault.client_secret.len(), 6);
    assert_eq!(config.routes[1].on_missing_token, OnMissingToken::Passthrough);
    assert_eq!(
        config.subtrees(),
        ["api.github.com", "calendar.google.com", "googleapis.com"]
    );
    assert!(config.metrics_asked);
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config.intercept, Intercept::default());
    assert_eq!(config.port, DEFAULT_PORT);
    assert!(config.routes.is_empty());
}

#[test]
fn each_mistake_names_line_key_value_and_remedy() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "ports: [443, 8443]",
            "ports: [443, 70000]",
            &["tv.yaml:4", "intercept.ports", "70000", "1 to 65535"],
        ),
        (
            "ports: [443, 8443]",
            "ports: [https]",
            &["tv.yaml:4: ", "ports", "\"https\"", "a whole number"],
        ),
        (
            "ports:",
            "prots:",
            &["tv.yaml:4: ", "prots", "expected one of", "ports"],
        ),
        (
            "refuse\n",
            "maybe\n",
            &["tv.yaml:6: ", "on_unknown_name", "maybe", "tunnel"],
        ),
        (
            "10.0.0.0/8",
            "10.0.0.0/99",
            &[
                "tv.yaml:5",
                "intercept.bypass_cidrs",
                "10.0.0.0/99",
                "ADDRESS/LENGTH",
            ],
        ),
        (
            "\"/kubepods.slice\"",
            "\"/\"",
            &["tv.yaml:3", "intercept.cgroups", "\"/\"", "not the root"],
        ),
        (
            "\"/kubepods.slice\"",
            "\"/a/../b\"",
            &["tv.yaml:3", "intercept.cgroups", "/a/../b"],
        ),
        (
            "kind: auth0_token_vault",
            "kind: jwt_signer",
            &[
                "tv.yaml:9",
                "vaults.main.kind",
                "jwt_signer",
                "allowed: auth0_token_vault",
            ],
        ),
        (
            "domain: tenant.eu.auth0.com",
            "domain: https://x",
            &["tv.yaml:10", "vaults.main.domain", "https://x", "host name"],
        ),
        (
            "domain: tenant.eu.auth0.com",
            "token_endpoint: http://x/",
            &["tv.yaml:10", "token_endpoint", "http://x/", "https://"],
        ),
        (
            "    domain: tenant.eu.auth0.com\n",
            "",
            &["vaults.main", "neither domain nor token_endpoint"],
        ),
        ("    client_id: id\n", "", &["client_id"]),
        (
            "env: SECRET",
            "env: OTHER",
            &[
                "tv.yaml:12",
                "vaults.main.client_auth.secret",
                "OTHER",
                "variable that is set",
            ],
        ),
        (
            "\"*.googleapis.com\"",
            "\"*.com\"",
            &["tv.yaml:15", "routes.google.hosts", "*.com", "below a domain"],
        ),
        (
            "calendar.google.com]",
            "\"a b\"]",
            &["tv.yaml:15", "routes.google.hosts", "a b", "DNS name"],
        ),
        (
            "    vault: main\n    connection: github",
            "    vault: other\n    connection: github",
            &["tv.yaml:20", "routes.github.vault", "other", "allowed: main"],
        ),
        (
            "name: github",
            "name: google",
            &["tv.yaml:18", "routes[].name", "google", "twice"],
        ),
        (
            "[\"/system.slice/*\"]",
            "[web]",
            &["tv.yaml:23", "routes.github.workloads", "web"],
        ),
        ("\"127.0.0.1:1\"", "here", &["admin.metrics", "here", "IP:PORT"]),
        ("routes:\n", "routes: [\n", &["tv.yaml:14: "]),
    ];
    for (from, to, parts) in cases {
        assert!(GOOD.contains(from), "the case {from:?} is out of date");
        let message = parse(&GOOD.replace(from, to))
            .err()
            .unwrap_or_else(|| panic!("{to:?} was accepted"));
        for part in *parts {
            assert!(
                message.contains(part),
                "{to:?}: {part:?} is missing in: {message}"
            );
        }
    }
}

#[test]
fn the_time_to_drain_has_a_limit() {
    let with = |seconds: &str| format!("listen: {{ drain_seconds: {seconds} }}\n");
    for (seconds, drain) in [("0", 0), ("3600", 3600)] {
        let config = Config::parse(&with(seconds), Path::new("tv.yaml"), &|_| None);
        assert_eq!(config.ok().map(|c| c.drain), Some(Duration::from_secs(drain)));
    }
    let refused = Config::parse(&with("3601"), Path::new("tv.yaml"), &|_| None);
    let message = refused.err().unwrap().to_string();
    for part in ["tv.yaml:1", "listen.drain_seconds", "3601", "0 to 3600"] {
        assert!(message.contains(part), "{part:?} is missing in: {message}");
    }
}

#[test]
fn a_secret_written_into_the_file_is_not_repeated() {
    let message = parse(&GOOD.replace("{ env: SECRET }", "hunter2")).err().unwrap();
    assert!(
        !message.contains("hunter2") && message.contains("secret"),
        "{message}"
    );
}

#[test]
fn three_variables_are_enough() {
    let all = |name: &str| Some(format!("{}.example", name.to_lowercase().replace('_', "-")));
    let config = Config::from_env(&all).unwrap();
    let endpoint = config.vaults["main"].settings.token_endpoint.as_str();
    assert_eq!(endpoint, "https://auth0-domain.example/oauth/token");
    assert!(config.routes.iter().any(|r| &*r.connection == "google-oauth2"));
    let error = Config::from_env(&|name| all(name).filter(|_| name != "AUTH0_CLIENT_ID"))
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("AUTH0_CLIENT_ID is not set"),
        "{error}"
    );
    let error = Config::from_env(&|_| Some("no domain".into())).err().unwrap();
    assert!(error.to_string().contains("AUTH0_DOMAIN"), "{error}");
}

#[test]
fn the_built_in_table_covers_the_plugins() {
    let routes = crate::policy::Routes::new(builtin::routes(&"main".into()));
    let caller = crate::workload::Workload::default();
    for (host, connection) in [
        ("www.googleapis.com", "google-oauth2"),
        ("gmail.googleapis.com", "google-oauth2"),
        ("calendar.google.com", "google-oauth2"),
        ("drive.google.com", "google-oauth2"),
        ("api.github.com", "github"),
    ] {
        let host = crate::addr::HostName::parse(host).unwrap();
        let crate::policy::Found::Route(route) = routes.find(&host, &caller) else {
            panic!("no route names {host}");
        };
        assert_eq!(&*route.connection, connection);
    }
}

#[test]
fn the_example_is_a_good_configuration_and_says_the_defaults() {
    let text = include_str!("../../../deploy/tv-agent.example.yaml");
    let set = |_: &str| Some("x".to_owned());
    let config = Config::parse(text, Path::new("example"), &set).unwrap_or_else(|e| panic!("{e}"));
    let default = Intercept::default();
    let cgroups = config.intercept.cgroups.clone();
    assert_eq!(config.intercept, Intercept { cgroups, ..default });
    assert_eq!(config.port, DEFAULT_PORT);
    assert_eq!(config.drain, limits::DRAIN_TIME);
    assert_eq!(config.metrics, Some(default_metrics()));
    assert_eq!(config.socket, default_socket());
    assert_eq!(config.ca_dir, default_ca_dir());
    assert_eq!(config.routes.len(), 3);
}

/// GOOD with these lines in `intercept`, which begin at line 7.
fn narrowed(lines: &str) -> Result<Config, String> {
    parse(&GOOD.replace("refuse\n", &format!("refuse\n{lines}\n")))
}

#[test]
fn what_is_looked_at_can_be_narrowed() {
    assert_eq!(parse(GOOD).unwrap().intercept.capture, Capture::All);
    let Capture::Dns { hosts, unsure_for } = narrowed("  capture: dns").unwrap().intercept.capture else {
        panic!("not by name");
    };
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    assert_eq!(
        hosts,
        ["*.googleapis.com", "calendar.google.com", "api.github.com"]
    );
    assert_eq!(unsure_for, Duration::from_secs(3600));
    let config = narrowed("  capture: dns\n  unsure_seconds: 60").unwrap();
    assert!(
        matches!(config.intercept.capture, Capture::Dns { unsure_for, .. } if unsure_for == Duration::from_secs(60))
    );
    let config = narrowed("  capture: cidr\n  capture_cidrs: [192.0.2.0/24, \"2001:db8::/32\"]").unwrap();
    let nets = ["192.0.2.0/24", "2001:db8::/32"].map(|net| net.parse().unwrap());
    assert_eq!(config.intercept.capture, Capture::Cidr(nets.to_vec()));
}

#[test]
fn keys_that_narrow_stand_only_where_they_count() {
    let many = |count: usize| {
        let nets = (0..count).map(|n| format!("10.{}.{}.{}/32", n >> 16, (n >> 8) & 255, n & 255));
        nets.collect::<Vec<_>>().join(", ")
    };
    let most = tv_ebpf::abi::CAPTURE_ENTRIES;
    for (lines, parts) in [
        (
            "  capture: cidr".to_owned(),
            vec![
                "tv.yaml:7",
                "intercept.capture",
                "\"cidr\"",
                "needs intercept.capture_cidrs",
            ],
        ),
        (
            "  capture: cidr\n  capture_cidrs: []".to_owned(),
            vec!["tv.yaml:7", "needs intercept.capture_cidrs"],
        ),
        (
            "  capture: cidr\n  capture_cidrs: [192.0.2.0]".to_owned(),
            vec![
                "tv.yaml:8",
                "intercept.capture_cidrs",
                "\"192.0.2.0\"",
                "ADDRESS/LENGTH",
            ],
        ),
        (
            format!("  capture: cidr\n  capture_cidrs: [{}]", many(most + 1)),
            vec!["tv.yaml:8", "intercept.capture_cidrs", "\"4097\"", "4096 at most"],
        ),
        (
            "  capture: dns\n  capture_cidrs: [192.0.2.0/24]".to_owned(),
            vec![
                "tv.yaml:8",
                "intercept.capture_cidrs",
                "192.0.2.0/24",
                "capture: cidr",
            ],
        ),
        (
            "  capture_cidrs: [192.0.2.0/24]".to_owned(),
            vec!["tv.yaml:7", "intercept.capture_cidrs", "capture: cidr"],
        ),
        (
            "  unsure_seconds: 60".to_owned(),
            vec!["tv.yaml:7", "intercept.unsure_seconds", "\"60\"", "capture: dns"],
        ),
        (
            "  capture: dns\n  unsure_seconds: 0".to_owned(),
            vec!["tv.yaml:8", "intercept.unsure_seconds", "\"0\"", "1 to 86400"],
        ),
        (
            "  capture: some".to_owned(),
            vec!["tv.yaml:7", "capture", "some", "cidr"],
        ),
    ] {
        let message = narrowed(&lines)
            .err()
            .unwrap_or_else(|| panic!("{lines:?} was accepted"));
        for part in parts {
            assert!(
                message.contains(part),
                "{lines:.60?}: {part:?} is missing in: {message}"
            );
        }
    }
    assert!(narrowed(&format!("  capture: cidr\n  capture_cidrs: [{}]", many(most))).is_ok());
    let hosts: Vec<String> = (0..=tv_ebpf::abi::NAME_ENTRIES)
        .map(|n| format!("h{n}.example"))
        .collect();
    let text = GOOD.replace("refuse\n", "refuse\n  capture: dns\n");
    let error = parse(&text.replace(
        "hosts: [api.github.com]",
        &format!("hosts: [{}]", hosts.join(", ")),
    ));
    let error = error.err().unwrap();
    assert!(error.contains("tv.yaml:7") && error.contains("8192"), "{error}");
}
