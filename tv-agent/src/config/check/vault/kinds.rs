//! What each kind of vault and each dialect of token exchange takes.

use std::sync::Arc;

use serde_saphyr::Spanned;

use super::super::super::Error;
use super::super::super::raw::vault as raw;
use super::auth::algorithm;
use super::{At, preset_of};
use crate::token::Signer;
use crate::token::settings::{
    ACCESS_TOKEN, Actor, ActorFrom, CallerCredentials, ClientCredentials, ForwardIdentity, Kind, Place,
    Preset, TokenExchange, TokenVault, VaultSubject, Worker,
};

const EXCHANGES: &str = "token_exchange or on_behalf_of";

impl At<'_> {
    pub(super) fn kind(&self, raw: &raw::Vault) -> Result<Kind, Error> {
        let is_exchange = matches!(raw.kind.value, raw::Kind::TokenExchange | raw::Kind::OnBehalfOf);
        if !is_exchange {
            self.only_for("preset", raw.preset.as_ref(), EXCHANGES)?;
            self.only_for("grant_type", raw.grant_type.as_ref(), EXCHANGES)?;
            self.only_for("subject_token_type", raw.subject_token_type.as_ref(), EXCHANGES)?;
            self.only_for("actor", raw.actor.as_ref(), EXCHANGES)?;
            self.only_for("validate", raw.validate.as_ref(), EXCHANGES)?;
            self.only_for("when", raw.when.as_ref(), EXCHANGES)?;
        }
        if raw.kind.value != raw::Kind::Auth0TokenVault {
            self.only_for("subject", raw.subject.as_ref(), "auth0_token_vault")?;
            self.only_for(
                "privileged_worker",
                raw.privileged_worker.as_ref(),
                "auth0_token_vault",
            )?;
        }
        if raw.kind.value != raw::Kind::ClientCredentials {
            self.only_for("credentials", raw.credentials.as_ref(), "client_credentials")?;
            self.only_for(
                "forward_identity",
                raw.forward_identity.as_ref(),
                "client_credentials",
            )?;
        }
        match raw.kind.value {
            raw::Kind::TokenExchange | raw::Kind::OnBehalfOf => {
                self.token_exchange(raw).map(Kind::TokenExchange)
            }
            raw::Kind::ClientCredentials => {
                let kinds = "auth0_token_vault, token_exchange or on_behalf_of";
                self.only_for("requested_token_type", raw.requested_token_type.as_ref(), kinds)?;
                self.client_credentials(raw).map(Kind::ClientCredentials)
            }
            raw::Kind::Auth0TokenVault | raw::Kind::JwtSigner => self.token_vault(raw).map(Kind::TokenVault),
        }
    }

    fn token_vault(&self, raw: &raw::Vault) -> Result<TokenVault, Error> {
        let others = "another kind (Token Vault gives the token of a connection)";
        self.only_for("audience", raw.audience.as_ref(), others)?;
        self.only_for("resource", raw.resource.as_ref(), others)?;
        self.only_for("scope", raw.scope.as_ref(), "another kind, or as routes[].scope")?;
        self.only_for("extra", raw.extra.as_ref(), others)?;
        let subject = raw.subject.as_ref().map(|at| at.value);
        if subject != Some(raw::Subject::PrivilegedWorker) {
            let with = "subject: privileged_worker";
            self.only_for("privileged_worker", raw.privileged_worker.as_ref(), with)?;
        }
        let subject = match subject {
            None | Some(raw::Subject::AccessToken) => VaultSubject::AccessToken,
            Some(raw::Subject::RefreshToken) => VaultSubject::RefreshToken,
            Some(raw::Subject::PrivilegedWorker) => {
                let what = "{ key: FILE, audit_context: TEXT, user: … }";
                let at = self.need("privileged_worker", &raw.privileged_worker, &raw.kind, what)?;
                VaultSubject::Worker(self.worker(&at.value)?)
            }
        };
        Ok(TokenVault {
            subject,
            requested_token_type: raw.requested_token_type.as_ref().map(|at| at.value.clone()),
        })
    }

    fn worker(&self, raw: &raw::Worker) -> Result<Worker, Error> {
        let context = &raw.audit_context;
        if !(1..=256).contains(&context.value.chars().count()) {
            let problem = "has a wrong length; allowed: 1 to 256 characters, without personal data";
            return Err(self.wrong(
                "privileged_worker.audit_context",
                context,
                &context.value,
                problem,
            ));
        }
        let user = format!("vaults.{}.privileged_worker.user", self.name);
        Ok(Worker {
            signer: self.signer("privileged_worker.key", &raw.key, raw.algorithm, raw.kid.clone())?,
            audit_context: context.value.clone(),
            organization: raw.organization.clone(),
            user: self.checker.hint(&user, &raw.user)?,
        })
    }

    pub(super) fn signer(
        &self,
        key: &str,
        at: &Spanned<std::path::PathBuf>,
        raw: Option<raw::Algorithm>,
        kid: Option<String>,
    ) -> Result<Signer, Error> {
        let usable =
            |why| format!("cannot be used ({why}); allowed: a PEM file with a private key for the algorithm");
        super::read(&at.value)
            .and_then(|pem| Signer::from_pem(&pem, algorithm(raw), kid).map_err(usable))
            .map_err(|problem| self.wrong(key, at, at.value.display(), problem))
    }

    fn token_exchange(&self, raw: &raw::Vault) -> Result<TokenExchange, Error> {
        let on_behalf_of = raw.kind.value == raw::Kind::OnBehalfOf;
        let preset = match raw.preset.as_ref() {
            Some(at) => preset_of(at.value),
            None if on_behalf_of => Preset::Auth0Obo,
            None => Preset::Generic,
        };
        let acts = matches!(preset, Preset::Auth0Obo | Preset::EntraObo);
        if let Some(at) = raw.preset.as_ref().filter(|_| on_behalf_of && !acts) {
            let problem = "is no on_behalf_of; allowed: auth0_obo or entra_obo";
            return Err(self.wrong("preset", at, preset.label(), problem));
        }
        if preset != Preset::Generic {
            self.only_for("grant_type", raw.grant_type.as_ref(), "preset: generic")?;
        }
        self.dialect(raw, preset)?;
        let text = |at: &Option<Spanned<String>>| at.as_ref().map(|at| at.value.clone());
        let requested = match text(&raw.requested_token_type) {
            Some(kind) => Some(kind).filter(|kind| kind != "omit"),
            None => (preset != Preset::EntraObo).then(|| ACCESS_TOKEN.to_owned()),
        };
        let subject = text(&raw.subject_token_type).unwrap_or_else(|| ACCESS_TOKEN.to_owned());
        let as_assertion = preset == Preset::EntraObo || subject == "assertion";
        Ok(TokenExchange {
            preset,
            grant_type: text(&raw.grant_type).unwrap_or_else(|| preset.grant_type().to_owned()),
            subject_token_type: (!as_assertion).then_some(subject),
            requested_token_type: requested,
            wanted: self.wanted(raw)?,
            extra: self.extra(raw)?,
            actor: raw.actor.as_ref().map(|at| self.actor(at)).transpose()?,
        })
    }

    /// What a dialect's server refuses anyway, said before it is asked.
    fn dialect(&self, raw: &raw::Vault, preset: Preset) -> Result<(), Error> {
        let others = |why: &str| format!("another preset than {} ({why})", preset.label());
        match preset {
            Preset::Generic | Preset::Okta => Ok(()),
            Preset::Keycloak => {
                let why = others("Keycloak knows neither resource nor delegation");
                self.only_for("resource", raw.resource.as_ref(), &why)?;
                self.only_for("actor", raw.actor.as_ref(), &why)
            }
            Preset::Auth0Obo => {
                let why = others("it exchanges access tokens for an audience, and the client acts");
                self.only_for("resource", raw.resource.as_ref(), &why)?;
                self.only_for("actor", raw.actor.as_ref(), &why)?;
                self.only_for("subject_token_type", raw.subject_token_type.as_ref(), &why)?;
                self.only_for("requested_token_type", raw.requested_token_type.as_ref(), &why)
            }
            Preset::EntraObo => {
                let why = others("it takes a scope such as https://graph.microsoft.com/.default");
                self.only_for("audience", raw.audience.as_ref(), &why)?;
                self.only_for("resource", raw.resource.as_ref(), &why)?;
                self.only_for("actor", raw.actor.as_ref(), &why)?;
                self.only_for("subject_token_type", raw.subject_token_type.as_ref(), &why)
            }
        }
    }

    fn actor(&self, at: &Spanned<raw::Actor>) -> Result<Actor, Error> {
        let raw = &at.value;
        if raw.from != raw::ActorFrom::Config {
            self.only_for("actor.secret", raw.secret.as_ref(), "from: config")?;
        }
        if raw.from != raw::ActorFrom::Header {
            self.only_for("actor.header", raw.header.as_ref(), "from: header")?;
        }
        let from = match raw.from {
            raw::ActorFrom::Config => {
                let what = "{ env: NAME } or { file: PATH } of the actor's token";
                let secret = self.need("actor.secret", &raw.secret, at, what)?;
                let key = format!("vaults.{}.actor.secret", self.name);
                ActorFrom::Config(Arc::new(self.checker.secret(&key, secret)?))
            }
            raw::ActorFrom::Header => {
                let what = "the name of the header that brings the actor's token";
                let header = self.need("actor.header", &raw.header, at, what)?;
                ActorFrom::Header(self.header("actor.header", header, &header.value)?)
            }
            raw::ActorFrom::ClientCredentials => ActorFrom::Own,
        };
        Ok(Actor {
            from,
            token_type: raw.token_type.clone().unwrap_or_else(|| ACCESS_TOKEN.to_owned()),
        })
    }

    fn client_credentials(&self, raw: &raw::Vault) -> Result<ClientCredentials, Error> {
        let credentials = raw
            .credentials
            .as_ref()
            .map(|at| self.credentials(at))
            .transpose()?;
        let forward_identity = match &raw.forward_identity {
            None => None,
            Some(at) if at.value.claim.is_empty() => {
                let problem = "is an empty path; allowed: a claim such as [sub]";
                return Err(self.wrong("forward_identity.claim", at, "[]", problem));
            }
            Some(at) => {
                let header = &at.value.header;
                Some(ForwardIdentity {
                    header: self.header("forward_identity.header", header, &header.value)?,
                    claim: at.value.claim.clone(),
                })
            }
        };
        Ok(ClientCredentials {
            wanted: self.wanted(raw)?,
            extra: self.extra(raw)?,
            credentials,
            forward_identity,
        })
    }

    fn credentials(&self, at: &Spanned<raw::Credentials>) -> Result<CallerCredentials, Error> {
        let from: Vec<Place> = at
            .value
            .from
            .iter()
            .map(|place| match place {
                raw::Place::Header => Place::Header,
                raw::Place::Query => Place::Query,
                raw::Place::Body => Place::Body,
            })
            .collect();
        if from.is_empty() {
            let problem = "names no place; allowed: from: [header, query, body], or some of them";
            return Err(self.wrong("credentials.from", at, "[]", problem));
        }
        let name =
            |given: &Option<String>, default: &str| given.clone().unwrap_or_else(|| default.to_owned());
        let (id_name, secret_name) = (
            name(&at.value.id_name, "client_id"),
            name(&at.value.secret_name, "client_secret"),
        );
        if id_name.is_empty() || secret_name.is_empty() || id_name == secret_name {
            let problem = "are no two names; allowed: two different names of parameters";
            return Err(self.wrong("credentials.id_name", at, id_name, problem));
        }
        Ok(CallerCredentials {
            from,
            id_name,
            secret_name,
        })
    }
}
