//! What `explain` says of a route: the steps of its requests.

use std::fmt::Write as _;

use serde::Serialize;

use crate::addr::HostName;
use crate::policy::{OnMissingToken, Route, Wanted};
use crate::token::{Kind, VaultSettings};

#[derive(Serialize)]
pub(super) struct RouteFacts {
    pub(super) name: String,
    pub(super) matched: String,
    pub(super) vault: String,
    pub(super) kind: &'static str,
    /// The dialect of token exchange.
    pub(super) preset: Option<&'static str>,
    pub(super) token_endpoint: String,
    pub(super) client_auth: &'static str,
    pub(super) connection: Option<String>,
    /// What is asked for, by the route or else by the vault.
    pub(super) audience: Vec<String>,
    pub(super) resource: Vec<String>,
    pub(super) scope: Option<String>,
    pub(super) login_hint: Option<String>,
    /// Only tokens that meet the vault's conditions are exchanged.
    pub(super) conditions: usize,
    /// Which tokens of the caller are verified, and by what.
    pub(super) verify: Option<String>,
    pub(super) on_missing_token: OnMissingToken,
    pub(super) workloads: Vec<String>,
}

/// The pattern of the route that names the host.
pub(super) fn pattern(route: &Route, host: &HostName) -> String {
    let pattern = route.hosts.iter().find(|pattern| pattern.matches(host));
    pattern.map(ToString::to_string).unwrap_or_default()
}

impl RouteFacts {
    pub(super) fn new(route: &Route, host: &HostName, settings: &VaultSettings) -> Self {
        let none = Wanted::default();
        let (preset, default) = match &settings.kind {
            Kind::TokenVault(_) => (None, &none),
            Kind::TokenExchange(exchange) => (Some(exchange.preset.label()), &exchange.wanted),
            Kind::ClientCredentials(credentials) => (None, &credentials.wanted),
        };
        let wanted = &route.wanted;
        let several =
            |own: &[String], default: &[String]| if own.is_empty() { default } else { own }.to_vec();
        Self {
            name: route.name.to_string(),
            matched: pattern(route, host),
            vault: route.vault.to_string(),
            kind: settings.kind.label(),
            preset,
            token_endpoint: settings.token_endpoint.to_string(),
            client_auth: settings.client_auth.label(),
            connection: wanted.connection.as_deref().map(str::to_owned),
            audience: several(&wanted.audience, &default.audience),
            resource: several(&wanted.resource, &default.resource),
            scope: wanted.scope.clone().or_else(|| default.scope.clone()),
            login_hint: route.login_hint.as_ref().map(ToString::to_string),
            conditions: settings.when.len(),
            verify: route.verify.as_ref().map(ToString::to_string),
            on_missing_token: route.on_missing_token,
            workloads: route.workloads.iter().map(ToString::to_string).collect(),
        }
    }

    /// For people: a line for each fact.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let missing = match self.on_missing_token {
            OnMissingToken::Reject => "refused with 401",
            OnMissingToken::Passthrough => "passed through",
        };
        // Writing to a String cannot fail.
        if let Some(verify) = &self.verify {
            let _ = writeln!(text, "  verifies the {verify}");
        }
        let preset = self
            .preset
            .map(|preset| format!(", preset {preset}"))
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "  vault {} ({}{preset}) at {}",
            self.vault, self.kind, self.token_endpoint
        );
        let _ = writeln!(text, "  client authentication {}", self.client_auth);
        let joined = |list: &[String]| (!list.is_empty()).then(|| list.join(", "));
        for (name, value) in [
            ("connection", self.connection.clone()),
            ("audience", joined(&self.audience)),
            ("resource", joined(&self.resource)),
            ("scope", self.scope.clone()),
            ("login_hint", self.login_hint.clone()),
        ] {
            if let Some(value) = value {
                let _ = writeln!(text, "  {name} {value}");
            }
        }
        if self.conditions > 0 {
            let _ = writeln!(
                text,
                "  only tokens that meet one of its {} conditions are exchanged",
                self.conditions
            );
        }
        let _ = writeln!(text, "  a request without a token is {missing}");
        text
    }
}
