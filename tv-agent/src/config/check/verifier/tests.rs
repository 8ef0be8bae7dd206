//! Verifiers as they can be written, and each way to be wrong.

use std::time::Duration;

use crate::config::Config;
use crate::verify::Auth;

use super::*;

const GOOD: &str = r#"
vaults:
  main:
    kind: auth0_token_vault
    domain: tenant.eu.auth0.com
    client_id: id
    client_auth: { method: client_secret_post, secret: { env: LONG } }
verifiers:
  corp:
    issuer: https://idp.example
    algorithms: [RS256, HS256]
    hs_secret: { env: LONG }
    leeway_seconds: 5
    scopes: ["read  write", admin]
    claim_paths: { identity: [user, name] }
    required_claims: [[a, b]]
    jwks_rotate_seconds: 60
    introspection:
      client_id: me
      client_auth: { method: client_secret_post, secret: { env: LONG } }
      body_args: { realm: x }
      timeout_seconds: 2
  net: { jwks_uri: "https://net.example/jwks" }
routes:
  - name: github
    hosts: [api.github.com]
    vault: main
    connection: github
    verify: { access: corp, channel: { verifier: net, header: X-Channel } }
"#;

fn env(name: &str) -> Option<String> {
    match name {
        "LONG" => Some("x".repeat(32)),
        "SHORT" => Some("x".repeat(31)),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, std::path::Path::new("tv.yaml"), &env).map_err(|e| e.to_string())
}

#[test]
fn a_whole_verifier_is_understood() {
    let mut config = parse(GOOD).unwrap();
    let corp = config.verifiers.remove("corp").unwrap().settings;
    assert_eq!(corp.algorithms, [Algorithm::RS256, Algorithm::HS256]);
    assert_eq!(corp.rules.scopes, [vec!["read", "write"], vec!["admin"]]);
    assert_eq!(corp.rules.issuers, ["https://idp.example"], "as it is written");
    assert_eq!(
        (corp.rules.leeway, corp.jwks_rotate),
        (5, Some(Duration::from_secs(60)))
    );
    assert_eq!(corp.rules.paths.identity.to_string(), "user.name");
    assert!(corp.rules.verify_expiry && corp.rules.verify_not_before && corp.verify_signature);
    let how = corp.introspection.unwrap();
    assert!(matches!(how.auth, Auth::Post { .. }) && how.cache && how.trust && !how.always);
    let net = config.verifiers.remove("net").unwrap().settings;
    assert!(net.algorithms == DEFAULT && net.rules.issuers.is_empty() && net.introspection.is_none());
    let verify = config.routes[0].verify.as_ref().unwrap().to_string();
    assert_eq!(verify, "access token by corp, channel token in x-channel by net");
    let plain = GOOD.replace(
        "{ access: corp, channel: { verifier: net, header: X-Channel } }",
        "net",
    );
    let verify = parse(&plain).unwrap().routes[0].verify.clone().unwrap();
    assert_eq!(
        (&*verify.access, verify.optional, verify.channel),
        ("net", false, None)
    );
}

#[test]
fn each_mistake_names_line_key_value_and_remedy() {
    for (from, to, parts) in [
        (
            "https://idp.example",
            "http://idp.example",
            &["tv.yaml:10", "verifiers.corp.issuer", "https://"][..],
        ),
        (
            "https://idp.example",
            "https://idp.example?x=1",
            &["tv.yaml:10", "issuer", "without query"],
        ),
        (
            "https://idp.example",
            "https://a:b@idp.example",
            &["tv.yaml:10", "issuer", "user name"],
        ),
        (
            "[RS256, HS256]",
            "[]",
            &["tv.yaml:11", "algorithms", "at least one"],
        ),
        (
            "[RS256, HS256]",
            "[none, HS256]",
            &["tv.yaml:11", "algorithms", "none", "RS256"],
        ),
        (
            "[RS256, HS256]",
            "[ES512, HS256]",
            &["tv.yaml:11", "ES512", "ES384"],
        ),
        ("[RS256, HS256]", "[RS256]", &["tv.yaml:12", "hs_secret", "HS256"]),
        (
            "    hs_secret: { env: LONG }\n",
            "",
            &["tv.yaml:11", "HS256", "with hs_secret"],
        ),
        (
            "hs_secret: { env: LONG }",
            "hs_secret: { env: SHORT }",
            &["tv.yaml:12", "at least 32 bytes"],
        ),
        (
            "leeway_seconds: 5",
            "leeway_seconds: 3601",
            &["tv.yaml:13", "leeway_seconds", "0 to 3600"],
        ),
        (
            "\"read  write\"",
            "\" \"",
            &["tv.yaml:14", "scopes", "separated by spaces"],
        ),
        (
            "[user, name]",
            "[]",
            &["tv.yaml:15", "claim_paths.identity", "list of names"],
        ),
        (
            "[[a, b]]",
            "[[\"\"]]",
            &["tv.yaml:16", "required_claims", "list of names"],
        ),
        (
            "identity:",
            "identitty:",
            &["tv.yaml:15", "identitty", "expected one of"],
        ),
        (
            "      client_id: me\n",
            "",
            &["verifiers.corp.introspection", "authorization, or client_id"],
        ),
        (
            "realm: x",
            "token: x",
            &["tv.yaml:21", "body_args", "token", "other keys"],
        ),
        (
            "timeout_seconds: 2",
            "timeout_seconds: 0",
            &["tv.yaml:22", "timeout_seconds", "1 to 60"],
        ),
        (
            "{ jwks_uri: \"https://net.example/jwks\" }",
            "{}",
            &["verifiers.net", "jwks_uri, hs_secret"],
        ),
        (
            "{ jwks_uri: \"https://net.example/jwks\" }",
            "{ introspection: {} }",
            &["verifiers.net", "neither issuer nor introspection.endpoint"],
        ),
        (
            "access: corp",
            "access: crop",
            &["tv.yaml:29", "routes.github.verify", "crop", "corp, net"],
        ),
        (
            "verifier: net",
            "verifier: ent",
            &["tv.yaml:29", "routes.github.verify", "ent", "corp, net"],
        ),
        (
            "header: X-Channel",
            "header: authorization",
            &["verify.channel.header", "header of its own"],
        ),
        (
            "header: X-Channel",
            "header: \"a b\"",
            &["verify.channel.header", "a b"],
        ),
        ("access: corp, ", "", &["tv.yaml:29"]),
    ] {
        assert!(GOOD.contains(from), "the case {from:?} is out of date");
        let message = parse(&GOOD.replacen(from, to, 1)).err();
        let message = message.unwrap_or_else(|| panic!("{to:?} was accepted"));
        for part in parts {
            assert!(
                message.contains(part),
                "{to:?}: {part:?} is missing in: {message}"
            );
        }
    }
}
