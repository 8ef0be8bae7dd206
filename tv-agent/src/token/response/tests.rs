//! Every row of the vault's known answers, good and bad.

use super::*;
use crate::class::Class;

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn answer(status: u16, headers: &[(&'static str, &str)], body: &str) -> Result<Granted, ErrorKind> {
    answer_in(Dialect::TokenVault, status, headers, body)
}

fn answer_in(
    dialect: Dialect,
    status: u16,
    headers: &[(&'static str, &str)],
    body: &str,
) -> Result<Granted, ErrorKind> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, value.parse().unwrap());
    }
    let status = StatusCode::from_u16(status).unwrap();
    let reply = Reply {
        status,
        headers: &map,
        body: body.as_bytes(),
        complete: true,
    };
    read(
        &reply,
        now(),
        dialect,
        &["subject-token-canary", "client-secret-canary"],
    )
}

fn malformed(body: &str) -> Malformed {
    match answer(200, &[], body) {
        Err(ErrorKind::InvalidResponse(why)) => why,
        Err(other) => panic!("{body:?}: {other}"),
        Ok(_) => panic!("{body:?} was taken"),
    }
}

fn life(expires_in: &str) -> Option<Duration> {
    let body = format!(r#"{{"access_token":"t","token_type":"Bearer","expires_in":{expires_in}}}"#);
    answer(200, &[], &body)
        .unwrap_or_else(|e| panic!("{expires_in}: {e}"))
        .expires_in
}

fn refusal(status: u16, body: &str) -> ErrorKind {
    match answer(status, &[], body) {
        Err(kind) => kind,
        Ok(_) => panic!("{status} {body:?} was taken"),
    }
}

#[test]
fn a_token_is_taken() {
    let body = r#"{"access_token":"gho_x.y~z","scope":"repo,user","expires_in":1377,
        "issued_token_type":"http://auth0.com/oauth/token-type/federated-connection-access-token",
        "token_type":"Bearer"}"#;
    let granted = answer(200, &[], body).unwrap();
    assert_eq!(granted.token.len(), "gho_x.y~z".len());
    assert_eq!(granted.expires_in, Some(Duration::from_secs(1377)));
    for body in [
        r#"{"access_token":"t"}"#,
        r#"{"access_token":"t","token_type":null,"expires_in":null}"#,
        r#" {"access_token":"t","token_type":"bEARER"} "#,
    ] {
        assert_eq!(answer(200, &[], body).unwrap().expires_in, None, "{body}");
    }
    let longest = format!(r#"{{"access_token":"{}"}}"#, "a".repeat(PROVIDER_TOKEN_BYTES));
    assert_eq!(
        answer(200, &[], &longest).unwrap().token.len(),
        PROVIDER_TOKEN_BYTES
    );
}

#[test]
fn expires_in_is_a_number_or_a_numeric_string() {
    assert_eq!(life("3600"), Some(Duration::from_secs(3600)));
    assert_eq!(life("\"3600\""), Some(Duration::from_secs(3600)));
    assert_eq!(life("\"28800.5\""), Some(Duration::from_millis(28_800_500)));
    assert_eq!(life("0"), Some(Duration::ZERO));
    assert_eq!(life("0.25"), Some(Duration::from_millis(250)));
    assert_eq!(life("1e300"), Some(Duration::MAX));
    assert_eq!(life("99999999999999999999999999"), Some(Duration::MAX));
    for bad in [
        "-1",
        "-0.5",
        "\"-1\"",
        "\"NaN\"",
        "\"inf\"",
        "\"infinity\"",
        "\"1e9\"",
        "\"soon\"",
        "\"\"",
        "\".\"",
        "\" 1\"",
        "true",
        "[]",
        "{}",
        "[3600]",
    ] {
        let body = format!(r#"{{"access_token":"t","expires_in":{bad}}}"#);
        assert_eq!(malformed(&body), Malformed::ExpiresIn, "{bad}");
    }
    for bad in ["NaN", "1e999", "00", "0x10"] {
        assert_eq!(
            malformed(&format!(r#"{{"access_token":"t","expires_in":{bad}}}"#)),
            Malformed::NotJson,
            "{bad}"
        );
    }
}

#[test]
fn what_is_no_token_response_is_refused() {
    for empty in ["", " \r\n"] {
        assert_eq!(malformed(empty), Malformed::Empty);
    }
    for text in [
        "<html><body>Sign in</body></html>",
        "access_token=t&token_type=bearer",
        "{",
        "{\"access_token\":\"t\"",
        "{}x",
    ] {
        assert_eq!(malformed(text), Malformed::NotJson, "{text}");
    }
    for other in [
        "[]",
        "[\"t\",\"Bearer\",3600]",
        "null",
        "\"t\"",
        "1",
        r#"{"access_token":"a","access_token":"b"}"#,
    ] {
        assert_eq!(malformed(other), Malformed::NotObject, "{other}");
    }
    for none in [
        "{}",
        r#"{"access_token":null}"#,
        r#"{"error":"invalid_grant"}"#,
        r#"{"Access_Token":"t"}"#,
    ] {
        assert_eq!(malformed(none), Malformed::NoAccessToken, "{none}");
    }
    for bad in [
        "\"\"",
        "1",
        "[\"t\"]",
        "{}",
        "false",
        "\"a b\"",
        "\"a\\nb\"",
        "\"a\\r\\nX-Evil: 1\"",
        "\"a\\u0000\"",
        "\"\\u007f\"",
        "\"t\u{e9}\"",
        "\" t\"",
    ] {
        assert_eq!(
            malformed(&format!(r#"{{"access_token":{bad}}}"#)),
            Malformed::BadAccessToken,
            "{bad}"
        );
    }
    let long = format!(r#"{{"access_token":"{}"}}"#, "a".repeat(PROVIDER_TOKEN_BYTES + 1));
    assert_eq!(malformed(&long), Malformed::BadAccessToken);
    for kind in ["\"DPoP\"", "\"N_A\"", "\"mac\"", "\"\"", "1", "[]"] {
        assert_eq!(
            malformed(&format!(r#"{{"access_token":"t","token_type":{kind}}}"#)),
            Malformed::TokenType,
            "{kind}"
        );
    }
    let mut reply_headers = HeaderMap::new();
    reply_headers.insert("content-type", "application/json".parse().unwrap());
    let reply = Reply {
        status: StatusCode::OK,
        headers: &reply_headers,
        body: br#"{"access_token":"t"}"#,
        complete: false,
    };
    assert!(matches!(
        read(&reply, now(), Dialect::TokenVault, &[]),
        Err(ErrorKind::InvalidResponse(Malformed::TooLarge))
    ));
    for status in [201, 204, 302, 307, 308] {
        let kind = refusal(status, r#"{"access_token":"t"}"#);
        assert!(
            matches!(kind, ErrorKind::InvalidResponse(Malformed::Status(s)) if s == status),
            "{status}: {kind}"
        );
    }
}

#[test]
fn every_known_error_has_its_class() {
    const GRANT: &str = "Grant type 'urn:auth0:params:oauth:grant-type:token-exchange:\
        federated-connection-access-token' not allowed for the client.";
    let rows: &[(u16, &str, &str, Class)] = &[
        (
            401,
            "federated_connection_refresh_token_not_found",
            "Federated connection Refresh Token not found.",
            Class::ConnectionRequired,
        ),
        (
            401,
            "federated_connection_refresh_token_flow_failed",
            "Refresh Token flow for the Federated Connection failed",
            Class::ConnectionRequired,
        ),
        (401, "tokenset_not_found", "", Class::ConnectionRequired),
        (404, "tokenset_not_found", "", Class::ConnectionRequired),
        (500, "tokenset_not_found", "", Class::ConnectionRequired),
        (
            401,
            "unauthorized",
            "Federated connection Refresh Token not found.",
            Class::ConnectionRequired,
        ),
        (
            401,
            "",
            "Refresh Token flow for the Federated Connection failed",
            Class::ConnectionRequired,
        ),
        (
            403,
            "access_denied",
            "The user has not granted access.",
            Class::VaultCredentials,
        ),
        (
            403,
            "access_denied",
            "No account is linked.",
            Class::ConnectionRequired,
        ),
        (
            403,
            "access_denied",
            "Client is not within the token audience",
            Class::VaultCredentials,
        ),
        (
            400,
            "invalid_grant",
            "Unknown or invalid refresh token.",
            Class::ExchangeRefused,
        ),
        (
            403,
            "invalid_grant",
            "Unknown or invalid refresh token.",
            Class::ExchangeRefused,
        ),
        (401, "expired_token", "", Class::ExchangeRefused),
        (400, "invalid_token", "", Class::ExchangeRefused),
        (401, "", "", Class::ExchangeRefused),
        (401, "Unauthorized", "something new", Class::ExchangeRefused),
        (
            400,
            "invalid_request",
            "The subject_token is invalid",
            Class::ExchangeRefused,
        ),
        (
            400,
            "invalid_request",
            "Missing required parameter: connection",
            Class::VaultCredentials,
        ),
        (
            400,
            "invalid_request",
            "Unsupported subject_token_type",
            Class::VaultCredentials,
        ),
        (
            401,
            "invalid_client",
            "Client authentication failed",
            Class::VaultCredentials,
        ),
        (403, "unauthorized_client", GRANT, Class::VaultCredentials),
        (
            401,
            "unauthorized_client",
            "Connection not authorized",
            Class::VaultCredentials,
        ),
        (
            400,
            "unsupported_grant_type",
            "Unsupported grant type",
            Class::VaultCredentials,
        ),
        (403, "access_denied", GRANT, Class::VaultCredentials),
        (403, "", GRANT, Class::VaultCredentials),
        (
            401,
            "mfa_required",
            "Multifactor authentication required",
            Class::VaultCredentials,
        ),
        (400, "use_dpop_nonce", "", Class::VaultCredentials),
        (400, "invalid_target", "", Class::VaultCredentials),
        (404, "", "Not Found", Class::VaultCredentials),
        (
            429,
            "too_many_requests",
            "Rate limit exceeded. Please retry after some time.",
            Class::VaultRateLimited,
        ),
        (
            429,
            "",
            "Too many requests. Check the X-RateLimit-Limit header.",
            Class::VaultRateLimited,
        ),
        (429, "invalid_grant", "", Class::VaultRateLimited),
        (401, "too_many_attempts", "", Class::VaultRateLimited),
        (403, "", "Too many requests", Class::VaultRateLimited),
        (408, "", "", Class::VaultUnavailable),
        (400, "temporarily_unavailable", "", Class::VaultUnavailable),
        (500, "", "", Class::VaultUnavailable),
        (500, "invalid_grant", "", Class::VaultUnavailable),
        (500, "access_denied", "", Class::VaultUnavailable),
        (503, "server_error", "", Class::VaultUnavailable),
    ];
    for &(status, code, description, class) in rows {
        let json = serde_json::json!({"error": code, "error_description": description}).to_string();
        assert_eq!(
            refusal(status, &json).class(),
            class,
            "{status} {code} {description}"
        );
    }
    // Auth0's other forms.
    assert_eq!(refusal(403, GRANT).class(), Class::VaultCredentials);
    assert_eq!(refusal(401, "Unauthorized").class(), Class::ExchangeRefused);
    assert_eq!(
        refusal(502, "<html>Bad gateway</html>").class(),
        Class::VaultUnavailable
    );
    assert_eq!(
        refusal(
            400,
            r#"{"statusCode":400,"errorCode":"invalid_grant","message":"x"}"#
        )
        .class(),
        Class::ExchangeRefused
    );
    assert_eq!(
        refusal(400, r#"["invalid_grant"]"#).class(),
        Class::VaultCredentials
    );
    assert!(matches!(
        refusal(
            401,
            r#"{"error":"federated_connection_refresh_token_flow_failed"}"#
        ),
        ErrorKind::ReconnectRequired(_)
    ));
    assert!(matches!(
        refusal(401, r#"{"error":"tokenset_not_found"}"#),
        ErrorKind::ConnectionRequired(_)
    ));
}

#[test]
fn the_wait_comes_from_the_headers_and_has_bounds() {
    let wait = |headers: &[(&'static str, &str)]| match answer(429, headers, "") {
        Err(ErrorKind::RateLimited { retry_after, .. }) => retry_after.as_secs(),
        _ => panic!("not rate limited"),
    };
    let date = |ahead: u64| httpdate::fmt_http_date(now() + Duration::from_secs(ahead));
    assert_eq!(wait(&[]), 5);
    assert_eq!(wait(&[("retry-after", "7")]), 7);
    assert_eq!(wait(&[("retry-after", &date(9))]), 9);
    assert_eq!(wait(&[("retry-after", &httpdate::fmt_http_date(UNIX_EPOCH))]), 1);
    assert_eq!(wait(&[("retry-after", "0")]), 1);
    assert_eq!(wait(&[("retry-after", "86400")]), RATE_LIMIT_WAIT.as_secs());
    assert_eq!(
        wait(&[("retry-after", &u64::MAX.to_string())]),
        RATE_LIMIT_WAIT.as_secs()
    );
    assert_eq!(wait(&[("x-ratelimit-reset", &(NOW + 12).to_string())]), 12);
    assert_eq!(wait(&[("x-ratelimit-reset", &(NOW - 12).to_string())]), 1);
    assert_eq!(
        wait(&[("x-ratelimit-reset", &u64::MAX.to_string())]),
        RATE_LIMIT_WAIT.as_secs()
    );
    assert_eq!(
        wait(&[
            ("retry-after", "3"),
            ("x-ratelimit-reset", &(NOW + 12).to_string())
        ]),
        3
    );
    assert_eq!(
        wait(&[
            ("retry-after", "soon"),
            ("x-ratelimit-reset", &(NOW + 12).to_string())
        ]),
        12
    );
    assert_eq!(wait(&[("retry-after", "-3"), ("x-ratelimit-reset", "never")]), 5);
    let down = answer(503, &[("retry-after", "8")], "");
    assert!(matches!(down, Err(ErrorKind::Server { retry_after: Some(wait), .. }) if wait.as_secs() == 8));
}

#[test]
fn what_is_kept_of_an_error_is_short_clean_and_without_secrets() {
    let kept = |description: &str| {
        let json =
            serde_json::json!({"error": "invalid_grant", "error_description": description}).to_string();
        match refusal(400, &json) {
            ErrorKind::SubjectRefused(answer) => answer.description,
            other => panic!("{other}"),
        }
    };
    assert_eq!(kept("Unknown or invalid token."), "Unknown or invalid token.");
    assert_eq!(kept("a\r\nb\u{1b}[31m\u{0}c"), "a  b [31m c");
    assert_eq!(kept(&"é".repeat(5000)).chars().count(), 256);
    for echo in [
        "token subject-token-canary is bad",
        "subject-token-canary",
        "cut: subject-token-can",
        "cut: ect-token-canary",
        "secret client-secret-canary",
    ] {
        assert_eq!(kept(echo), "", "{echo}");
    }
    // An echo that the cut itself cuts.
    assert_eq!(kept(&format!("{}subject-token-canary", "x".repeat(240))), "");
    match refusal(400, r#"{"error":"subject-token-canary"}"#) {
        ErrorKind::Credentials(answer) => assert_eq!(answer.code, ""),
        other => panic!("{other}"),
    }
    assert!(echoes("is pw here", "pw"));
    assert!(!echoes("anything", ""));
}

/// Class of a refusal in a dialect.
fn class_in(dialect: Dialect, status: u16, code: &str, description: &str) -> Class {
    let json = serde_json::json!({"error": code, "error_description": description}).to_string();
    match answer_in(dialect, status, &[], &json) {
        Err(kind) => kind.class(),
        Ok(_) => panic!("{status} {code} was taken"),
    }
}

#[test]
fn every_known_error_of_a_token_exchange_has_its_class() {
    let (caller, denied, ours) = (
        Class::ExchangeRefused,
        Class::AccessDenied,
        Class::VaultCredentials,
    );
    let rows: &[(u16, &str, &str, Class)] = &[
        // RFC 8693 §2.2.2 and RFC 8707.
        (400, "invalid_request", "The subject_token is malformed", caller),
        (
            400,
            "invalid_request",
            "Missing parameter: subject_token_type",
            ours,
        ),
        (400, "invalid_target", "unknown audience", denied),
        (400, "invalid_scope", "exceeds what was granted", denied),
        (400, "invalid_grant", "", caller),
        (401, "invalid_client", "Client authentication failed", ours),
        (400, "unauthorized_client", "", ours),
        (400, "unsupported_grant_type", "", ours),
        (401, "", "", caller),
        (403, "", "", denied),
        (404, "", "", ours),
        // Keycloak.
        (
            403,
            "access_denied",
            "Client is not within the token audience",
            denied,
        ),
        (403, "access_denied", "Client not allowed to exchange", ours),
        (400, "invalid_token", "Invalid token", caller),
        (400, "invalid_request", "Invalid token", caller),
        (400, "invalid_client", "Audience not found", ours),
        (
            400,
            "invalid_request",
            "Requested audience not available: orders",
            denied,
        ),
        // Auth0 On-Behalf-Of.
        (
            400,
            "invalid_request",
            "Delegation chain (`act` claim) depth exceeds the maximum allowed limit of 4",
            denied,
        ),
        (
            403,
            "access_denied",
            "Client is not authorized to access \"x\". You need to create a \"client-grant\" associated to this API.",
            ours,
        ),
        (403, "access_denied", "User did not authorize the request", denied),
        (401, "unauthorized", "user is blocked", denied),
        (
            403,
            "",
            "Grant type 'urn:ietf:params:oauth:grant-type:token-exchange' not allowed for the client.",
            ours,
        ),
        (400, "use_dpop_nonce", "", ours),
        // Okta and Entra without more.
        (400, "interaction_required", "", Class::InteractionRequired),
        (400, "consent_required", "", Class::InteractionRequired),
        (
            400,
            "invalid_grant",
            "AADSTS500131: Assertion audience does not match",
            caller,
        ),
        (429, "", "", Class::VaultRateLimited),
        (503, "invalid_target", "", Class::VaultUnavailable),
    ];
    for &(status, code, text, class) in rows {
        assert_eq!(
            class_in(Dialect::Exchange, status, code, text),
            class,
            "{status} {code} {text}"
        );
    }
}

#[test]
fn whose_client_it_was_decides_whose_fault_it_is() {
    let rows = [
        (
            401,
            "invalid_client",
            Class::VaultCredentials,
            Class::ExchangeRefused,
        ),
        (401, "", Class::VaultCredentials, Class::ExchangeRefused),
        (
            400,
            "invalid_grant",
            Class::VaultCredentials,
            Class::ExchangeRefused,
        ),
        (403, "access_denied", Class::VaultCredentials, Class::AccessDenied),
        (
            401,
            "access_denied",
            Class::VaultCredentials,
            Class::ExchangeRefused,
        ),
        (
            400,
            "unauthorized_client",
            Class::VaultCredentials,
            Class::AccessDenied,
        ),
        (400, "invalid_scope", Class::VaultCredentials, Class::AccessDenied),
        (
            400,
            "invalid_target",
            Class::VaultCredentials,
            Class::AccessDenied,
        ),
        (403, "", Class::VaultCredentials, Class::AccessDenied),
        (
            400,
            "invalid_request",
            Class::VaultCredentials,
            Class::VaultCredentials,
        ),
        (
            400,
            "interaction_required",
            Class::VaultCredentials,
            Class::InteractionRequired,
        ),
        (
            400,
            "unsupported_grant_type",
            Class::VaultCredentials,
            Class::VaultCredentials,
        ),
        (429, "", Class::VaultRateLimited, Class::VaultRateLimited),
        (
            500,
            "invalid_client",
            Class::VaultUnavailable,
            Class::VaultUnavailable,
        ),
    ];
    for (status, code, own, callers) in rows {
        assert_eq!(class_in(Dialect::Own, status, code, ""), own, "{status} {code}");
        assert_eq!(
            class_in(Dialect::CallersClient, status, code, ""),
            callers,
            "{status} {code}"
        );
    }
    let text = "Grant type 'client_credentials' not allowed for the client.";
    assert_eq!(
        class_in(Dialect::CallersClient, 403, "unauthorized_client", text),
        Class::AccessDenied
    );
    assert_eq!(
        class_in(Dialect::Own, 403, "unauthorized_client", text),
        Class::VaultCredentials
    );
}

#[test]
fn what_the_user_has_to_do_is_handed_on_if_it_is_safe() {
    let interaction = |members: Value| {
        let mut json = serde_json::json!({"error": "interaction_required", "error_description": "x"});
        json.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        match answer_in(Dialect::Exchange, 400, &[], &json.to_string()) {
            Err(ErrorKind::Interaction { interaction, .. }) => interaction,
            _ => panic!("no interaction"),
        }
    };
    let url = "https://idp.example/consent?ticket=1";
    assert_eq!(
        interaction(serde_json::json!({"interaction_uri": url}))
            .connect_url
            .as_deref(),
        Some(url)
    );
    let claims = r#"{"access_token":{"polids":{"essential":true,"values":["1"]}}}"#;
    assert_eq!(
        interaction(serde_json::json!({"claims": claims}))
            .claims
            .as_deref(),
        Some(claims)
    );
    let long = format!("https://idp.example/{}", "x".repeat(INTERACTION_BYTES));
    for bad in [
        "http://idp.example/",
        "javascript:alert(1)",
        "",
        "https://",
        &long,
        "https://x/subject-token-canary",
        "https://x/\n",
    ] {
        assert_eq!(
            interaction(serde_json::json!({"interaction_uri": bad})).connect_url,
            None,
            "{bad}"
        );
    }
    for bad in ["[]", "{", "", "null", "{\"a\":\"client-secret-canary\"}"] {
        assert_eq!(
            interaction(serde_json::json!({"claims": bad})).claims,
            None,
            "{bad}"
        );
    }
    for odd in [
        Value::Null,
        serde_json::json!({"a": 1}),
        serde_json::json!(["https://x/"]),
    ] {
        let none = interaction(serde_json::json!({"interaction_uri": odd, "claims": odd}));
        assert_eq!(*none, Interaction::default());
    }
    // Entra says it by a second code, too.
    let json = r#"{"error":"invalid_grant","suberror":"consent_required","error_description":"AADSTS65001"}"#;
    let kind = answer_in(Dialect::Exchange, 400, &[], json).err().unwrap();
    assert_eq!(kind.class(), Class::InteractionRequired);
}

#[test]
fn a_used_up_allowance_is_respected_before_it_hurts() {
    let body = r#"{"access_token":"t"}"#;
    let exhausted = |remaining: &str, reset: u64| {
        let headers = [
            ("x-ratelimit-remaining", remaining),
            ("x-ratelimit-reset", &*reset.to_string()),
        ];
        answer(200, &headers, body).unwrap().exhausted
    };
    assert_eq!(exhausted("0", NOW + 7), Some(Duration::from_secs(7)));
    assert_eq!(exhausted("0", NOW + 86_400), Some(RATE_LIMIT_WAIT));
    assert_eq!(exhausted("0", NOW), None);
    assert_eq!(exhausted("1", NOW + 7), None);
    assert_eq!(exhausted("none", NOW + 7), None);
    assert_eq!(answer(200, &[], body).unwrap().exhausted, None);
    // Throttling by address lasts longer than a rate limit.
    let throttled = refusal(429, r#"{"error":"too_many_attempts"}"#);
    assert!(
        matches!(throttled, ErrorKind::RateLimited { retry_after, .. } if retry_after == RATE_LIMIT_WAIT)
    );
}
