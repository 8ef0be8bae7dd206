//! The last step of a request: the token in its place, the provider asked, and once more when it was refused.

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::obtain::Brought;
use super::{Outcome, Session};
use crate::body::Body;
use crate::class::Refusal;
use crate::inject::{self, Presented};
use crate::snapshot::Snapshot;
use crate::token::{Grant, Obtained};

impl Session {
    /// Sends a request with whatever credentials it brought.
    pub(super) async fn unchanged(
        &self,
        snapshot: &Snapshot,
        request: Request<Body>,
        result: &'static str,
        token: Option<&'static str>,
    ) -> Result<Outcome, Refusal> {
        let response = self.forward(snapshot, request).await?;
        Ok(Outcome {
            response,
            result,
            token,
            identity: None,
            refused: None,
        })
    }

    /// Obtains a token, puts it in the place of the caller's credentials and sends the request; a 401 from the
    /// provider is tried once more with a fresh token, where there is no body that is gone.
    pub(super) async fn swap(
        &self,
        snapshot: &Snapshot,
        brought: &Brought,
        grant: Grant<'_>,
        head: http::request::Parts,
        body: &mut Option<Incoming>,
    ) -> Result<Outcome, Refusal> {
        let tokens = &self.exchange.tokens;
        let presented = brought.presented.as_ref();
        let obtained = tokens.obtain(grant).await.map_err(|error| error.refusal())?;
        let body = brought.body(body);
        let replay = http_body::Body::is_end_stream(&body).then(|| head.clone());
        let response = self
            .inject_and_forward(snapshot, head, body, presented, &obtained)
            .await?;
        let outcome = |response, obtained: &Obtained| Outcome {
            response,
            result: "forwarded",
            token: Some(obtained.source.label()),
            identity: None,
            refused: None,
        };
        if response.status() != StatusCode::UNAUTHORIZED || !tokens.reject(&obtained) {
            return Ok(outcome(response, &obtained));
        }
        let Some(head) = replay else {
            return Ok(outcome(response, &obtained));
        };
        let fresh = tokens.obtain(grant).await.map_err(|error| error.refusal())?;
        let response = self
            .inject_and_forward(snapshot, head, Body::empty(), presented, &fresh)
            .await?;
        Ok(outcome(response, &fresh))
    }

    async fn inject_and_forward(
        &self,
        snapshot: &Snapshot,
        mut head: http::request::Parts,
        body: Body,
        presented: Option<&Presented>,
        obtained: &Obtained,
    ) -> Result<Response<Body>, Refusal> {
        inject::replace(&mut head, presented, &obtained.token).map_err(inject::Error::refusal)?;
        let mut response = self.forward(snapshot, Request::from_parts(head, body)).await?;
        let leaks = inject::scrub(response.headers_mut(), &obtained.token);
        if leaks > 0 {
            tracing::warn!(host = %self.target.host, leaks, "the provider repeated its token in response headers; they were dropped");
        }
        Ok(response)
    }
}
