//! The providers' own paths: the few of GitHub's and Google's that clients in the tests call.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use serde_json::{Value, json};

use super::super::lock;
use super::super::server::Body;
use super::generic::drain;
use super::record::Recording;
use super::{Site, State, git, json as reply_json, reply};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    GitHubUser,
    GitHubRepos,
    Git,
    PythonIndex,
    GoogleUserInfo,
    GoogleCalendars,
    GoogleFiles,
    GoogleUpload,
}

pub(super) fn find(site: Site, method: &Method, path: &str) -> Option<Endpoint> {
    Some(match (site, method.as_str(), path) {
        (Site::GitHub, "GET", "/user") => Endpoint::GitHubUser,
        (Site::GitHub, "GET", "/user/repos") => Endpoint::GitHubRepos,
        (Site::GitHub, "GET" | "POST", path) if path.starts_with(git::PREFIX) => Endpoint::Git,
        // No provider has one there; pip's way of speaking is what counts.
        (Site::GitHub, "GET", "/simple/tv-demo/") => Endpoint::PythonIndex,
        (Site::Google, "GET", "/oauth2/v3/userinfo") => Endpoint::GoogleUserInfo,
        (Site::Google, "GET", "/calendar/v3/users/me/calendarList") => Endpoint::GoogleCalendars,
        (Site::Google, "GET", "/drive/v3/files") => Endpoint::GoogleFiles,
        (Site::Google, "POST", "/upload/drive/v3/files") => Endpoint::GoogleUpload,
        _ => return None,
    })
}

pub(super) async fn answer(state: &State, endpoint: Endpoint, request: Request<Recording>) -> Response<Body> {
    let schemes: &[&str] = match endpoint {
        // GitHub takes both over its API, and only Basic over git.
        Endpoint::GitHubUser | Endpoint::GitHubRepos => &["bearer", "token"],
        Endpoint::Git | Endpoint::PythonIndex => &["basic"],
        _ => &["bearer"],
    };
    let Some(account) = account(state, request.headers(), schemes) else {
        return refuse(endpoint);
    };
    if endpoint == Endpoint::Git {
        let root = lock(&state.repository).as_ref().map(|r| r.root().to_owned());
        return match root {
            Some(root) => git::backend(&root, request).await,
            None => reply(404, "text/plain", "Repository not found.\n".to_owned()),
        };
    }
    let body = match drain(request.into_body()).await {
        Ok(body) => body.seen(),
        Err(error) => return reply(400, "text/plain", format!("reading the body: {error}\n")),
    };
    match endpoint {
        Endpoint::GitHubUser => reply_json(200, &json!({ "login": account, "id": 1, "type": "User" })),
        // PEP 503.
        Endpoint::PythonIndex => reply(
            200,
            "text/html",
            "<a href=\"tv_demo-1.0-py3-none-any.whl\">tv_demo-1.0-py3-none-any.whl</a>\n".to_owned(),
        ),
        Endpoint::GitHubRepos => reply_json(200, &json!([{ "full_name": "acme/demo", "private": true }])),
        Endpoint::GoogleUserInfo => reply_json(
            200,
            &json!({ "sub": "1", "email": format!("{account}@example.com") }),
        ),
        Endpoint::GoogleCalendars => reply_json(
            200,
            &json!({ "kind": "calendar#calendarList", "items": [{ "id": "primary", "summary": account }] }),
        ),
        Endpoint::GoogleFiles => reply_json(
            200,
            &json!({ "kind": "drive#fileList", "files": [{ "id": "f1", "name": "Plan" }] }),
        ),
        Endpoint::GoogleUpload => reply_json(
            200,
            &json!({ "kind": "drive#file", "size": body.bytes, "sha256": body.sha256 }),
        ),
        Endpoint::Git => unreachable!("answered above"),
    }
}

/// The account of the provider token in `headers`, in one of `schemes` (lower case).
pub(super) fn account(state: &State, headers: &HeaderMap, schemes: &[&str]) -> Option<String> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (scheme, rest) = values.next()?.to_str().ok()?.split_once(' ')?;
    // Two credentials in one request are no credential.
    if values.next().is_some() {
        return None;
    }
    let scheme = scheme.to_ascii_lowercase();
    if !schemes.contains(&scheme.as_str()) {
        return None;
    }
    let token = if scheme == "basic" {
        let text = String::from_utf8(BASE64_STANDARD.decode(rest.trim()).ok()?).ok()?;
        text.strip_prefix("x-access-token:")?.to_owned()
    } else {
        rest.to_owned()
    };
    lock(&state.tokens).get(&token).cloned()
}

fn refuse(endpoint: Endpoint) -> Response<Body> {
    let (body, challenge): (Value, &'static str) = match endpoint {
        Endpoint::Git | Endpoint::PythonIndex => {
            let mut response = reply(401, "text/plain", "Bad credentials\n".to_owned());
            challenge(&mut response, "Basic realm=\"GitHub\"");
            return response;
        }
        Endpoint::GitHubUser | Endpoint::GitHubRepos => {
            let docs = "https://docs.github.com/rest";
            (
                json!({ "message": "Bad credentials", "documentation_url": docs, "status": "401" }),
                "",
            )
        }
        _ => {
            let message = "Request had invalid authentication credentials.";
            let error = json!({ "code": 401, "message": message, "status": "UNAUTHENTICATED" });
            (
                json!({ "error": error }),
                "Bearer realm=\"https://accounts.google.com/\"",
            )
        }
    };
    let mut response = reply_json(401, &body);
    if !challenge.is_empty() {
        self::challenge(&mut response, challenge);
    }
    response
}

fn challenge(response: &mut Response<Body>, value: &'static str) {
    let value = HeaderValue::from_static(value);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
}
