//! A connection that switches its protocol (RFC 9110 §7.8): bytes are copied from then on.

use std::sync::{MutexGuard, PoisonError};

use http::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::{Session, refusal_of};
use crate::body::Body;
use crate::class::Refusal;
use crate::limits;
use crate::respond;
use crate::snapshot::Snapshot;
use crate::tunnel;

impl Session {
    pub(super) fn upgraded(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.upgraded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A protocol switch, WebSocket for instance: bytes are copied only after the provider's 101.
    pub(super) async fn upgrade(
        &self,
        snapshot: &Snapshot,
        mut request: Request<Body>,
        protocol: header::HeaderValue,
    ) -> Result<Response<Body>, Refusal> {
        let ours = hyper::upgrade::on(&mut request);
        respond::hop_by_hop(request.headers_mut());
        request
            .headers_mut()
            .insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(header::UPGRADE, protocol);
        let sent = snapshot.upstreams.upgrade(&self.target, request).await;
        let mut response = sent.map_err(|error| refusal_of(&error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let mut response = response.map(Body::passing);
            respond::strip(response.headers_mut());
            return Ok(response);
        }
        let theirs = hyper::upgrade::on(&mut response);
        self.upgraded().spawn(async move {
            // Either side may be gone by now, or go, or say nothing for too long; the other one sees a close.
            if let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) {
                let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
                let _ = tunnel::copy(&mut ours, &mut theirs, &[], limits::TUNNEL_IDLE).await;
            }
        });
        Ok(response.map(|_| Body::empty()))
    }
}
