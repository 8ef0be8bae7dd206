//! The answers of the token endpoint: documented ones, and those that a caller must survive.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, channel::Channel};
use serde_json::{Value, json};

use super::super::server::{Body, BoxError, full};

pub(super) fn refuse(status: u16, error: &str, description: &str) -> Response<Body> {
    json_response(
        status,
        &json!({ "error": error, "error_description": description }),
    )
}

pub(super) fn json_response(status: u16, body: &Value) -> Response<Body> {
    let mut response = text(status, "application/json", &body.to_string());
    let no_store = header::HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    response
}

pub(super) fn text(status: u16, content_type: &'static str, body: &str) -> Response<Body> {
    let mut response = Response::new(full(body.to_owned()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    let content_type = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// Valid JSON of `bytes` bytes, so that only the reader's own limit can object.
pub(super) fn huge(bytes: usize) -> Response<Body> {
    let head = r#"{"access_token":"too-late","token_type":"Bearer","expires_in":3600,"padding":""#;
    let padding = bytes.saturating_sub(head.len() + 2);
    text(
        200,
        "application/json",
        &format!("{head}{}\"}}", "x".repeat(padding)),
    )
}

pub(super) fn endless() -> Response<Body> {
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
    tokio::spawn(async move {
        let piece = Bytes::from_static(&[b' '; 1024]);
        while sender.send_data(piece.clone()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let mut response = Response::new(body.boxed_unsync());
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
