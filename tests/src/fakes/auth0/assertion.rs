//! JWTs that a client signs: its assertion (RFC 7523), and a privileged worker's request (auth0.com/docs).

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

pub(super) const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Whether `assertion` proves `client` to `audience`.
pub(super) fn client(
    key: Option<&str>,
    assertion: &str,
    client: &str,
    audience: &str,
    used: &mut HashSet<String>,
) -> Result<(), String> {
    let (_, claims) = opened(key, assertion, audience, used)?;
    let lives = claims["exp"].as_u64().ok_or("no exp")?.saturating_sub(now());
    if claims["iss"] != client || claims["sub"] != client {
        return Err("iss and sub have to be the client".to_owned());
    }
    if lives == 0 || lives > 300 {
        return Err(format!("{lives} s to live, 300 at most"));
    }
    Ok(())
}

/// The user for whom a privileged worker asks.
pub(super) fn worker(
    key: Option<&str>,
    request: &str,
    client: &str,
    audience: &str,
    used: &mut HashSet<String>,
) -> Result<String, String> {
    let (kind, claims) = opened(key, request, audience, used)?;
    if kind.as_deref() != Some("token-vault-req+jwt") {
        return Err(format!("typ is {kind:?}"));
    }
    if claims["iss"] != client {
        return Err("iss has to be the client".to_owned());
    }
    let age = now().abs_diff(claims["iat"].as_u64().ok_or("no iat")?);
    if age > 60 {
        return Err(format!("{age} s old, 60 at most"));
    }
    let context = claims["audit_context"].as_str().ok_or("no audit_context")?;
    if !(1..=256).contains(&context.len()) {
        return Err("audit_context of a wrong length".to_owned());
    }
    Ok(claims["sub"].as_str().ok_or("no sub")?.to_owned())
}

/// `typ` and claims of a JWT that is signed, for us, and new.
fn opened(
    key: Option<&str>,
    token: &str,
    audience: &str,
    used: &mut HashSet<String>,
) -> Result<(Option<String>, Value), String> {
    let pem = key.ok_or("the client has no key here")?.as_bytes();
    let algorithm = jsonwebtoken::decode_header(token).map_err(|e| e.to_string())?.alg;
    let key = match algorithm {
        Algorithm::ES256 => DecodingKey::from_ec_pem(pem),
        Algorithm::RS256 | Algorithm::RS384 | Algorithm::PS256 => DecodingKey::from_rsa_pem(pem),
        other => return Err(format!("{other:?} is not allowed")),
    };
    let mut rules = Validation::new(algorithm);
    rules.set_audience(&[audience]);
    rules.leeway = 10;
    let token = jsonwebtoken::decode::<Value>(token, &key.map_err(|e| e.to_string())?, &rules);
    let token = token.map_err(|e| e.to_string())?;
    let id = token.claims["jti"].as_str().ok_or("no jti")?.to_owned();
    if !used.insert(id) {
        return Err("replayed".to_owned());
    }
    Ok((token.header.typ, token.claims))
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
