//! Stage 13: what a workload sees when it is refused: one table from class to status and text.

use base64::Engine as _;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use crate::body::Body;
use crate::class::{Class, Refusal};

/// RFC 9209 names the intermediary that made the response.
const PROXY: &str = "tv-agent";

/// What the form of a refusal depends on.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The route's connection, None when no route was found.
    pub connection: Option<&'a str>,
    /// The request is a gRPC call: status and message go into trailers-only headers.
    pub grpc: bool,
    /// The host speaks git: a 401 has to offer Basic, or git never sends its credentials.
    pub git: bool,
    /// The method is HEAD: the answer has no body, and over HTTP/2 hyper would send one all the same.
    pub head: bool,
}

#[derive(Serialize)]
struct Problem<'a> {
    error: &'a str,
    error_description: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<&'a str>,
}

/// The response for a refusal.
pub fn refuse(refusal: &Refusal, asked: Asked<'_>) -> Response<Body> {
    let (status, proxy_error, grpc_status) = table(refusal.class);
    let mut response = if asked.grpc {
        grpc(refusal, grpc_status)
    } else {
        let problem = Problem {
            error: refusal.class.label(),
            error_description: &refusal.description,
            connection: asked.connection,
            connect_url: refusal
                .interaction
                .as_ref()
                .and_then(|i| i.connect_url.as_deref()),
            claims: refusal.interaction.as_ref().and_then(|i| i.claims.as_deref()),
        };
        let mut json = serde_json::to_string(&problem).expect("strings always serialise");
        json.push('\n');
        let length = json.len();
        let body = if asked.head {
            Body::empty()
        } else {
            Body::own(json)
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    };
    let headers = response.headers_mut();
    headers.insert(
        "proxy-status",
        text(&format!(
            "{PROXY}; error={proxy_error}; details=\"{}\"",
            refusal.class.label()
        )),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let challenged = status == StatusCode::UNAUTHORIZED || refusal.class == Class::InsufficientScope;
    if challenged && !asked.grpc {
        challenge(headers, refusal, asked.git);
    }
    if let Some(after) = refusal.retry_after {
        // Whole seconds, and never too early.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, seconds.max(1).into());
    }
    response
}

/// Removes from a provider's response what only held for its own connection, or would lead around us.
pub fn strip(headers: &mut HeaderMap) {
    hop_by_hop(headers);
    // An alternative service (RFC 7838) may be another host or port, where nobody would swap the token.
    headers.remove("alt-svc");
}

/// Removes the hop-by-hop fields (RFC 9110 §7.6.1), and those that `Connection` names.
pub fn hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect();
    for name in named {
        headers.remove(name.as_str());
    }
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "transfer-encoding",
        "upgrade",
    ] {
        headers.remove(name);
    }
    // Of TE only `trailers` may be passed on, and gRPC needs it.
    let trailers = headers.get_all("te").iter().any(|v| {
        v.to_str()
            .is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")))
    });
    headers.remove("te");
    if trailers {
        headers.insert("te", HeaderValue::from_static("trailers"));
    }
}

/// Status, RFC 9209 §2.3 error type, and gRPC status of each class.
fn table(class: Class) -> (StatusCode, &'static str, u8) {
    const UNAUTHENTICATED: u8 = 16;
    const PERMISSION_DENIED: u8 = 7;
    const INVALID_ARGUMENT: u8 = 3;
    const UNAVAILABLE: u8 = 14;
    const DEADLINE_EXCEEDED: u8 = 4;
    const RESOURCE_EXHAUSTED: u8 = 8;
    const INTERNAL: u8 = 13;
    match class {
        Class::MissingToken
        | Class::InvalidToken
        | Class::ExchangeRefused
        | Class::ConnectionRequired
        | Class::InteractionRequired => (StatusCode::UNAUTHORIZED, "http_request_denied", UNAUTHENTICATED),
        Class::Forbidden | Class::AccessDenied | Class::InsufficientScope => {
            (StatusCode::FORBIDDEN, "http_request_denied", PERMISSION_DENIED)
        }
        Class::Misdirected => (
            StatusCode::MISDIRECTED_REQUEST,
            "http_request_denied",
            INVALID_ARGUMENT,
        ),
        Class::BadRequest => (StatusCode::BAD_REQUEST, "http_request_error", INVALID_ARGUMENT),
        Class::HeaderTooLarge => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "http_request_error",
            RESOURCE_EXHAUSTED,
        ),
        Class::VaultCredentials => (StatusCode::BAD_GATEWAY, "proxy_configuration_error", INTERNAL),
        Class::VaultInvalidResponse => (StatusCode::BAD_GATEWAY, "proxy_internal_error", INTERNAL),
        Class::VaultRateLimited => (
            StatusCode::SERVICE_UNAVAILABLE,
            "connection_limit_reached",
            UNAVAILABLE,
        ),
        Class::VaultUnavailable | Class::VerifierUnavailable | Class::AuditUnavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "destination_unavailable",
            UNAVAILABLE,
        ),
        Class::VaultTimeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "connection_timeout",
            DEADLINE_EXCEEDED,
        ),
        Class::UpstreamTls => (StatusCode::BAD_GATEWAY, "tls_certificate_error", UNAVAILABLE),
        Class::UpstreamUnreachable => (StatusCode::BAD_GATEWAY, "destination_unavailable", UNAVAILABLE),
        Class::UpstreamTimeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "connection_timeout",
            DEADLINE_EXCEEDED,
        ),
        Class::UpstreamProtocol => (StatusCode::BAD_GATEWAY, "http_response_incomplete", UNAVAILABLE),
        Class::Internal => (StatusCode::BAD_GATEWAY, "proxy_internal_error", INTERNAL),
    }
}

/// Trailers-only (gRPC over HTTP/2, "Responses"): HTTP 200, and the status among the headers.
fn grpc(refusal: &Refusal, status: u8) -> Response<Body> {
    const UNSAFE: &AsciiSet = &CONTROLS.add(b'%');
    let mut response = Response::new(Body::empty());
    let message = format!("{}: {}", refusal.class.label(), refusal.description);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(u16::from(status)));
    headers.insert(
        "grpc-message",
        text(&utf8_percent_encode(&message, UNSAFE).to_string()),
    );
    response
}

fn challenge(headers: &mut HeaderMap, refusal: &Refusal, git: bool) {
    // RFC 6750 §3.1: no error code when the request carried no credentials at all.
    let claims = refusal.interaction.as_ref().and_then(|i| i.claims.as_deref());
    let error = match refusal.class {
        Class::MissingToken => None,
        Class::InsufficientScope => Some("insufficient_scope"),
        // Microsoft's claims challenge.
        _ if claims.is_some() => Some("insufficient_claims"),
        _ => Some("invalid_token"),
    };
    let bearer = error.map_or_else(
        || "Bearer realm=\"tv-agent\"".to_owned(),
        |error| {
            let description = refusal.description.replace(['"', '\\'], "'");
            // base64, since JSON's quotes cannot stand in a quoted string.
            let claims = claims.map(|claims| base64::engine::general_purpose::STANDARD.encode(claims));
            let claims = claims
                .map(|claims| format!(", claims=\"{claims}\""))
                .unwrap_or_default();
            format!(
                "Bearer realm=\"tv-agent\", error=\"{error}\", error_description=\"{description}\"{claims}"
            )
        },
    );
    headers.append(WWW_AUTHENTICATE, text(&bearer));
    if git && refusal.class != Class::InsufficientScope {
        headers.append(
            WWW_AUTHENTICATE,
            HeaderValue::from_static("Basic realm=\"tv-agent\""),
        );
    }
}

/// A header value of arbitrary text: what cannot stand in one becomes `?`.
fn text(value: &str) -> HeaderValue {
    let clean: String = value
        .chars()
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' })
        .collect();
    HeaderValue::from_str(&clean).expect("visible ASCII and spaces")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::Interaction;
    use http_body::Body as _;
    use std::sync::Arc;
    use std::time::Duration;

    const ASKED: Asked<'_> = Asked {
        connection: Some("github"),
        grpc: false,
        git: false,
        head: false,
    };

    #[test]
    fn every_class_has_a_status_of_its_contract() {
        let expected = |class| match class {
            Class::MissingToken
            | Class::InvalidToken
            | Class::ExchangeRefused
            | Class::ConnectionRequired
            | Class::InteractionRequired => 401,
            Class::Forbidden | Class::AccessDenied | Class::InsufficientScope => 403,
            Class::Misdirected => 421,
            Class::BadRequest => 400,
            Class::HeaderTooLarge => 431,
            Class::VaultRateLimited
            | Class::VaultUnavailable
            | Class::VerifierUnavailable
            | Class::AuditUnavailable => 503,
            Class::VaultTimeout | Class::UpstreamTimeout => 504,
            Class::VaultCredentials | Class::VaultInvalidResponse | Class::UpstreamTls => 502,
            Class::UpstreamUnreachable | Class::UpstreamProtocol | Class::Internal => 502,
        };
        for class in Class::ALL {
            let response = refuse(&Refusal::new(class, "why"), ASKED);
            assert_eq!(response.status().as_u16(), expected(class), "{class:?}");
            assert!(
                response.headers()["proxy-status"]
                    .to_str()
                    .unwrap()
                    .starts_with("tv-agent; error=")
            );
            let grpc = refuse(&Refusal::new(class, "why"), Asked { grpc: true, ..ASKED });
            assert_eq!(grpc.status(), 200);
            assert!(grpc.headers().contains_key("grpc-status") && grpc.body().is_end_stream());
        }
    }

    #[test]
    fn a_401_offers_basic_only_where_git_is_spoken() {
        let challenges = |git| {
            let response = refuse(&Refusal::new(Class::MissingToken, "x"), Asked { git, ..ASKED });
            response.headers().get_all(WWW_AUTHENTICATE).iter().count()
        };
        assert_eq!((challenges(false), challenges(true)), (1, 2));
    }

    #[test]
    fn what_the_user_has_to_do_is_told() {
        let claims = r#"{"access_token":{"polids":{"essential":true}}}"#;
        let mut refusal = Refusal::new(Class::InteractionRequired, "sign in again");
        refusal.interaction = Some(Arc::new(Interaction {
            connect_url: Some("https://idp.example/link?x=1".into()),
            claims: Some(claims.into()),
        }));
        let response = refuse(&refusal, ASKED);
        let challenge = response.headers()[WWW_AUTHENTICATE].to_str().unwrap();
        let encoded = base64::engine::general_purpose::STANDARD.encode(claims);
        assert!(
            challenge.contains("error=\"insufficient_claims\"")
                && challenge.ends_with(&format!("claims=\"{encoded}\"")),
            "{challenge}"
        );
        let plain = refuse(&Refusal::new(Class::InteractionRequired, "x"), ASKED);
        let challenge = plain.headers()[WWW_AUTHENTICATE].to_str().unwrap();
        assert!(
            challenge.contains("invalid_token") && !challenge.contains("claims"),
            "{challenge}"
        );
        // The body is exactly as long as it says, so its members are in it.
        let longer = response.headers()[CONTENT_LENGTH]
            .to_str()
            .unwrap()
            .parse::<usize>()
            .unwrap();
        assert!(
            longer
                > plain.headers()[CONTENT_LENGTH]
                    .to_str()
                    .unwrap()
                    .parse::<usize>()
                    .unwrap()
                    + claims.len()
        );
    }

    #[test]
    fn texts_cannot_break_out_of_a_header() {
        let refusal = Refusal {
            interaction: None,
            class: Class::ExchangeRefused,
            description: "bad \"quote\"\r\nx-evil: 1 é".into(),
            retry_after: Some(Duration::from_millis(10)),
        };
        let response = refuse(&refusal, ASKED);
        assert!(!response.headers().contains_key("x-evil"));
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        let grpc = refuse(&refusal, Asked { grpc: true, ..ASKED });
        assert!(
            grpc.headers()["grpc-message"]
                .to_str()
                .unwrap()
                .contains("%0D%0A")
        );
    }

    #[test]
    fn hop_by_hop_fields_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("alt-svc", "h3=\":443\""),
            ("etag", "1"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut left: Vec<_> = headers
            .iter()
            .map(|(n, v)| format!("{n}={}", v.to_str().unwrap()))
            .collect();
        left.sort();
        assert_eq!(left, ["etag=1", "te=trailers"]);
    }
}
