//! Every kind of vault, and each way to write one wrongly.

use super::*;
use crate::policy::Hint;
use crate::token::Kind;
use crate::token::settings::{ActorFrom, Place, Preset, VaultSubject};

/// A configuration with one vault and one route, as flow mappings.
fn one(vault: &str, route: &str) -> String {
    format!(
        "vaults:\n  v: {{ {vault} }}\nroutes:\n  - {{ name: r, hosts: [api.example.com], vault: v{} }}\n\
         verifiers: {{ corp: {{ issuer: \"https://idp.example\" }} }}\n",
        if route.is_empty() {
            String::new()
        } else {
            format!(", {route}")
        }
    )
}

const SECRET: &str = "client_id: c, client_auth: { method: client_secret_post, secret: { env: SECRET } }";
const AT: &str = "token_endpoint: https://idp.example/token";

fn good(vault: &str, route: &str) -> Config {
    parse(&one(vault, route)).unwrap_or_else(|error| panic!("{vault}: {error}"))
}

/// A key in a file of its own, which stays as long as the directory.
fn key_file(directory: &tempfile::TempDir) -> String {
    let path = directory.path().join("key.pem");
    std::fs::write(&path, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    path.display().to_string()
}

#[test]
fn each_kind_is_understood() {
    let config = good(
        &format!("kind: token_exchange, preset: keycloak, issuer: https://idp.example/realms/x, {SECRET}"),
        "audience: [a, b], scope: s",
    );
    let settings = &config.vaults["v"].settings;
    assert!(settings.discover && settings.token_endpoint.as_str() == "https://idp.example/realms/x");
    assert!(matches!(&settings.kind, Kind::TokenExchange(e) if e.preset == Preset::Keycloak));
    assert_eq!(
        (
            config.routes[0].wanted.audience.len(),
            config.routes[0].wanted.scope.as_deref()
        ),
        (2, Some("s"))
    );

    let config = good(
        &format!("kind: on_behalf_of, domain: t.example, {SECRET}"),
        "audience: https://a",
    );
    let Kind::TokenExchange(obo) = &config.vaults["v"].settings.kind else {
        panic!()
    };
    assert_eq!(
        (obo.preset, obo.requested_token_type.is_some()),
        (Preset::Auth0Obo, true)
    );

    let config = good(
        &format!("kind: on_behalf_of, preset: entra_obo, scope: s, {AT}, {SECRET}"),
        "",
    );
    let Kind::TokenExchange(obo) = &config.vaults["v"].settings.kind else {
        panic!()
    };
    assert_eq!(
        (&obo.subject_token_type, &obo.requested_token_type),
        (&None, &None)
    );

    let generic = "requested_token_type: omit, subject_token_type: \"urn:x\", extra: { a: \"1\" }, actor: { from: config, secret: { env: SECRET }, token_type: t }, when: [{ issuer: i, missing_scopes: [profile] }]";
    let config = good(
        &format!("kind: token_exchange, {generic}, {AT}, client_auth: {{ method: none }}"),
        "resource: [https://r]",
    );
    let settings = &config.vaults["v"].settings;
    let Kind::TokenExchange(exchange) = &settings.kind else {
        panic!()
    };
    assert_eq!(
        (
            exchange.requested_token_type.as_deref(),
            exchange.subject_token_type.as_deref()
        ),
        (None, Some("urn:x"))
    );
    assert!(
        matches!(&exchange.actor, Some(actor) if matches!(actor.from, ActorFrom::Config(_)) && actor.token_type == "t")
    );
    assert_eq!((settings.when.len(), settings.client_id.as_str()), (1, ""));

    let config = good(
        &format!("kind: client_credentials, audience: a, {AT}, credentials: {{ from: [header, body] }}"),
        "",
    );
    let Kind::ClientCredentials(machine) = &config.vaults["v"].settings.kind else {
        panic!()
    };
    assert_eq!(
        machine.credentials.as_ref().unwrap().from,
        [Place::Header, Place::Body]
    );
    assert!(matches!(
        config.vaults["v"].settings.client_auth,
        ClientAuth::CallerPost
    ));

    let directory = tempfile::tempdir().unwrap();
    let key = key_file(&directory);
    let worker = format!(
        "subject: privileged_worker, privileged_worker: {{ key: {key:?}, algorithm: ES256, audit_context: sync, user: {{ claim: [sub] }} }}"
    );
    let auth = format!(
        "client_id: c, client_auth: {{ method: private_key_jwt, key: {key:?}, algorithm: ES256, kid: k }}"
    );
    let limits = "rate_limit: { per_second: 5, burst: 2, at_once: 3 }, circuit_breaker: { failures: 4, open_seconds: 6 }";
    let config = good(
        &format!("kind: auth0_token_vault, domain: t.example, {worker}, {auth}, {limits}"),
        "connection: github, login_hint: { header: X-Hint }, verify: corp",
    );
    let unverified = one(
        &format!("kind: auth0_token_vault, domain: t.example, {worker}, {auth}"),
        "connection: github",
    );
    let message = parse(&unverified).err().unwrap();
    assert!(
        message.contains("privileged_worker.user of vault v takes a claim"),
        "{message}"
    );
    let settings = &config.vaults["v"].settings;
    assert!(
        matches!(&settings.kind, Kind::TokenVault(v) if matches!(&v.subject, VaultSubject::Worker(w) if w.user == Hint::Claim(vec!["sub".into()])))
    );
    assert!(
        matches!(&settings.client_auth, ClientAuth::PrivateKeyJwt { audience, .. } if audience == "https://t.example/")
    );
    let pacing = settings.pacing;
    assert_eq!(
        (
            pacing.per_second,
            pacing.burst,
            pacing.at_once,
            pacing.failures,
            pacing.open.as_secs()
        ),
        (Some(5.0), 2, 3, 4, 6)
    );
    assert!(matches!(&config.routes[0].login_hint, Some(Hint::Header(name)) if name == "x-hint"));
}

#[test]
fn what_does_not_go_together_is_named() {
    let vault = format!("kind: auth0_token_vault, domain: t.example, {SECRET}");
    let exchange = format!("kind: token_exchange, {AT}, {SECRET}");
    let machine = format!("kind: client_credentials, {AT}, {SECRET}");
    let callers = format!("kind: client_credentials, {AT}, credentials: {{ from: [header] }}");
    let connection = "connection: github";
    let with = |base: &str, more: &str| format!("{base}, {more}");
    let cases: Vec<(String, &str, &[&str])> = vec![
        (vault.clone(), "", &["routes.r.connection", "Auth0 connection"]),
        (
            vault.clone(),
            "connection: github, audience: a",
            &["routes.r.audience", "does nothing"],
        ),
        (
            with(&vault, "audience: a"),
            connection,
            &["vaults.v.audience", "does nothing"],
        ),
        (
            with(&vault, "issuer: https://x"),
            connection,
            &["vaults.v.domain", "one of domain, token_endpoint and issuer"],
        ),
        (
            with(&vault, "preset: okta"),
            connection,
            &["vaults.v.preset", "only with token_exchange"],
        ),
        (
            with(&vault, "subject: privileged_worker"),
            connection,
            &["vaults.v.privileged_worker", "is missing"],
        ),
        (
            with(&vault, "rate_limit: { per_second: 0 }"),
            connection,
            &["rate_limit.per_second", "0.01"],
        ),
        (
            with(&vault, "rate_limit: { at_once: 0 }"),
            connection,
            &["rate_limit.at_once", "1 to 1024"],
        ),
        (
            with(&vault, "circuit_breaker: { failures: 0 }"),
            connection,
            &["circuit_breaker.failures"],
        ),
        (
            with(&vault, "colour: red"),
            connection,
            &["colour", "expected one of"],
        ),
        (
            vault.clone(),
            "connection: github, login_hint: { header: \"a b\" }",
            &["routes.r.login_hint", "a b"],
        ),
        (
            vault.clone(),
            "connection: github, login_hint: { claim: [] }",
            &["routes.r.login_hint", "empty path"],
        ),
        (
            exchange.clone(),
            connection,
            &["routes.r.connection", "does nothing"],
        ),
        (
            with(&exchange, "extra: { subject_token: x }"),
            "",
            &["vaults.v.extra", "subject_token"],
        ),
        (
            with(&exchange, "actor: { from: header }"),
            "",
            &["vaults.v.actor.header", "is missing"],
        ),
        (
            with(&exchange, "actor: { from: header, header: Host }"),
            "",
            &["vaults.v.actor.header", "Host"],
        ),
        (
            with(&exchange, "preset: keycloak, resource: r"),
            "",
            &["vaults.v.resource", "Keycloak"],
        ),
        (
            with(&exchange, "preset: keycloak, grant_type: g"),
            "",
            &["vaults.v.grant_type", "generic"],
        ),
        (
            with(&exchange, "preset: okta"),
            "",
            &["routes.r.scope", "a scope"],
        ),
        (with(&exchange, "preset: entra_obo"), "", &["routes.r.scope"]),
        (
            with(&exchange, "preset: auth0_obo"),
            "",
            &["routes.r.audience", "exactly one"],
        ),
        (
            with(&exchange, "preset: auth0_obo"),
            "audience: [a, b]",
            &["routes.r.audience", "exactly one"],
        ),
        (
            with(&exchange, "preset: keycloak"),
            "resource: r",
            &["routes.r.resource"],
        ),
        (
            with(&exchange, "credentials: { from: [header] }"),
            "",
            &["vaults.v.credentials"],
        ),
        (
            format!("kind: on_behalf_of, preset: okta, {AT}, {SECRET}"),
            "",
            &["vaults.v.preset", "auth0_obo or entra_obo"],
        ),
        (
            format!("kind: token_exchange, {SECRET}"),
            "",
            &["vaults.v", "neither domain"],
        ),
        (
            format!("kind: token_exchange, {AT}"),
            "",
            &["vaults.v.client_auth", "is missing"],
        ),
        (
            format!("kind: auth0_token_vault, {AT}, client_id: c, client_auth: {{ method: none }}"),
            connection,
            &["client_auth.method", "not enough"],
        ),
        (
            format!(
                "kind: token_exchange, {AT}, client_id: c, client_auth: {{ method: client_secret_post }}"
            ),
            "",
            &["client_auth.secret", "is missing"],
        ),
        (
            format!(
                "kind: token_exchange, {AT}, client_id: c, client_auth: {{ method: private_key_jwt, key: /nowhere.pem }}"
            ),
            "",
            &["client_auth.key", "/nowhere.pem", "cannot be read"],
        ),
        (
            format!(
                "kind: token_exchange, {AT}, client_id: c, client_auth: {{ method: tls_client_auth, key: /dev/null }}"
            ),
            "",
            &["client_auth.certificate", "is missing"],
        ),
        (
            format!(
                "kind: token_exchange, {AT}, client_id: c, client_auth: {{ method: tls_client_auth, key: /dev/null, certificate: /dev/null }}"
            ),
            "",
            &["client_auth.certificate", "holds no certificate"],
        ),
        (
            format!(
                "kind: token_exchange, {AT}, client_id: c, client_auth: {{ method: client_secret_post, secret: {{ env: SECRET }}, key: /k }}"
            ),
            "",
            &["client_auth.key", "private_key_jwt"],
        ),
        (
            format!(
                "kind: token_exchange, {AT}, client_auth: {{ method: client_secret_post, secret: {{ env: SECRET }} }}"
            ),
            "",
            &["client_id", "is missing"],
        ),
        (
            with(&machine, "requested_token_type: x"),
            "",
            &["vaults.v.requested_token_type"],
        ),
        (
            with(
                &machine,
                "forward_identity: { header: Authorization, claim: [sub] }",
            ),
            "",
            &["forward_identity.header", "Authorization"],
        ),
        (
            with(&machine, "forward_identity: { header: X-User, claim: [] }"),
            "",
            &["forward_identity.claim"],
        ),
        (
            with(&callers, "client_id: c"),
            "",
            &["vaults.v.client_id", "stands beside credentials"],
        ),
        (
            format!("kind: client_credentials, {AT}, credentials: {{ from: [] }}"),
            "",
            &["credentials.from", "names no place"],
        ),
        (
            format!(
                "kind: client_credentials, {AT}, credentials: {{ from: [query], id_name: x, secret_name: x }}"
            ),
            "",
            &["credentials.id_name"],
        ),
        (
            format!("kind: jwt_signer, {AT}"),
            "",
            &["vaults.v.token_endpoint", "jwt_signer"],
        ),
        (
            format!("kind: token_exchange, {AT}, {SECRET}, validate: nobody"),
            "",
            &["vaults.v.validate", "nobody", "allowed: corp"],
        ),
        (
            with(&machine, "validate: corp"),
            "",
            &["vaults.v.validate", "does nothing for client_credentials"],
        ),
        // A claim that nobody verified is whatever the caller wrote.
        (
            format!("kind: auth0_token_vault, domain: t.example, {SECRET}"),
            "connection: github, login_hint: { claim: [email] }",
            &["tv.yaml:4", "routes.r.verify", "login_hint takes a claim"],
        ),
        (
            with(&machine, "forward_identity: { header: X-User, claim: [sub] }"),
            "",
            &[
                "tv.yaml:4",
                "routes.r.verify",
                "forward_identity of vault v takes a claim",
            ],
        ),
        // Both would stand in Authorization.
        (
            callers.clone(),
            "verify: corp",
            &["routes.r.verify", "client credentials"],
        ),
    ];
    for (vault, route, parts) in cases {
        let message = parse(&one(&vault, route))
            .err()
            .unwrap_or_else(|| panic!("accepted: {vault} / {route}"));
        for part in parts {
            assert!(
                message.contains(part),
                "{vault} / {route}: {part:?} is missing in: {message}"
            );
        }
        assert!(
            message.contains("tv.yaml:") && !message.contains("s3cret"),
            "{message}"
        );
    }
}
