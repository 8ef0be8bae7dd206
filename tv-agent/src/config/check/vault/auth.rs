//! `client_auth:` how the agent proves who it is, and whether all it needs is there.

use jsonwebtoken::Algorithm;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_saphyr::Spanned;
use url::Url;

use super::super::super::Error;
use super::super::super::raw::vault as raw;
use super::At;
use crate::secret::Secret;
use crate::token::ClientAuth;
use crate::token::settings::{Kind, Preset, tenant};

pub(super) fn algorithm(raw: Option<raw::Algorithm>) -> Algorithm {
    match raw {
        None | Some(raw::Algorithm::RS256) => Algorithm::RS256,
        Some(raw::Algorithm::RS384) => Algorithm::RS384,
        Some(raw::Algorithm::PS256) => Algorithm::PS256,
        Some(raw::Algorithm::ES256) => Algorithm::ES256,
    }
}

impl At<'_> {
    /// The client's id and its proof.
    pub(super) fn client(
        &self,
        raw: &raw::Vault,
        kind: &Kind,
        endpoint: &Url,
    ) -> Result<(String, ClientAuth), Error> {
        if let Kind::ClientCredentials(settings) = kind
            && settings.credentials.is_some()
        {
            return Ok((String::new(), self.callers(raw)?));
        }
        let id = match &raw.client_id {
            Some(id) if id.value.is_empty() => {
                let problem = "is empty; allowed: the client's id at the vault";
                return Err(self.wrong("client_id", id, "", problem));
            }
            id => id.as_ref().map(|id| id.value.clone()),
        };
        let what =
            "{ method: client_secret_post | client_secret_basic | private_key_jwt | tls_client_auth | none }";
        let at = self.need("client_auth", &raw.client_auth, &raw.kind, what)?;
        let method = at.value.method.value;
        let public = match kind {
            Kind::TokenVault(_) | Kind::ClientCredentials(_) => false,
            Kind::TokenExchange(exchange) => exchange.preset != Preset::Auth0Obo,
        };
        if method == raw::Method::None && !public {
            let problem = "is not enough for this kind of vault; allowed: a method that proves the client";
            return Err(self.wrong("client_auth.method", &at.value.method, "none", problem));
        }
        // A public endpoint such as Google's STS asks for no client at all.
        if id.is_none() && method != raw::Method::None {
            let problem = "is missing; allowed: the client's id at the vault";
            return Err(self.wrong("client_id", &raw.kind, "", problem));
        }
        self.only_with(&at.value)?;
        let auth = match method {
            raw::Method::ClientSecretPost => ClientAuth::SecretPost(self.client_secret(at)?),
            raw::Method::ClientSecretBasic => ClientAuth::SecretBasic(self.client_secret(at)?),
            raw::Method::PrivateKeyJwt => self.private_key(at, kind, endpoint)?,
            raw::Method::TlsClientAuth => self.tls(at)?,
            raw::Method::None => ClientAuth::None,
        };
        Ok((id.unwrap_or_default(), auth))
    }

    /// `credentials:` says that the caller brings them: only the way they are sent is ours to choose.
    fn callers(&self, raw: &raw::Vault) -> Result<ClientAuth, Error> {
        if let Some(at) = &raw.client_id {
            let problem =
                "stands beside credentials; allowed: one of the two, the client is the caller's or ours";
            return Err(self.wrong("client_id", at, &at.value, problem));
        }
        let Some(at) = &raw.client_auth else {
            return Ok(ClientAuth::CallerPost);
        };
        self.only_with(&at.value)?;
        self.only_for(
            "client_auth.secret",
            at.value.secret.as_ref(),
            "a client of our own",
        )?;
        match at.value.method.value {
            raw::Method::ClientSecretPost => Ok(ClientAuth::CallerPost),
            raw::Method::ClientSecretBasic => Ok(ClientAuth::CallerBasic),
            _ => {
                let problem = "cannot carry the caller's credentials; allowed: client_secret_post or client_secret_basic";
                Err(self.wrong("client_auth.method", &at.value.method, "", problem))
            }
        }
    }

    fn client_secret(&self, at: &Spanned<raw::ClientAuth>) -> Result<Secret, Error> {
        let what = "{ env: NAME } or { file: PATH }";
        let secret = self.need("client_auth.secret", &at.value.secret, at, what)?;
        let key = format!("vaults.{}.client_auth.secret", self.name);
        self.checker.secret(&key, secret)
    }

    /// Refuses what the method does not use.
    fn only_with(&self, raw: &raw::ClientAuth) -> Result<(), Error> {
        use raw::Method::{ClientSecretBasic, ClientSecretPost, PrivateKeyJwt, TlsClientAuth};
        let is = |methods: &[raw::Method]| methods.contains(&raw.method.value);
        if !is(&[ClientSecretPost, ClientSecretBasic]) {
            let with = "client_secret_post or client_secret_basic";
            self.only_for("client_auth.secret", raw.secret.as_ref(), with)?;
        }
        if !is(&[PrivateKeyJwt, TlsClientAuth]) {
            let with = "private_key_jwt or tls_client_auth";
            self.only_for("client_auth.key", raw.key.as_ref(), with)?;
        }
        if !is(&[TlsClientAuth]) {
            self.only_for(
                "client_auth.certificate",
                raw.certificate.as_ref(),
                "tls_client_auth",
            )?;
        }
        Ok(())
    }

    fn private_key(
        &self,
        at: &Spanned<raw::ClientAuth>,
        kind: &Kind,
        endpoint: &Url,
    ) -> Result<ClientAuth, Error> {
        let raw = &at.value;
        let key = self.need("client_auth.key", &raw.key, at, "a PEM file with the private key")?;
        let signer = self.signer("client_auth.key", key, raw.algorithm, raw.kid.clone())?;
        let audience = raw.audience.clone();
        Ok(ClientAuth::PrivateKeyJwt {
            signer: Box::new(signer),
            audience: audience.unwrap_or_else(|| assertion_audience(kind, endpoint)),
        })
    }

    fn tls(&self, at: &Spanned<raw::ClientAuth>) -> Result<ClientAuth, Error> {
        let bad = |key: &str, file: &Spanned<std::path::PathBuf>, problem: String| {
            self.wrong(key, file, file.value.display(), problem)
        };
        let what = "a PEM file with the client's certificate and its chain";
        let file = self.need("client_auth.certificate", &at.value.certificate, at, what)?;
        let chain = super::read(&file.value)
            .and_then(|pem| {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
                let chain = chain.ok().filter(|chain| !chain.is_empty());
                chain.ok_or_else(|| format!("holds no certificate; allowed: {what}"))
            })
            .map_err(|problem| bad("client_auth.certificate", file, problem))?;
        let what = "a PEM file with the private key";
        let file = self.need("client_auth.key", &at.value.key, at, what)?;
        let key = super::read(&file.value)
            .and_then(|pem| {
                let key = PrivateKeyDer::from_pem_slice(&pem);
                key.map_err(|_| format!("holds no private key; allowed: {what}"))
            })
            .map_err(|problem| bad("client_auth.key", file, problem))?;
        Ok(ClientAuth::TlsClient { chain, key })
    }
}

/// Auth0 wants its tenant named, with a slash; others their token endpoint (RFC 7523 §3).
fn assertion_audience(kind: &Kind, endpoint: &Url) -> String {
    let auth0 = match kind {
        Kind::TokenVault(_) => true,
        Kind::TokenExchange(exchange) => exchange.preset == Preset::Auth0Obo,
        Kind::ClientCredentials(_) => false,
    };
    if auth0 {
        tenant(endpoint)
    } else {
        endpoint.to_string()
    }
}
