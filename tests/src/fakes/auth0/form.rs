//! Reading a token request: form or JSON, client credentials in the body or in the header.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use url::form_urlencoded;

/// Largest token request that is read, bytes.
const REQUEST_BYTES: usize = 64 * 1024;

/// How the client authenticated (RFC 6749 section 2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// `client_secret_post`
    Post,
    /// `client_secret_basic`
    Basic,
    /// `private_key_jwt`
    Assertion,
    None,
}

/// How the parameters were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Form,
    Json,
}

pub(super) struct Form {
    pub(super) encoding: Encoding,
    pub(super) params: BTreeMap<String, String>,
    /// Client id and secret of the Authorization header.
    pub(super) basic: Option<(String, String)>,
}

impl Form {
    /// Reads a whole token request; the error says what is wrong with it.
    pub(super) async fn read(request: Request<Incoming>) -> Result<Self, String> {
        if request.method() != Method::POST || request.uri().path() != "/oauth/token" {
            return Err("no such endpoint".to_owned());
        }
        if let Some(query) = request.uri().query() {
            return Err(format!("a query ({} bytes) where none belongs", query.len()));
        }
        let headers = request.headers();
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let encoding = match content_type.and_then(|v| v.split(';').next()).map(str::trim) {
            Some("application/x-www-form-urlencoded") => Encoding::Form,
            Some("application/json") => Encoding::Json,
            other => return Err(format!("content-type {other:?}")),
        };
        let basic = match headers.get(header::AUTHORIZATION) {
            None => None,
            Some(value) => Some(basic(value.as_bytes()).ok_or("an Authorization that is not Basic")?),
        };
        let body = Limited::new(request.into_body(), REQUEST_BYTES);
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        let params = match encoding {
            Encoding::Form => form(&body)?,
            Encoding::Json => json(&body)?,
        };
        Ok(Self {
            encoding,
            params,
            basic,
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }

    pub(super) fn client_auth(&self) -> ClientAuth {
        if self.basic.is_some() {
            ClientAuth::Basic
        } else if self.params.contains_key("client_assertion") {
            ClientAuth::Assertion
        } else if self.params.contains_key("client_secret") {
            ClientAuth::Post
        } else {
            ClientAuth::None
        }
    }

    /// Client id and secret, from whichever place has them.
    pub(super) fn credentials(&self) -> (Option<&String>, Option<&String>) {
        match &self.basic {
            Some((id, secret)) => (Some(id), Some(secret)),
            None => (self.params.get("client_id"), self.params.get("client_secret")),
        }
    }
}

fn form(body: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let mut params = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(body) {
        if params
            .insert(name.clone().into_owned(), value.into_owned())
            .is_some()
        {
            return Err(format!("parameter {name} twice"));
        }
    }
    Ok(params)
}

fn json(body: &[u8]) -> Result<BTreeMap<String, String>, String> {
    serde_json::from_slice(body).map_err(|e| format!("a body that is no JSON object of strings: {e}"))
}

/// RFC 6749 section 2.3.1: id and secret are form-encoded before they go into Basic.
fn basic(value: &[u8]) -> Option<(String, String)> {
    let value = std::str::from_utf8(value).ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64_STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (id, secret) = text.split_once(':')?;
    let decode = |s: &str| {
        let pair = format!("x={s}");
        form_urlencoded::parse(pair.as_bytes())
            .next()
            .map(|(_, v)| v.into_owned())
    };
    Some((decode(id)?, decode(secret)?))
}
