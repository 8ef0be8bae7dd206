//! `keysets:` and `jwt_signer` vaults, checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::header::AUTHORIZATION;
use serde_saphyr::Spanned;
use url::Url;

use super::super::raw::keyset::{self as raw, map};
use super::super::raw::vault::{Kind, Vault};
use super::super::{VaultConfig, VerifierConfig};
use super::{Checker, Error};
use crate::sign::keyset::{Generate, Settings as KeySet, Source};
use crate::sign::{Algorithm, Edits, Settings, VaultSettings, claims};

const DAY: u64 = 86_400;

type Vaults = BTreeMap<Arc<str>, VaultConfig>;
type Signers = BTreeMap<Arc<str>, VaultSettings>;

impl Checker<'_> {
    pub(super) fn keysets(&self, raw: BTreeMap<String, Spanned<raw::KeySet>>) -> Result<Vec<KeySet>, Error> {
        raw.into_iter()
            .map(|(name, set)| self.keyset(name, set))
            .collect()
    }

    fn keyset(&self, name: String, at: Spanned<raw::KeySet>) -> Result<KeySet, Error> {
        let key = |rest: &str| format!("keysets.{name}.{rest}");
        // It is a file's name and part of an address.
        let plain = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if !plain || !(1..=64).contains(&name.len()) {
            let problem = "is no name for a key set; allowed: up to 64 letters, digits, _ and -";
            return Err(self.value("keysets", &at, &name, problem));
        }
        let set = &at.value;
        let misplaced = |what: &str, allowed: &str| format!("{what}; allowed: {allowed}");
        if let Some(days) = set.rotate_days.as_ref().filter(|_| set.generate.is_none()) {
            let problem = misplaced("is for keys that are made here", "beside generate");
            return Err(self.value(&key("rotate_days"), days, days.value, problem));
        }
        if set.url.is_none() {
            let problem = misplaced("is for a URL", "beside url");
            if let Some(wait) = &set.refresh_seconds {
                return Err(self.value(&key("refresh_seconds"), wait, wait.value, problem));
            }
            if let Some(roots) = &set.extra_roots {
                return Err(self.value(&key("extra_roots"), roots, "", problem));
            }
        }
        let source = match (&set.generate, &set.file, &set.url) {
            (Some(how), None, None) => Source::Generate {
                how: self.generate(&key, &how.value)?,
                rotate: self
                    .within(&key("rotate_days"), &set.rotate_days, 1..=3650)?
                    .map(|days| Duration::from_secs(days * DAY)),
            },
            (None, Some(path), None) => Source::File {
                path: path.value.clone(),
            },
            (None, None, Some(url)) => Source::Url {
                url: self.keyset_url(&key("url"), url)?,
                refresh: Duration::from_secs(
                    self.within(&key("refresh_seconds"), &set.refresh_seconds, 60..=DAY)?
                        .unwrap_or(3600),
                ),
                extra_roots: set
                    .extra_roots
                    .as_ref()
                    .map(|roots| roots.value.clone())
                    .unwrap_or_default(),
            },
            _ => {
                let problem = "says not, or more than once, where its keys come from; allowed: one of generate, file and url";
                return Err(self.value("keysets", &at, &name, problem));
            }
        };
        Ok(KeySet {
            name: name.into(),
            source,
        })
    }

    fn generate(&self, key: &impl Fn(&str) -> String, raw: &raw::Generate) -> Result<Generate, Error> {
        let algorithm = self.algorithm(&key("generate.algorithm"), &raw.algorithm)?;
        let bits = match &raw.bits {
            None => 2048,
            Some(at) => {
                let key = key("generate.bits");
                if !algorithm.is_rsa() {
                    let problem = "has no meaning for this algorithm; allowed: with RS* and PS*";
                    return Err(self.value(&key, at, at.value, problem));
                }
                match u16::try_from(at.value) {
                    Ok(bits @ (2048 | 3072 | 4096)) => bits,
                    _ => {
                        let problem = "is no length of an RSA key; allowed: 2048, 3072, 4096";
                        return Err(self.value(&key, at, at.value, problem));
                    }
                }
            }
        };
        Ok(Generate { algorithm, bits })
    }

    fn keyset_url(&self, key: &str, at: &Spanned<String>) -> Result<Url, Error> {
        let url = Url::parse(&at.value).ok().filter(|url| {
            url.scheme() == "https"
                && url.host_str().is_some()
                && url.username().is_empty()
                && url.password().is_none()
        });
        url.ok_or_else(|| {
            let problem =
                "is no place for private keys; allowed: an https:// address without credentials in it";
            // What stands before the host may be a password.
            let shown = if at.value.contains('@') {
                "(withheld)"
            } else {
                &at.value
            };
            self.value(key, at, shown, problem)
        })
    }

    /// The vaults that ask a token endpoint, and those that sign.
    pub(super) fn vaults(
        &self,
        raw: BTreeMap<String, Spanned<Vault>>,
        sets: &[KeySet],
        verifiers: &BTreeMap<Arc<str>, VerifierConfig>,
    ) -> Result<(Vaults, Signers), Error> {
        let (mut vaults, mut signers) = (BTreeMap::new(), BTreeMap::new());
        for (name, mut vault) in raw {
            let name: Arc<str> = name.into();
            if vault.value.kind.value == Kind::JwtSigner {
                let (mut signing, channel) = vault.value.take_signing();
                signing.issuer = vault.value.issuer.take();
                let kind = &vault.value.kind;
                self.only_signs(&name, &vault.value)?;
                let signer = self.signer(&name, kind, signing, channel, sets)?;
                signers.insert(name, signer);
            } else {
                self.signs_not(&name, &mut vault.value)?;
                vaults.insert(name.clone(), self.vault(name, vault.value, verifiers)?);
            }
        }
        Ok((vaults, signers))
    }

    /// Refuses what says how to ask a token endpoint, which a `jwt_signer` does not.
    pub(super) fn only_signs(&self, name: &str, raw: &Vault) -> Result<(), Error> {
        let given = [
            ("domain", raw.domain.is_some()),
            ("token_endpoint", raw.token_endpoint.is_some()),
            ("client_id", raw.client_id.is_some()),
            ("client_auth", raw.client_auth.is_some()),
            ("timeout_seconds", raw.timeout_seconds.is_some()),
            ("requested_token_type", raw.requested_token_type.is_some()),
            ("extra_roots", !raw.extra_roots.is_empty()),
            ("rate_limit", raw.rate_limit.is_some()),
            ("circuit_breaker", raw.circuit_breaker.is_some()),
            ("when", raw.when.is_some()),
            ("subject", raw.subject.is_some()),
            ("privileged_worker", raw.privileged_worker.is_some()),
            ("preset", raw.preset.is_some()),
            ("grant_type", raw.grant_type.is_some()),
            ("subject_token_type", raw.subject_token_type.is_some()),
            ("actor", raw.actor.is_some()),
            ("validate", raw.validate.is_some()),
            ("audience", raw.audience.is_some()),
            ("resource", raw.resource.is_some()),
            ("scope", raw.scope.is_some()),
            ("extra", raw.extra.is_some()),
            ("credentials", raw.credentials.is_some()),
            ("forward_identity", raw.forward_identity.is_some()),
        ];
        let problem =
            "does nothing for a jwt_signer, which asks nobody; allowed: keyset and what goes with it";
        match given.into_iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(self.value(&format!("vaults.{name}.{key}"), &raw.kind, "", problem)),
            None => Ok(()),
        }
    }

    /// Refuses what says how to sign, where a token endpoint is asked.
    pub(super) fn signs_not(&self, name: &str, raw: &mut Vault) -> Result<(), Error> {
        let (signing, channel) = raw.take_signing();
        let given = [
            ("keyset", signing.keyset.is_some()),
            ("algorithm", signing.algorithm.is_some()),
            ("expiry_leeway_seconds", signing.expiry_leeway_seconds.is_some()),
            ("add_claims", signing.add_claims.is_some()),
            ("set_claims", signing.set_claims.is_some()),
            ("remove_claims", signing.remove_claims.is_some()),
            ("original_token_header", signing.original_token_header.is_some()),
            ("channel", channel.is_some()),
        ];
        let problem = "does nothing for this kind of vault; allowed: with kind jwt_signer";
        match given.into_iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(self.value(&format!("vaults.{name}.{key}"), &raw.kind, "", problem)),
            None => Ok(()),
        }
    }

    /// A `jwt_signer` vault; `sets` are those of the file.
    pub(super) fn signer(
        &self,
        name: &str,
        beside: &Spanned<impl Sized>,
        raw: raw::Signing,
        channel: Option<Spanned<raw::Channel>>,
        sets: &[KeySet],
    ) -> Result<VaultSettings, Error> {
        let prefix = format!("vaults.{name}");
        let access = self.signing(&prefix, beside, raw, sets)?;
        let channel = match channel {
            None => None,
            Some(channel) => {
                let prefix = format!("{prefix}.channel");
                let place = Spanned {
                    value: (),
                    referenced: channel.referenced,
                    defined: channel.defined,
                };
                let (header, raw) = channel.value.split();
                let to = self.header(&format!("{prefix}.header"), &header, &header.value)?;
                let settings = self.signing(&prefix, &place, raw, sets)?;
                let key = format!("{prefix}.header");
                self.apart(
                    &key,
                    &header,
                    &to,
                    [&access.original_token_header, &settings.original_token_header],
                )?;
                Some((to, settings))
            }
        };
        Ok(VaultSettings { access, channel })
    }

    fn signing(
        &self,
        prefix: &str,
        beside: &Spanned<impl Sized>,
        raw: raw::Signing,
        sets: &[KeySet],
    ) -> Result<Settings, Error> {
        let key = |rest: &str| format!("{prefix}.{rest}");
        let known = || sets.iter().map(|set| &*set.name).collect::<Vec<_>>().join(", ");
        let Some(wanted) = &raw.keyset else {
            let problem = format!(
                "is missing; allowed: the name of a key set of this file: {}",
                known()
            );
            return Err(self.value(&key("keyset"), beside, "", problem));
        };
        let Some(set) = sets.iter().find(|set| *set.name == *wanted.value) else {
            let problem = format!("is no key set of this file; allowed: {}", known());
            return Err(self.value(&key("keyset"), wanted, &wanted.value, problem));
        };
        let algorithm = match &raw.algorithm {
            None => None,
            Some(at) => {
                let algorithm = self.algorithm(&key("algorithm"), at)?;
                if let Source::Generate { how, .. } = &set.source
                    && how.algorithm != algorithm
                {
                    let problem = format!(
                        "is not what the key set {} is for; allowed: {}",
                        set.name, how.algorithm
                    );
                    return Err(self.value(&key("algorithm"), at, &at.value, problem));
                }
                Some(algorithm)
            }
        };
        let issuer = match raw.issuer {
            Some(at) if at.value.is_empty() => {
                let problem = "is empty; allowed: the iss claim of our tokens, such as tv-agent";
                return Err(self.value(&key("issuer"), &at, "", problem));
            }
            Some(at) => at.value,
            None => "tv-agent".to_owned(),
        };
        let leeway = match &raw.expiry_leeway_seconds {
            None => 0,
            Some(at) if at.value.unsigned_abs() <= DAY => at.value,
            Some(at) => {
                let problem = "is out of range; allowed: -86400 to 86400 seconds";
                return Err(self.value(&key("expiry_leeway_seconds"), at, at.value, problem));
            }
        };
        let edit = |name: &str, claims: Option<Spanned<raw::Claims>>| match claims {
            None => Ok(serde_json::Map::new()),
            Some(at) => {
                let names = at.value.keys();
                names
                    .clone()
                    .try_for_each(|claim| self.claim(&key(name), &at, claim))?;
                Ok(map(at.value))
            }
        };
        let remove = raw.remove_claims.unwrap_or_default();
        remove
            .iter()
            .try_for_each(|at| self.claim(&key("remove_claims"), at, &at.value))?;
        let original_token_header = match &raw.original_token_header {
            None => None,
            Some(at) => {
                let key = key("original_token_header");
                let header = self.header(&key, at, &at.value)?;
                if header == AUTHORIZATION {
                    let problem = "is where ours goes; allowed: another header";
                    return Err(self.value(&key, at, &at.value, problem));
                }
                Some(header)
            }
        };
        Ok(Settings {
            keyset: set.name.clone(),
            algorithm,
            edits: Edits {
                issuer,
                expiry_leeway: leeway,
                add: edit("add_claims", raw.add_claims)?,
                set: edit("set_claims", raw.set_claims)?,
                remove: remove.into_iter().map(|at| at.value).collect(),
            },
            original_token_header,
        })
    }

    /// Two tokens cannot stand in one header.
    fn apart(
        &self,
        key: &str,
        at: &Spanned<String>,
        header: &HeaderName,
        others: [&Option<HeaderName>; 2],
    ) -> Result<(), Error> {
        let twice = others[0].is_some() && others[0] == others[1];
        if *header == AUTHORIZATION || twice || others.iter().any(|other| other.as_ref() == Some(header)) {
            let problem = "meets another token in one header; allowed: a header for each of the tokens";
            return Err(self.value(key, at, &at.value, problem));
        }
        Ok(())
    }

    fn claim<T>(&self, key: &str, at: &Spanned<T>, claim: &str) -> Result<(), Error> {
        let problem = if claim.is_empty() {
            "is empty; allowed: the name of a claim"
        } else if claims::OURS.contains(&claim) || claim == "original_iss" {
            "is set by the agent; allowed: other claims, issuer and expiry_leeway_seconds"
        } else {
            return Ok(());
        };
        Err(self.value(key, at, claim, problem))
    }

    fn algorithm(&self, key: &str, at: &Spanned<String>) -> Result<Algorithm, Error> {
        Algorithm::parse(&at.value).ok_or_else(|| {
            let all = Algorithm::ALL.map(Algorithm::label).join(", ");
            self.value(
                key,
                at,
                &at.value,
                format!("is no algorithm that can be signed with; allowed: {all}"),
            )
        })
    }

    pub(super) fn within(
        &self,
        key: &str,
        at: &Option<Spanned<u64>>,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Error> {
        match at {
            Some(at) if !range.contains(&at.value) => {
                let problem = format!("is out of range; allowed: {} to {}", range.start(), range.end());
                Err(self.value(key, at, at.value, problem))
            }
            other => Ok(other.as_ref().map(|at| at.value)),
        }
    }
}
