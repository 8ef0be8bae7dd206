//! A route whose vault signs: what was verified goes out in a token of our own.

use http::header::{AUTHORIZATION, HeaderName};
use http::request::Parts;
use hyper::body::Incoming;

use super::obtain::Brought;
use super::swap::Outgoing;
use super::{Outcome, Session};
use crate::class::{Class, Refusal};
use crate::clock;
use crate::policy::credentials::Place;
use crate::policy::{Credentials, Route};
use crate::sign::{self, SigningVault};
use crate::snapshot::Snapshot;

/// The headers that our tokens stand in, save for those that a caller's may stand in too. A caller's own never go
/// out: whoever reads them may take them for ours.
pub(super) fn headers<'a>(
    vault: &'a SigningVault,
    route: &'a Credentials,
) -> impl Iterator<Item = &'a HeaderName> {
    let header = &route.inject.header;
    let shared = *header == AUTHORIZATION || route.places.contains(&Place::Header(header.clone()));
    let channel = vault.channel.as_ref();
    let signers = std::iter::once(&vault.access).chain(channel.map(|(_, signer)| signer));
    signers
        .filter_map(|signer| signer.settings().original_token_header.as_ref())
        .chain(channel.map(|(header, _)| header))
        .chain((!shared).then_some(header))
}

impl Session {
    /// Signs the claims of the caller's token, and of the channel's where there is one, and sends the request.
    pub(super) async fn sign_and_forward(
        &self,
        snapshot: &Snapshot,
        route: &Route,
        vault: &SigningVault,
        brought: &Brought,
        head: Parts,
        body: &mut Option<Incoming>,
    ) -> Result<Outcome, Refusal> {
        let now = clock::unix_now();
        let sign = |signer: &sign::Signer, claims| {
            let signed = signer.sign(claims, now.as_secs());
            signed.map_err(|error| error.refusal())
        };
        let (Some(claims), Some(presented)) = (brought.verified.claims(), &brought.presented) else {
            return Err(Refusal::new(Class::MissingToken, "Authorization header required"));
        };
        let signed = sign(&vault.access, claims)?;
        let mut more = Vec::new();
        if let Some(header) = &vault.access.settings().original_token_header {
            more.push((header.clone(), presented.subject.clone()));
        }
        if let (Some((header, signer)), Some((verified, token))) = (&vault.channel, &brought.verified.channel)
        {
            let signed = sign(signer, &verified.claims)?;
            more.push((header.clone(), signed.token));
            if let Some(header) = &signer.settings().original_token_header {
                more.push((header.clone(), token.clone()));
            }
        }
        let outgoing = Outgoing {
            token: &signed.token,
            more: &more,
        };
        let response = self
            .inject_and_forward(snapshot, route, brought, head, brought.body(body), outgoing)
            .await?;
        Ok(Outcome {
            response,
            result: "forwarded",
            token: Some("signed"),
            refused: None,
        })
    }
}
