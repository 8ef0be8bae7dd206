//! What each provider's token endpoint takes and how it refuses: RFC 6749, RFC 8693, and the providers' documents.

use serde_json::{Value, json};

use super::{Call, Verdict};

pub const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// The agent's own client at every server.
pub const CLIENT: (&str, &str) = ("client-1", crate::flow::CLIENT_SECRET);

/// A refusal of RFC 6749 §5.2.
pub fn refuse(status: u16, error: &str, description: &str) -> Verdict {
    Ok((
        status,
        json!({ "error": error, "error_description": description }),
    ))
}

/// A token response.
pub fn grant(token: &str) -> Verdict {
    Ok((
        200,
        json!({ "access_token": token, "token_type": "Bearer", "expires_in": 3600, "issued_token_type": ACCESS_TOKEN }),
    ))
}

/// Only these parameters, besides the client's.
fn only(call: &Call, names: &[&str]) -> Result<(), String> {
    let client = ["client_id", "client_secret"];
    let strange = call
        .params
        .iter()
        .find(|(name, _)| !names.contains(&name.as_str()) && !client.contains(&name.as_str()));
    match strange {
        Some((name, _)) => Err(format!("parameter {name} is not known here")),
        None => Ok(()),
    }
}

fn is(call: &Call, name: &str, wanted: &str) -> Result<(), String> {
    match call.get(name) {
        Some(value) if value == wanted => Ok(()),
        other => Err(format!("{name} is {other:?}, expected {wanted:?}")),
    }
}

fn present<'a>(call: &'a Call, name: &str) -> Result<&'a str, String> {
    call.get(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| format!("{name} is missing"))
}

/// RFC 8693 with all its parameters. The token names what it was given for, and by which actor.
pub fn rfc8693(call: &Call) -> Verdict {
    only(
        call,
        &[
            "grant_type",
            "subject_token",
            "subject_token_type",
            "actor_token",
            "actor_token_type",
            "requested_token_type",
            "audience",
            "resource",
            "scope",
            "tier",
        ],
    )?;
    if call.client() != CLIENT {
        return refuse(401, "invalid_client", "Client authentication failed");
    }
    if call.get("grant_type") == Some("client_credentials") {
        return grant("token-of-the-actor-itself");
    }
    is(call, "grant_type", TOKEN_EXCHANGE)?;
    present(call, "subject_token_type")?;
    let subject = present(call, "subject_token")?;
    if call.get("actor_token").is_some() != call.get("actor_token_type").is_some() {
        return Err("actor_token and actor_token_type belong together".to_owned());
    }
    if subject.contains("expired") {
        return refuse(400, "invalid_request", "subject_token has expired");
    }
    let audience: Vec<&str> = call.all("audience").chain(call.all("resource")).collect();
    if audience.contains(&"forbidden") {
        return refuse(400, "invalid_target", "not for you");
    }
    let actor = call.get("actor_token").unwrap_or("nobody");
    grant(&format!("token-for-{}-by-{actor}", audience.join("+")))
}

/// Keycloak's standard token exchange (V2).
pub fn keycloak(call: &Call) -> Verdict {
    only(
        call,
        &[
            "grant_type",
            "subject_token",
            "subject_token_type",
            "requested_token_type",
            "audience",
            "scope",
        ],
    )?;
    is(call, "grant_type", TOKEN_EXCHANGE)?;
    is(call, "subject_token_type", ACCESS_TOKEN)?;
    match (
        call.client(),
        present(call, "subject_token")?,
        call.get("audience"),
    ) {
        (client, ..) if client != CLIENT => refuse(
            401,
            "invalid_client",
            "Invalid client or Invalid client credentials",
        ),
        (_, subject, _) if subject.contains("foreign") => {
            refuse(403, "access_denied", "Client is not within the token audience")
        }
        (_, subject, _) if subject.contains("expired") => refuse(400, "invalid_token", "Invalid token"),
        (_, _, Some("unknown")) => refuse(400, "invalid_client", "Audience not found"),
        (_, _, Some("forbidden")) => refuse(
            400,
            "invalid_request",
            "Requested audience not available: forbidden",
        ),
        (_, _, audience) => grant(&format!("keycloak-token-for-{}", audience.unwrap_or("anybody"))),
    }
}

/// Okta's security token service: a connection that the user has to consent to first.
pub fn okta(call: &Call) -> Verdict {
    only(
        call,
        &[
            "grant_type",
            "subject_token",
            "subject_token_type",
            "requested_token_type",
            "audience",
            "resource",
            "scope",
        ],
    )?;
    is(call, "grant_type", TOKEN_EXCHANGE)?;
    present(call, "scope")?;
    if present(call, "subject_token")?.contains("unlinked") {
        let uri = "https://acme.okta.example/consent?ticket=1";
        let body = json!({ "error": "interaction_required", "error_description": "consent", "interaction_uri": uri });
        return Ok((400, body));
    }
    grant("okta-token")
}

/// Auth0's On-Behalf-Of.
pub fn auth0_obo(call: &Call) -> Verdict {
    only(
        call,
        &[
            "grant_type",
            "subject_token",
            "subject_token_type",
            "requested_token_type",
            "audience",
            "scope",
        ],
    )?;
    is(call, "grant_type", TOKEN_EXCHANGE)?;
    is(call, "subject_token_type", ACCESS_TOKEN)?;
    is(call, "requested_token_type", ACCESS_TOKEN)?;
    let audience = present(call, "audience")?;
    match (call.client(), present(call, "subject_token")?, audience) {
        (client, ..) if client != CLIENT => refuse(401, "invalid_client", "Client authentication failed"),
        (_, subject, _) if subject.contains("chained") => refuse(
            400,
            "invalid_request",
            "Delegation chain (`act` claim) depth exceeds the maximum allowed limit of 4",
        ),
        (_, _, "https://forbidden.example") => refuse(403, "access_denied", "User is not allowed"),
        (_, _, "https://ungranted.example") => refuse(
            403,
            "access_denied",
            "Client is not authorized to access \"https://ungranted.example\". You need to create a \"client-grant\" associated to this API.",
        ),
        (_, _, "https://dpop.example") => Ok((
            200,
            json!({ "access_token": "dpop-bound-token", "token_type": "DPoP", "expires_in": 60 }),
        )),
        (_, _, audience) => grant(&format!("obo-token-for-{audience}")),
    }
}

/// Entra's On-Behalf-Of.
pub fn entra(call: &Call) -> Verdict {
    only(call, &["grant_type", "assertion", "requested_token_use", "scope"])?;
    is(call, "grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")?;
    is(call, "requested_token_use", "on_behalf_of")?;
    present(call, "scope")?;
    if present(call, "assertion")?.contains("stepup") {
        let claims = entra_claims().to_string();
        let body =
            json!({ "error": "interaction_required", "error_description": "AADSTS50079", "claims": claims });
        return Ok((400, body));
    }
    grant("entra-token")
}

/// What Entra wants of the next sign-in.
pub fn entra_claims() -> Value {
    json!({ "access_token": { "polids": { "essential": true, "values": ["9ab03e19"] } } })
}

/// Client credentials as Auth0 grants them, to the agent's client and to one of a caller.
pub fn client_credentials(call: &Call) -> Verdict {
    only(call, &["grant_type", "audience", "scope", "organization"])?;
    is(call, "grant_type", "client_credentials")?;
    let audience = present(call, "audience")?;
    match call.client() {
        client if client == CLIENT => grant(&format!("machine-token-for-{audience}")),
        ("caller-1", "caller-secret-of-the-test-0001") => grant(&format!("callers-token-for-{audience}")),
        ("caller-2", "caller-secret-of-the-test-0002") => refuse(403, "access_denied", "no client-grant"),
        _ => refuse(401, "access_denied", "Unauthorized"),
    }
}
