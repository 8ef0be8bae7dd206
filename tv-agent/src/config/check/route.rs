//! `routes:`: what each asks of its vault and its verifiers, and whether they can give it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_saphyr::Spanned;

use super::super::{Error, VaultConfig, VerifierConfig, raw};
use super::Checker;
use crate::policy::credentials::Issuer;
use crate::policy::{Hint, HostPattern, OnUntrusted, Route, Verify, Wanted};
use crate::sign;
use crate::token::VaultSettings;
use crate::token::settings::{Kind, Place, VaultSubject};

/// What routes may name.
pub(super) struct Named<'a> {
    pub vaults: &'a BTreeMap<Arc<str>, VaultConfig>,
    pub signers: &'a BTreeMap<Arc<str>, sign::VaultSettings>,
    pub verifiers: &'a BTreeMap<Arc<str>, VerifierConfig>,
    /// Whose tokens a vault takes, where that is known.
    pub issuers: &'a BTreeMap<String, Issuer>,
}

impl Checker<'_> {
    /// `on_untrusted`: for a route that does not say.
    pub(super) fn route(
        &self,
        raw: raw::Route,
        named: &Named<'_>,
        on_untrusted: OnUntrusted,
    ) -> Result<Route, Error> {
        let name = &raw.name.value;
        let key = |rest: &str| format!("routes.{name}.{rest}");
        if name.is_empty() {
            return Err(self.value("routes[].name", &raw.name, "", "is empty; allowed: a name"));
        }
        if raw.hosts.is_empty() {
            return Err(self.value(
                &key("hosts"),
                &raw.name,
                "[]",
                "is empty; allowed: at least one host",
            ));
        }
        let hosts = raw
            .hosts
            .iter()
            .map(|at| {
                HostPattern::parse(&at.value)
                    .map_err(|problem| self.value(&key("hosts"), at, &at.value, problem.to_string()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let verify = match &raw.verify {
            Some(at) => Some(self.verify(&key("verify"), at, named.verifiers)?),
            None => None,
        };
        let login_hint = match &raw.login_hint {
            Some(at) => Some(self.hint(&key("login_hint"), at)?),
            None => None,
        };
        let vault: Arc<str> = raw.vault.value.as_str().into();
        let wanted = match (named.vaults.get(&vault), named.signers.get(&vault)) {
            (Some(config), _) => {
                self.claims_are_verified(&raw, &config.settings, login_hint.as_ref(), verify.as_ref())?;
                self.wanted(&raw, &config.settings)?
            }
            (None, Some(signer)) => {
                self.signs(&raw, signer, verify.as_ref())?;
                Default::default()
            }
            (None, None) => {
                let known = named.vaults.keys().chain(named.signers.keys());
                let known: Vec<&str> = known.map(|known| &**known).collect();
                let problem = format!("is no vault of this file; allowed: {}", known.join(", "));
                return Err(self.value(&key("vault"), &raw.vault, &raw.vault.value, problem));
            }
        };
        let credentials = self.credentials(&raw, issuers(named, &vault, verify.as_ref()))?;
        if let Some(signer) = named.signers.get(&vault) {
            self.headers_differ(&raw, signer, &credentials.inject.header)?;
        }
        let workloads = raw.workloads.into_iter();
        let workloads = workloads
            .map(|at| self.selector(&key("workloads"), at))
            .collect::<Result<Vec<_>, _>>()?;
        let connection_override = self.overrides(&raw.name.value, &wanted, &raw.connection_override)?;
        Ok(Route {
            name: name.as_str().into(),
            hosts,
            vault,
            wanted: Arc::new(wanted),
            login_hint,
            verify,
            on_missing_token: raw.on_missing_token,
            on_untrusted: raw.on_untrusted.unwrap_or(on_untrusted),
            credentials,
            workloads,
            connection_override,
        })
    }

    /// A pod can choose only where there is something to choose.
    fn overrides(&self, name: &str, wanted: &Wanted, list: &[Spanned<String>]) -> Result<Vec<String>, Error> {
        let key = format!("routes.{name}.connection_override");
        for at in list {
            if at.value.is_empty() {
                let problem = "is empty; allowed: a connection's name, with * for any part of it";
                return Err(self.value(&key, at, "", problem));
            }
            if wanted.connection.is_none() {
                let problem =
                    "does nothing on a route that names no connection; allowed: connection beside it";
                return Err(self.value(&key, at, &at.value, problem));
            }
        }
        Ok(list.iter().map(|at| at.value.clone()).collect())
    }

    /// A claim of a token that nobody verified is whatever the caller wrote.
    fn claims_are_verified(
        &self,
        raw: &raw::Route,
        vault: &VaultSettings,
        login_hint: Option<&Hint>,
        verify: Option<&Verify>,
    ) -> Result<(), Error> {
        let name = &raw.name.value;
        let by_claim = |hint: Option<&Hint>| matches!(hint, Some(Hint::Claim(_)));
        let (user, identity, header) = match &vault.kind {
            Kind::TokenVault(kind) => match &kind.subject {
                VaultSubject::Worker(worker) => (by_claim(Some(&worker.user)), false, false),
                _ => (false, false, false),
            },
            Kind::ClientCredentials(kind) => {
                let places = kind.credentials.iter().flat_map(|credentials| &credentials.from);
                let header = places.into_iter().any(|place| *place == Place::Header);
                (false, kind.forward_identity.is_some(), header)
            }
            Kind::TokenExchange(_) => (false, false, false),
        };
        let whose = |what: &str| format!("{what} of vault {}", vault.name);
        let (needs, at) = match verify {
            Some(_) if header => {
                let problem = format!(
                    "wants a token where {} wants client credentials; allowed: credentials from query or body beside it",
                    whose("credentials")
                );
                return Err(self.value(&format!("routes.{name}.verify"), &raw.vault, &vault.name, problem));
            }
            Some(_) => return Ok(()),
            None if by_claim(login_hint) => ("login_hint".to_owned(), raw.login_hint.as_ref().map(line)),
            None if user => (whose("privileged_worker.user"), None),
            None if identity => (whose("forward_identity"), None),
            None => return Ok(()),
        };
        Err(Error::Value {
            file: self.file.to_owned(),
            line: at.unwrap_or_else(|| line(&raw.vault)),
            key: format!("routes.{name}.verify"),
            value: String::new(),
            problem: format!(
                "is missing, and {needs} takes a claim of the caller's token; allowed: a verifier's name"
            ),
        })
    }

    /// What a route whose vault signs must say, and what would do nothing there.
    fn signs(
        &self,
        raw: &raw::Route,
        signer: &sign::VaultSettings,
        verify: Option<&Verify>,
    ) -> Result<(), Error> {
        let key = |rest: &str| format!("routes.{}.{rest}", raw.name.value);
        let vault = &raw.vault;
        let Some(verify) = verify else {
            let problem =
                "is missing, and this vault signs claims that were verified; allowed: a verifier's name";
            return Err(self.value(&key("verify"), vault, &vault.value, problem));
        };
        if signer.channel.is_some() && verify.channel.is_none() {
            let problem = "is missing, and this vault signs for a channel too; allowed: { verifier: NAME, header: X-… }";
            return Err(self.value(&key("verify.channel"), vault, &vault.value, problem));
        }
        let given = [
            ("connection", raw.connection.as_ref().map(line)),
            ("audience", raw.audience.as_ref().map(line)),
            ("resource", raw.resource.as_ref().map(line)),
            ("scope", raw.scope.as_ref().map(line)),
            ("login_hint", raw.login_hint.as_ref().map(line)),
            ("purge", raw.purge.json.as_ref().map(|rule| line(&rule.pointer))),
            ("purge", raw.purge.statuses.as_ref().map(|_| line(vault))),
        ];
        self.idle(raw, &given, "jwt_signer")
    }

    /// Two tokens cannot stand in one header.
    fn headers_differ(
        &self,
        raw: &raw::Route,
        signer: &sign::VaultSettings,
        inject: &http::HeaderName,
    ) -> Result<(), Error> {
        let channel = signer.channel.as_ref();
        let others = [
            signer.access.original_token_header.as_ref(),
            channel.map(|(header, _)| header),
            channel.and_then(|(_, signing)| signing.original_token_header.as_ref()),
        ];
        if !others.contains(&Some(inject)) {
            return Ok(());
        }
        let key = format!("routes.{}.inject.header", raw.name.value);
        let problem = format!(
            "meets another token of vault {} in one header; allowed: a header for each",
            raw.vault.value
        );
        Err(self.value(&key, &raw.vault, inject, problem))
    }

    /// Refuses what is given, and does nothing with a vault of this kind: keys, and the lines that they stand on.
    pub(super) fn idle(
        &self,
        raw: &raw::Route,
        given: &[(&str, Option<u64>)],
        kind: &str,
    ) -> Result<(), Error> {
        let Some((key, line)) = given.iter().find_map(|(key, line)| Some((key, (*line)?))) else {
            return Ok(());
        };
        let vault = &raw.vault.value;
        Err(Error::Value {
            file: self.file.to_owned(),
            line,
            key: format!("routes.{}.{key}", raw.name.value),
            value: String::new(),
            problem: format!(
                "does nothing with vault {vault}, which is of kind {kind}; allowed: only what that kind takes"
            ),
        })
    }
}

/// Whose tokens the route takes: those that its verifier accepts, else those of its vault.
fn issuers(named: &Named<'_>, vault: &str, verify: Option<&Verify>) -> Vec<Issuer> {
    match verify.and_then(|verify| named.verifiers.get(&verify.access)) {
        Some(verifier) => {
            let accepted = verifier.settings.rules.issuers.iter();
            accepted.map(|issuer| Issuer::Named(issuer.clone())).collect()
        }
        None => named.issuers.get(vault).cloned().into_iter().collect(),
    }
}

pub(super) fn line<T>(at: &Spanned<T>) -> u64 {
    at.referenced.line()
}
