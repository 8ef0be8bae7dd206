//! What `explain` says of a route: the steps of its requests.

use std::fmt::Write as _;

use serde::Serialize;

use crate::addr::HostName;
use crate::config::VaultConfig;
use crate::policy::connection::{self, Denied};
use crate::policy::credentials::{InjectScheme, OnForeignToken};
use crate::policy::{OnMissingToken, OnUntrusted, Route, Wanted};
use crate::sign;
use crate::token::Kind;
use crate::workload::Workload;

#[derive(Serialize)]
pub(super) struct RouteFacts {
    pub(super) name: String,
    pub(super) matched: String,
    on_missing_token: OnMissingToken,
    on_untrusted: OnUntrusted,
    on_foreign_token: OnForeignToken,
    /// Whose tokens are none of a stranger's.
    issuers: Vec<String>,
    /// Where the caller's token is looked for, in this order.
    subject_from: Vec<String>,
    /// Which tokens of the caller are verified, and by what.
    verify: Option<String>,
    #[serde(flatten)]
    pub(super) obtain: Obtain,
    connection: Option<String>,
    /// Patterns for connections that a pod may choose.
    connection_override: Vec<String>,
    /// The connection that the workload's pod chose, or why it does not get it.
    chosen: Option<String>,
    /// What is asked for, by the route or else by the vault.
    audience: Vec<String>,
    resource: Vec<String>,
    scope: Option<String>,
    login_hint: Option<String>,
    inject_header: String,
    inject_scheme: InjectScheme,
    purge_statuses: Vec<u16>,
    /// A JSON pointer and the value there that means a refused token.
    purge_json: Option<(String, serde_json::Value)>,
    workloads: Vec<String>,
}

/// Where the token comes from that goes out.
#[derive(Serialize)]
pub(super) struct Obtain {
    vault: String,
    kind: &'static str,
    /// The dialect of token exchange.
    preset: Option<&'static str>,
    /// Or the issuer that names it. None: the token is made here.
    pub(super) token_endpoint: Option<String>,
    client_auth: Option<&'static str>,
    /// Only tokens that meet the vault's conditions are exchanged.
    conditions: usize,
    /// The verifier of what the token endpoint gives.
    validate: Option<String>,
    /// The key set of each token that is signed.
    keysets: Vec<String>,
    #[serde(skip)]
    wanted: Wanted,
}

impl From<&VaultConfig> for Obtain {
    fn from(config: &VaultConfig) -> Self {
        let settings = &config.settings;
        let (preset, wanted) = match &settings.kind {
            Kind::TokenVault(_) => (None, Wanted::default()),
            Kind::TokenExchange(exchange) => (Some(exchange.preset.label()), exchange.wanted.clone()),
            Kind::ClientCredentials(credentials) => (None, credentials.wanted.clone()),
        };
        Self {
            vault: settings.name.to_string(),
            kind: settings.kind.label(),
            preset,
            token_endpoint: Some(settings.token_endpoint.to_string()),
            client_auth: Some(settings.client_auth.label()),
            conditions: settings.when.len(),
            validate: config.validate.as_deref().map(str::to_owned),
            keysets: Vec::new(),
            wanted,
        }
    }
}

impl From<(&str, &sign::VaultSettings)> for Obtain {
    fn from((name, settings): (&str, &sign::VaultSettings)) -> Self {
        let channel = settings.channel.iter().map(|(_, channel)| channel);
        let all = std::iter::once(&settings.access).chain(channel);
        Self {
            vault: name.to_owned(),
            kind: "jwt_signer",
            preset: None,
            token_endpoint: None,
            client_auth: None,
            conditions: 0,
            validate: None,
            keysets: all.map(|signing| signing.keyset.to_string()).collect(),
            wanted: Wanted::default(),
        }
    }
}

/// The pattern of the route that names the host.
pub(super) fn pattern(route: &Route, host: &HostName) -> String {
    let pattern = route.hosts.iter().find(|pattern| pattern.matches(host));
    pattern.map(ToString::to_string).unwrap_or_default()
}

impl RouteFacts {
    pub(super) fn new(route: &Route, host: &HostName, caller: &Workload, obtain: Obtain) -> Self {
        let (wanted, default) = (&route.wanted, &obtain.wanted);
        let several =
            |own: &[String], default: &[String]| if own.is_empty() { default } else { own }.to_vec();
        let credentials = &route.credentials;
        let rule = credentials.purge.json.as_ref();
        Self {
            name: route.name.to_string(),
            matched: pattern(route, host),
            on_missing_token: route.on_missing_token,
            on_untrusted: route.on_untrusted,
            on_foreign_token: credentials.on_foreign,
            issuers: credentials.issuers.iter().map(ToString::to_string).collect(),
            subject_from: std::iter::once("header authorization".to_owned())
                .chain(credentials.places.iter().map(ToString::to_string))
                .collect(),
            verify: route.verify.as_ref().map(ToString::to_string),
            connection: wanted.connection.as_deref().map(str::to_owned),
            connection_override: route.connection_override.clone(),
            chosen: match connection::of(route, caller) {
                Ok(chosen) => chosen.and_then(|wanted| wanted.connection.as_deref().map(str::to_owned)),
                // Who asks about no workload in particular is not told that it is not known.
                Err(Denied::Unknown { .. }) if caller.cgroup.is_none() => None,
                Err(denied) => Some(format!("refused: {denied}")),
            },
            audience: several(&wanted.audience, &default.audience),
            resource: several(&wanted.resource, &default.resource),
            scope: wanted.scope.clone().or_else(|| default.scope.clone()),
            login_hint: route.login_hint.as_ref().map(ToString::to_string),
            inject_header: credentials.inject.header.to_string(),
            inject_scheme: credentials.inject.scheme,
            purge_statuses: credentials.purge.statuses.clone(),
            purge_json: rule.map(|rule| (rule.pointer.clone(), rule.equals.clone())),
            workloads: route.workloads.iter().map(ToString::to_string).collect(),
            obtain,
        }
    }

    /// For people: what is taken, and the three steps.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        self.taken(&mut text);
        self.obtained(&mut text);
        self.injected(&mut text);
        text
    }

    fn taken(&self, text: &mut String) {
        let missing = match self.on_missing_token {
            OnMissingToken::Reject => "refused with 401",
            OnMissingToken::Passthrough => "passed through",
        };
        let foreign = match self.on_foreign_token {
            OnForeignToken::Reject => "refused with 401",
            OnForeignToken::Passthrough => "passed through as it came",
            OnForeignToken::Exchange => "exchanged like any other",
        };
        let strangers = if self.issuers.is_empty() {
            "a provider's own token".to_owned()
        } else {
            let own = self.issuers.join(", ");
            format!("a provider's own token, or one not of {own},")
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  the caller's token: {}", self.subject_from.join(", "));
        let _ = writeln!(text, "  a request without a token is {missing}");
        let _ = writeln!(text, "  {strangers} is {foreign}");
        let verify = self
            .verify
            .as_deref()
            .unwrap_or("nothing; the vault judges the caller's token");
        let _ = writeln!(text, "  verify: {verify}");
    }

    fn obtained(&self, text: &mut String) {
        let Obtain { vault, kind, .. } = &self.obtain;
        let preset = self.obtain.preset.map(|preset| format!(", preset {preset}"));
        let place = match &self.obtain.token_endpoint {
            Some(at) => format!(" at {at}"),
            None => format!(" with keys of {}", self.obtain.keysets.join(", ")),
        };
        let preset = preset.unwrap_or_default();
        let _ = writeln!(text, "  obtain: vault {vault} ({kind}{preset}){place}");
        let joined = |list: &[String]| (!list.is_empty()).then(|| list.join(", "));
        for (name, value) in [
            (
                "client authentication",
                self.obtain.client_auth.map(str::to_owned),
            ),
            ("connection", self.connection.clone()),
            ("a pod may choose", joined(&self.connection_override)),
            ("the pod's annotation", self.chosen.clone()),
            ("audience", joined(&self.audience)),
            ("resource", joined(&self.resource)),
            ("scope", self.scope.clone()),
            ("login_hint", self.login_hint.clone()),
            ("what it gives is verified by", self.obtain.validate.clone()),
        ] {
            if let Some(value) = value {
                let _ = writeln!(text, "    {name} {value}");
            }
        }
        let conditions = self.obtain.conditions;
        if conditions > 0 {
            let _ = writeln!(
                text,
                "    only tokens that meet one of its {conditions} conditions are exchanged"
            );
        }
    }

    fn injected(&self, text: &mut String) {
        let scheme = match self.inject_scheme {
            InjectScheme::AsPresented => "in the caller's scheme",
            InjectScheme::Bearer => "as Bearer",
            InjectScheme::Token => "as token",
            InjectScheme::Basic => "as Basic",
            InjectScheme::None => "by itself",
        };
        let signed = self.obtain.token_endpoint.is_none();
        let whose = if signed { "our" } else { "the provider's" };
        let header = &self.inject_header;
        let _ = writeln!(text, "  inject: {whose} token goes out in {header}, {scheme}");
        if signed {
            return;
        }
        let statuses: Vec<String> = self.purge_statuses.iter().map(ToString::to_string).collect();
        let mut purge = statuses.join(", ");
        if let Some((pointer, value)) = &self.purge_json {
            let or = if purge.is_empty() { "" } else { ", or " };
            let _ = write!(purge, "{or}{value} at {pointer}");
        }
        let _ = writeln!(text, "    it is dropped when the provider answers {purge}");
    }
}
