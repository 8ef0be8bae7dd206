//! What a route asks of its vault, and whether a vault of that kind can give it.

use serde_saphyr::Spanned;

use super::super::Error;
use super::super::raw::{self, vault::OneOrMore};
use super::Checker;
use super::route::line;
use crate::policy::Wanted;
use crate::token::VaultSettings;
use crate::token::settings::{Kind, Preset};

impl Checker<'_> {
    /// A route's connection, audience, resource and scope.
    pub(super) fn wanted(&self, raw: &raw::Route, vault: &VaultSettings) -> Result<Wanted, Error> {
        let key = |rest: &str| format!("routes.{}.{rest}", raw.name.value);
        let list = |name: &str, at: &Option<Spanned<OneOrMore>>| {
            let Some(at) = at else { return Ok(Vec::new()) };
            let list = at.value.clone().list();
            if list.is_empty() || list.iter().any(String::is_empty) {
                let problem = "is empty; allowed: a word or a list of words";
                return Err(self.value(&key(name), at, "", problem));
            }
            Ok(list)
        };
        let label = vault.kind.label();
        match &vault.kind {
            Kind::TokenVault(_) => {
                let given = [
                    ("audience", raw.audience.as_ref().map(line)),
                    ("resource", raw.resource.as_ref().map(line)),
                ];
                self.idle(raw, &given, label)?;
                let problem = "is empty; allowed: the name of an Auth0 connection, such as google-oauth2";
                match &raw.connection {
                    Some(at) if at.value.is_empty() => {
                        return Err(self.value(&key("connection"), at, "", problem));
                    }
                    None => return Err(self.value(&key("connection"), &raw.name, "", problem)),
                    Some(_) => {}
                }
            }
            Kind::TokenExchange(_) | Kind::ClientCredentials(_) => {
                let given = [
                    ("connection", raw.connection.as_ref().map(line)),
                    ("login_hint", raw.login_hint.as_ref().map(line)),
                ];
                self.idle(raw, &given, label)?;
            }
        }
        let wanted = Wanted {
            connection: raw.connection.as_ref().map(|at| at.value.as_str().into()),
            audience: list("audience", &raw.audience)?,
            resource: list("resource", &raw.resource)?,
            scope: raw.scope.as_ref().map(|at| at.value.clone()),
        };
        self.required(raw, vault, &wanted)?;
        Ok(wanted)
    }

    /// What the dialect's server does not do without, in the route or in the vault.
    fn required(&self, raw: &raw::Route, vault: &VaultSettings, wanted: &Wanted) -> Result<(), Error> {
        let Kind::TokenExchange(exchange) = &vault.kind else {
            return Ok(());
        };
        let audiences = match wanted.audience.len() {
            0 => exchange.wanted.audience.len(),
            own => own,
        };
        let scope = wanted.scope.is_some() || exchange.wanted.scope.is_some();
        let (name, what) = match exchange.preset {
            Preset::Auth0Obo if audiences != 1 => ("audience", "exactly one audience"),
            Preset::EntraObo | Preset::Okta if !scope => ("scope", "a scope"),
            Preset::EntraObo if !wanted.audience.is_empty() || !wanted.resource.is_empty() => {
                ("audience", "a scope in place of audience and resource")
            }
            Preset::Keycloak | Preset::Auth0Obo if !wanted.resource.is_empty() => {
                ("resource", "an audience in place of resource")
            }
            _ => return Ok(()),
        };
        let problem = format!(
            "does not suit preset {} of vault {}; allowed: {what}, in the route or in the vault",
            exchange.preset.label(),
            vault.name
        );
        let key = format!("routes.{}.{name}", raw.name.value);
        Err(self.value(&key, &raw.name, &raw.name.value, problem))
    }
}
