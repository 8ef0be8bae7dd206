//! Good configurations, and each way to be wrong: the message has to name line, key, value and what is allowed.

use super::*;
use crate::policy::OnMissingToken;

mod kong;
mod observe;
mod vaults;

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
    assert!(matches!(&vault.client_auth, ClientAuth::SecretBasic(secret) if secret.len() == 6));
    assert_eq!(config.routes[1].on_missing_token, OnMissingToken::Passthrough);
    assert_eq!(
        config.subtrees(),
        ["api.github.com", "calendar.google.com", "googleapis.com"]
    );
    assert!(config.metrics_asked);
}

#[test]
fn a_route_says_how_tokens_come_and_go() {
    use crate::policy::credentials::*;
    let text = GOOD.replace(
        "    connection: github\n",
        r#"    connection: github
    inject: { header: X-Api-Key, scheme: Basic, user: oauth2 }
    subject_from: [ { header: X-Token }, { query: access_token }, { cookie: at } ]
    on_foreign_token: passthrough
    purge: { statuses: [401, 403], json: { pointer: /ok, equals: false } }
"#,
    );
    let config = parse(&text).unwrap();
    let own = vec![Issuer::At("tenant.eu.auth0.com".into())];
    let expected = Credentials {
        inject: Inject {
            header: "x-api-key".parse().unwrap(),
            scheme: InjectScheme::Basic,
            user: "oauth2".into(),
        },
        places: vec![
            Place::Header("x-token".parse().unwrap()),
            Place::Query("access_token".into()),
            Place::Cookie("at".into()),
        ],
        on_foreign: OnForeignToken::Passthrough,
        issuers: own.clone(),
        purge: Purge {
            statuses: vec![401, 403],
            json: Some(JsonRule {
                pointer: "/ok".into(),
                equals: false.into(),
            }),
        },
    };
    assert_eq!(config.routes[1].credentials, expected);
    let default = Credentials {
        issuers: own,
        ..Credentials::default()
    };
    assert_eq!(config.routes[0].credentials, default);
    // Another name than the issuer's may stand before a token endpoint.
    let by_endpoint = GOOD.replace(
        "domain: tenant.eu.auth0.com",
        "token_endpoint: https://t.example/token",
    );
    assert!(
        parse(&by_endpoint).unwrap().routes[0]
            .credentials
            .issuers
            .is_empty()
    );
}

#[test]
fn each_mistake_about_credentials_names_line_key_value_and_remedy() {
    let nine = "{ cookie: a }, ".repeat(9);
    let nine = format!("subject_from: [{nine}]");
    let cases: &[(&str, &[&str])] = &[
        (
            "inject: { header: Host }",
            &["routes.github.inject.header", "Host", "X-Api-Key"],
        ),
        (
            "inject: { header: \"a b\" }",
            &["routes.github.inject.header", "a b"],
        ),
        ("inject: { scheme: Digest }", &["Digest", "as_presented"]),
        ("inject: { schema: Bearer }", &["schema", "scheme"]),
        (
            "inject: { scheme: Basic, user: \"a:b\" }",
            &["inject.user", "a:b", "without a colon"],
        ),
        (
            "inject: { scheme: Bearer, user: a }",
            &["inject.user", "no meaning", "Basic"],
        ),
        (
            "subject_from: [ { header: Authorization } ]",
            &["subject_from", "Authorization", "always"],
        ),
        (
            "subject_from: [ { header: Cookie } ]",
            &["subject_from", "Cookie"],
        ),
        (
            "subject_from: [ { cookie: \"a=b\" } ]",
            &["subject_from", "a=b", "without"],
        ),
        (
            "subject_from: [ { query: \"\" } ]",
            &["subject_from", "is no name"],
        ),
        ("subject_from: [ { body: x } ]", &["body", "header"]),
        (&nine, &["subject_from", "at most 8"]),
        ("on_foreign_token: ignore", &["ignore", "passthrough"]),
        (
            "purge: { statuses: [200] }",
            &["purge.statuses", "200", "400 to 599"],
        ),
        ("purge: { statuses: [401, 70000] }", &["purge.statuses", "70000"]),
        (
            "purge: { json: { pointer: ok, equals: false } }",
            &["purge.json.pointer", "\"ok\"", "/ok"],
        ),
        (
            "purge: { json: { pointer: \"/a~2\", equals: 1 } }",
            &["purge.json.pointer", "/a~2"],
        ),
        ("purge: { json: { pointer: /ok } }", &["equals"]),
    ];
    for (line, parts) in cases {
        let text = GOOD.replace(
            "    connection: github\n",
            &format!("    connection: github\n    {line}\n"),
        );
        let message = parse(&text)
            .err()
            .unwrap_or_else(|| panic!("{line:?} was accepted"));
        for part in parts.iter().chain(&["tv.yaml:22"]) {
            assert!(
                message.contains(part),
                "{line:?}: {part:?} is missing in: {message}"
            );
        }
    }
}

const SIGNING: &str = r#"
keysets_dir: /k
keysets:
  main: { generate: { algorithm: PS384, bits: 3072 }, rotate_days: 30 }
  given: { file: /run/secrets/jwks.json }
  far: { url: "https://keys.example/private?x=1", refresh_seconds: 600, extra_roots: [/r.pem] }
vaults:
  sign:
    kind: jwt_signer
    keyset: main
    algorithm: PS384
    issuer: gateway
    expiry_leeway_seconds: -30
    add_claims: { tier: { name: gold, n: [1, null] } }
    set_claims: { aud: [a, b] }
    remove_claims: [email]
    original_token_header: X-Original
    channel: { header: X-Channel, keyset: given, algorithm: HS512 }
"#;

#[test]
fn key_sets_and_signers_are_understood() {
    use crate::sign::keyset::{Generate, Source};
    use crate::sign::{Algorithm, Edits, Settings};
    let config = parse(SIGNING).unwrap();
    let sources: Vec<_> = config
        .keysets
        .iter()
        .map(|set| (&*set.name, set.source.label()))
        .collect();
    assert_eq!(
        sources,
        [("far", "url"), ("given", "file"), ("main", "generated")]
    );
    let Source::Generate { how, rotate } = &config.keysets[2].source else {
        panic!("generated")
    };
    let expected = Generate {
        algorithm: Algorithm::PS384,
        bits: 3072,
    };
    assert_eq!((*how, rotate.unwrap().as_secs()), (expected, 30 * 86_400));
    let signer = &config.signers["sign"];
    let object = |value: serde_json::Value| value.as_object().unwrap().clone();
    let expected = Settings {
        keyset: "main".into(),
        algorithm: Some(Algorithm::PS384),
        edits: Edits {
            issuer: "gateway".into(),
            expiry_leeway: -30,
            add: object(serde_json::json!({ "tier": { "name": "gold", "n": [1, null] } })),
            set: object(serde_json::json!({ "aud": ["a", "b"] })),
            remove: vec!["email".into()],
        },
        original_token_header: Some("x-original".parse().unwrap()),
    };
    assert_eq!(signer.access, expected);
    let (header, channel) = signer.channel.as_ref().unwrap();
    assert_eq!(
        (header.as_str(), &*channel.keyset, &*channel.edits.issuer),
        ("x-channel", "given", "tv-agent")
    );
    assert_eq!(config.keysets_dir, Path::new("/k"));
    let beside = parse("ca: { dir: /a/b/ca }").unwrap();
    assert_eq!(beside.keysets_dir, Path::new("/a/b/keys"));
}

#[test]
fn each_mistake_about_keys_names_line_key_value_and_remedy() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "PS384, bits",
            "RS255, bits",
            &["tv.yaml:4", "keysets.main.generate.algorithm", "RS255", "ES512"],
        ),
        ("PS384, bits", "none, bits", &["generate.algorithm", "none"]),
        (
            "bits: 3072",
            "bits: 1024",
            &["tv.yaml:4", "keysets.main.generate.bits", "1024", "2048"],
        ),
        (
            "PS384, bits",
            "ES256, bits",
            &["generate.bits", "no meaning", "RS*"],
        ),
        (
            "rotate_days: 30",
            "rotate_days: 0",
            &["keysets.main.rotate_days", "1 to 3650"],
        ),
        (
            "rotate_days: 30",
            "file: /x",
            &["tv.yaml:4", "keysets", "one of generate, file and url"],
        ),
        (
            "{ file: /run/secrets/jwks.json }",
            "{}",
            &["tv.yaml:5", "one of generate, file and url"],
        ),
        (
            "jwks.json }",
            "jwks.json, rotate_days: 3 }",
            &["keysets.given.rotate_days", "beside generate"],
        ),
        (
            "jwks.json }",
            "jwks.json, refresh_seconds: 60 }",
            &["keysets.given.refresh_seconds", "beside url"],
        ),
        (
            "jwks.json }",
            "jwks.json, extra_roots: [x] }",
            &["keysets.given.extra_roots", "beside url"],
        ),
        (
            "https://keys.example",
            "http://keys.example",
            &["tv.yaml:6", "keysets.far.url", "https://"],
        ),
        (
            "https://keys",
            "https://user:pw@keys",
            &["keysets.far.url", "without credentials"],
        ),
        (
            "refresh_seconds: 600",
            "refresh_seconds: 1",
            &["keysets.far.refresh_seconds", "60 to 86400"],
        ),
        (
            "  main: {",
            "  \"../main\": {",
            &["tv.yaml:4", "keysets", "../main", "letters"],
        ),
        (
            "keyset: main",
            "keyset: other",
            &["tv.yaml:10", "vaults.sign.keyset", "other", "far, given, main"],
        ),
        (
            "    keyset: main\n",
            "",
            &["tv.yaml:9", "vaults.sign.keyset", "is missing", "main"],
        ),
        (
            "algorithm: PS384\n",
            "algorithm: RS256\n",
            &["tv.yaml:11", "vaults.sign.algorithm", "RS256", "PS384"],
        ),
        (
            "issuer: gateway",
            "issuer: \"\"",
            &["vaults.sign.issuer", "is empty"],
        ),
        (
            "seconds: -30",
            "seconds: -90000",
            &["vaults.sign.expiry_leeway_seconds", "-90000", "86400"],
        ),
        (
            "{ aud: [a, b] }",
            "{ iss: x }",
            &["tv.yaml:15", "vaults.sign.set_claims", "iss", "set by the agent"],
        ),
        (
            "[email]",
            "[exp]",
            &["vaults.sign.remove_claims", "exp", "set by the agent"],
        ),
        ("[email]", "[\"\"]", &["vaults.sign.remove_claims", "is empty"]),
        (
            "X-Original",
            "Authorization",
            &["vaults.sign.original_token_header", "another header"],
        ),
        (
            "header: X-Channel",
            "header: X-Original",
            &[
                "tv.yaml:18",
                "vaults.sign.channel.header",
                "X-Original",
                "one header",
            ],
        ),
        (
            "header: X-Channel",
            "header: Authorization",
            &["vaults.sign.channel.header", "one header"],
        ),
        ("header: X-Channel, ", "", &["header"]),
        (
            "keyset: given,",
            "keyset: gone,",
            &["vaults.sign.channel.keyset", "gone"],
        ),
        (
            "    keyset: main\n",
            "    keyset: main\n    client_id: x\n",
            &["vaults.sign.client_id", "asks nobody"],
        ),
        (
            "    kind: jwt_signer\n",
            "    kind: auth0_token_vault\n",
            &["vaults.sign.keyset", "kind jwt_signer"],
        ),
    ];
    for (from, to, parts) in cases {
        assert!(SIGNING.contains(from), "the case {from:?} is out of date");
        let message = parse(&SIGNING.replace(from, to))
            .err()
            .unwrap_or_else(|| panic!("{to:?} was accepted"));
        for part in *parts {
            assert!(
                message.contains(part),
                "{to:?}: {part:?} is missing in: {message}"
            );
        }
        assert!(!message.contains("pw"), "{message}");
    }
    let verifiers = "verifiers: { corp: { issuer: https://idp.example } }\n";
    for (route, part) in [
        ("", "routes.r.verify: \"sign\" is missing"),
        (", verify: corp", "routes.r.verify.channel: \"sign\" is missing"),
        (", verify: nobody", "is no verifier of this file; allowed: corp"),
        (
            ", verify: { access: corp, channel: { verifier: corp, header: X-C } }, connection: c",
            "routes.r.connection: \"\" does nothing with vault sign",
        ),
        (
            ", verify: { access: corp, channel: { verifier: corp, header: X-C } }, login_hint: c",
            "routes.r.login_hint: \"\" does nothing",
        ),
        (
            ", verify: { access: corp, channel: { verifier: corp, header: X-C } }, purge: { statuses: [401] }",
            "routes.r.purge: \"\" does nothing",
        ),
    ] {
        let route = format!("routes: [{{ name: r, hosts: [a.example], vault: sign{route} }}]");
        let message = parse(&format!("{SIGNING}{verifiers}{route}")).err();
        let message = message.unwrap_or_else(|| panic!("accepted: {route}"));
        assert!(message.contains(part), "{route}: {message}");
    }
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
            &["vaults.main", "neither domain, token_endpoint nor issuer"],
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
    assert!(
        config
            .routes
            .iter()
            .any(|r| r.wanted.connection.as_deref() == Some("google-oauth2"))
    );
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
        assert_eq!(route.wanted.connection.as_deref(), Some(connection));
    }
}

#[test]
fn what_the_documentation_shows_is_a_good_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key.pem");
    std::fs::write(
        &key,
        rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256)
            .unwrap()
            .serialize_pem(),
    )
    .unwrap();
    let mut seen = 0;
    for (name, text) in [
        ("vaults.md", include_str!("../../../docs/vaults.md")),
        ("operating.md", include_str!("../../../docs/operating.md")),
    ] {
        let blocks = text
            .split("```yaml\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next());
        let whole = |block: &&str| {
            ["vaults:", "verifiers:", "keysets:"]
                .iter()
                .any(|top| block.starts_with(top))
        };
        for block in blocks.filter(whole) {
            let auth = "client_auth: { method: client_secret_post, secret: { env: S } }";
            let mut text = block
                .replace("client_auth: { … }", auth)
                .replace("client_id: …", "client_id: x")
                .replace("/etc/tv-agent/client.pem", key.to_str().unwrap());
            if !block.contains("vaults:") {
                text += &format!(
                    "vaults: {{ main: {{ kind: auth0_token_vault, domain: t.example, client_id: x, {auth} }} }}"
                );
            }
            let env = |_: &str| Some("x".to_owned());
            Config::parse(&text, Path::new(name), &env).unwrap_or_else(|e| panic!("{e}: {text}"));
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen} blocks");
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
    assert_eq!(config.keysets_dir, keys_beside(&default_ca_dir()));
    assert_eq!(config.trust, Trust::default());
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

#[test]
fn the_data_paths_user_is_named_or_numbered_and_never_root() {
    let with = |user: &str| parse(&format!("{GOOD}privileges: {{ user: {user} }}\n"));
    let nobody = with("nobody").unwrap().user;
    assert_eq!(nobody.uid, 65534);
    for number in ["64000", "\"64000\""] {
        assert_eq!(
            with(number).unwrap().user,
            confine::User {
                uid: 64000,
                gid: 64000
            }
        );
    }
    assert_ne!(parse(GOOD).unwrap().user.uid, 0);
    for (user, problem) in [
        ("root", "is root; allowed: a user of its own"),
        ("0", "is root"),
        ("4294967295", "is no user id"),
        ("-1", "is not in /etc/passwd"),
        (
            "nobody-knows",
            "is not in /etc/passwd; allowed: a name that is, or a number",
        ),
    ] {
        let message = with(user).err().unwrap();
        let place = format!("tv.yaml:26: privileges.user: {user:?} ");
        assert!(
            message.starts_with(&place) && message.contains(problem),
            "{message}"
        );
    }
    let message = parse(&format!("{GOOD}privileges: {{ group: 1 }}\n"))
        .err()
        .unwrap();
    assert!(message.contains("group"), "{message}");
}
