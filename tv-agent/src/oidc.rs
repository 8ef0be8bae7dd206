//! What an issuer publishes about itself: discovery documents and key sets, fetched, checked and kept. Side module.
//!
//! OpenID Connect Discovery 1.0, RFC 8414 (authorization server metadata), RFC 7517 (JWK).

use std::sync::Arc;

use url::Url;

mod discovery;
mod fetch;
mod json;
mod kept;
mod keys;

pub use discovery::Document;
pub use fetch::{Fetched, Rejected, Unfetched};
pub use json::{NotJson, Object, object};
pub use kept::{Kept, Times, Unavailable};
pub use keys::{Key, KeySet, NoKey};

/// Where a verifier's keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// This JWKS.
    Uri(Url),
    /// The `jwks_uri` of the issuer's discovery document.
    Issuer,
}

/// One issuer: its discovery document and its keys. Cheap to clone, and every clone shares the fetches.
#[derive(Clone)]
pub struct Issuer {
    document: Option<Kept<Document>>,
    keys: Kept<KeySet>,
}

impl Issuer {
    /// `name` is the issuer's identifier (the `iss` claim, RFC 8414 §2), None when only a JWKS is known.
    ///
    /// Nothing is fetched before the first use. `rotate` shortens the time for which keys are fresh.
    pub fn new(
        client: &reqwest::Client,
        name: Option<&Url>,
        source: KeySource,
        rotate: Option<std::time::Duration>,
    ) -> Self {
        let document = name.map(|name| {
            let (client, name) = (client.clone(), name.clone());
            Kept::new(Times::DEFAULT, move || {
                let (client, name) = (client.clone(), name.clone());
                Box::pin(async move { discovery::discover(&client, &name).await })
            })
        });
        let times = Times {
            fresh_max: rotate.map_or(Times::DEFAULT.fresh_max, |r| r.min(Times::DEFAULT.fresh_max)),
            ..Times::DEFAULT
        };
        let keys = {
            let (client, document) = (client.clone(), document.clone());
            Kept::new(times, move || {
                let (client, document, source) = (client.clone(), document.clone(), source.clone());
                Box::pin(async move {
                    let uri = match (&source, &document) {
                        (KeySource::Uri(uri), _) => uri.clone(),
                        (KeySource::Issuer, Some(document)) => {
                            let document = document.get().await.map_err(Unavailable::into_cause)?;
                            document.jwks_uri.clone().ok_or(Unfetched::Lacks("jwks_uri"))?
                        }
                        (KeySource::Issuer, None) => return Err(Unfetched::Lacks("issuer")),
                    };
                    keys::load(&client, &uri).await
                })
            })
        };
        Self { document, keys }
    }

    /// The discovery document; an issuer without a name has none.
    ///
    /// # Errors
    /// When it cannot be had now.
    pub async fn document(&self) -> Result<Arc<Document>, Unavailable> {
        match &self.document {
            Some(document) => document.get().await,
            None => Err(Unavailable::never(Unfetched::Lacks("issuer"))),
        }
    }

    /// The keys in force.
    ///
    /// # Errors
    /// When there are none and they cannot be had now.
    pub async fn keys(&self) -> Result<Arc<KeySet>, Unavailable> {
        self.keys.get().await
    }

    /// Newer keys than `known`, for a token that is signed with none of those; None when there are none.
    ///
    /// # Errors
    /// When the reload, or one shortly before, failed.
    pub async fn keys_after(&self, known: &Arc<KeySet>) -> Result<Option<Arc<KeySet>>, Unavailable> {
        self.keys.after(known).await
    }
}
/// For the fuzz targets, which see only what is public.
#[cfg(fuzzing)]
pub mod fuzzing {
    use jsonwebtoken::Algorithm;

    pub const ALGORITHMS: [Algorithm; 5] = [
        Algorithm::RS256,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::EdDSA,
        Algorithm::HS256,
    ];

    pub fn document(bytes: &[u8]) {
        let issuer = url::Url::parse("https://i.example/").expect("an address");
        if let Ok(found) = super::discovery::read(bytes, &issuer) {
            let addresses = [found.jwks_uri, found.token_endpoint, found.introspection_endpoint];
            assert!(addresses.iter().flatten().all(|url| url.scheme() == "https"));
        }
    }
}
