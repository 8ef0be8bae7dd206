//! The last steps of a request: the token in its place, the provider asked, and once more when it was refused.

use std::sync::Arc;

use super::obtain::Brought;
use super::{Outcome, Session};
use crate::body::Body;
use crate::class::Refusal;
use crate::inject::{self, purge};
use crate::limits;
use crate::policy::Route;
use crate::secret::Secret;
use crate::snapshot::Snapshot;
use crate::token::{Obtained, Vault};
use http::request::Parts;
use http::{HeaderName, Request, Response};
use hyper::body::Incoming;

impl Session {
    /// Sends a request with whatever credentials it brought, to the same host, whose certificate is verified.
    /// `whose`: the token that does, when it was one that was meant for us.
    pub(super) async fn unchanged(
        &self,
        snapshot: &Snapshot,
        route: &Route,
        brought: &Brought,
        mut head: Parts,
        body: &mut Option<Incoming>,
        whose: Option<&'static str>,
    ) -> Result<Outcome, Refusal> {
        inject::mark_sensitive(&mut head.headers, &route.credentials);
        let request = Request::from_parts(head, brought.body(body));
        let response = self.forward(snapshot, request).await?;
        let result = if whose.is_some() {
            "forwarded"
        } else {
            "passed_through"
        };
        Ok(Outcome {
            response,
            result,
            token: whose,
            refused: None,
        })
    }

    /// Obtains a token, puts it in the place of the caller's credentials and sends the request; one that the provider
    /// refuses by its status is tried once more with a fresh token, where there is no body that is gone.
    pub(super) async fn swap(
        &self,
        snapshot: &Snapshot,
        route: &Route,
        vault: &Arc<Vault>,
        brought: &Brought,
        head: Parts,
        body: &mut Option<Incoming>,
    ) -> Result<Outcome, Refusal> {
        let tokens = &self.exchange.tokens;
        let grant = brought.grant(vault, route);
        let outcome = |response, obtained: &Obtained| Outcome {
            response,
            result: "forwarded",
            token: Some(obtained.source.label()),
            refused: None,
        };
        let obtained = tokens.obtain(grant).await.map_err(|error| error.refusal())?;
        let body = brought.body(body);
        let replay = http_body::Body::is_end_stream(&body).then(|| head.clone());
        let response = self
            .swapped(snapshot, route, brought, head, body, &obtained)
            .await?;
        if !purge::by_status(&route.credentials.purge, response.status()) || !tokens.reject(&obtained) {
            return Ok(outcome(response, &obtained));
        }
        let Some(head) = replay else {
            return Ok(outcome(response, &obtained));
        };
        let fresh = tokens.obtain(grant).await.map_err(|error| error.refusal())?;
        let response = self
            .swapped(snapshot, route, brought, head, Body::empty(), &fresh)
            .await?;
        Ok(outcome(response, &fresh))
    }

    async fn swapped(
        &self,
        snapshot: &Snapshot,
        route: &Route,
        brought: &Brought,
        head: Parts,
        body: Body,
        obtained: &Obtained,
    ) -> Result<Response<Body>, Refusal> {
        let outgoing = Outgoing {
            token: &obtained.token,
            more: &[],
        };
        let response = self
            .inject_and_forward(snapshot, route, brought, head, body, outgoing)
            .await?;
        let Some(rule) = purge::body_rule(&route.credentials.purge, response.headers()).cloned() else {
            return Ok(response);
        };
        // The answer is on its way by then: the next request gets a fresh token.
        let (tokens, obtained) = (self.exchange.tokens.clone(), obtained.clone());
        Ok(response.map(|body| {
            body.watched(limits::PURGE_BODY_BYTES, move |answer| {
                if purge::by_body(&rule, answer) {
                    tokens.reject(&obtained);
                }
            })
        }))
    }

    pub(super) async fn inject_and_forward(
        &self,
        snapshot: &Snapshot,
        route: &Route,
        brought: &Brought,
        mut head: Parts,
        body: Body,
        outgoing: Outgoing<'_>,
    ) -> Result<Response<Body>, Refusal> {
        let presented = brought.presented.as_ref();
        inject::replace(&mut head, presented, outgoing.token, &route.credentials)
            .map_err(inject::Error::refusal)?;
        for (header, token) in outgoing.more {
            inject::set_token(&mut head.headers, header, token).map_err(inject::Error::refusal)?;
        }
        let mut response = self.forward(snapshot, Request::from_parts(head, body)).await?;
        let ours = outgoing.more.iter().map(|(_, token)| &**token);
        let leaks: usize = ours
            .chain([outgoing.token])
            .map(|token| inject::scrub(response.headers_mut(), token))
            .sum();
        if leaks > 0 {
            tracing::warn!(host = %self.target.host, leaks, "the provider repeated its token in response headers; they were dropped");
        }
        Ok(response)
    }
}

/// The tokens of a request that goes out.
pub(super) struct Outgoing<'a> {
    /// In the place of the caller's.
    pub token: &'a Secret,
    /// In headers of their own.
    pub more: &'a [(HeaderName, Arc<Secret>)],
}
