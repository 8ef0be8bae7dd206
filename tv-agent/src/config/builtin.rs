//! The hosts that are routed when there is no configuration file: the Kong plugin's, and Token Vault's
//! other well-known providers. Connection names are Auth0's defaults.

use std::sync::Arc;

use crate::policy::{Credentials, HostPattern, OnMissingToken, OnUntrusted, Route, Wanted};

/// Name, connection, hosts, and what happens without credentials.
const TABLE: &[(&str, &str, &[&str], OnMissingToken)] = &[
    (
        "google",
        "google-oauth2",
        &["*.googleapis.com", "calendar.google.com", "drive.google.com"],
        OnMissingToken::Reject,
    ),
    (
        "github",
        "github",
        &["api.github.com", "uploads.github.com"],
        OnMissingToken::Reject,
    ),
    // git asks without credentials first, and public repositories need none: nothing to swap then.
    (
        "github-git",
        "github",
        &["github.com"],
        OnMissingToken::Passthrough,
    ),
    (
        "slack",
        "sign-in-with-slack",
        &["slack.com", "files.slack.com"],
        OnMissingToken::Reject,
    ),
    (
        "microsoft-graph",
        "windowslive",
        &["graph.microsoft.com"],
        OnMissingToken::Reject,
    ),
    (
        "box",
        "box",
        &["api.box.com", "upload.box.com"],
        OnMissingToken::Reject,
    ),
    (
        "dropbox",
        "dropbox",
        &["api.dropboxapi.com", "content.dropboxapi.com"],
        OnMissingToken::Reject,
    ),
    (
        "salesforce",
        "salesforce",
        &["*.my.salesforce.com"],
        OnMissingToken::Reject,
    ),
    ("discord", "discord", &["discord.com"], OnMissingToken::Reject),
    (
        "stripe",
        "stripe",
        &["api.stripe.com", "files.stripe.com"],
        OnMissingToken::Reject,
    ),
    (
        "basecamp",
        "basecamp",
        &["3.basecampapi.com"],
        OnMissingToken::Reject,
    ),
    ("twitch", "twitch", &["api.twitch.tv"], OnMissingToken::Reject),
];

pub fn routes(vault: &Arc<str>) -> Vec<Route> {
    TABLE
        .iter()
        .map(|(name, connection, hosts, on_missing_token)| Route {
            name: (*name).into(),
            hosts: hosts
                .iter()
                .map(|h| HostPattern::parse(h).expect("checked by a test"))
                .collect(),
            vault: vault.clone(),
            wanted: Arc::new(Wanted::connection(*connection)),
            login_hint: None,
            verify: None,
            on_missing_token: *on_missing_token,
            on_untrusted: OnUntrusted::Refuse,
            credentials: Credentials::default(),
            workloads: Vec::new(),
            connection_override: Vec::new(),
        })
        .collect()
}
