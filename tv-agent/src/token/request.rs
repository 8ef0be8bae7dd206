//! What is asked of a token endpoint: settings and a grant in, parameters in order out. Pure.
//!
//! The cache's key is made of the same list, so that nothing that decides a token can be missing from it.

use super::settings::{ACCESS_TOKEN, Actor};
use super::settings::{
    ClientCredentials, FEDERATED, JWT, Kind, REFRESH_TOKEN, TokenExchange, TokenVault, VaultSubject, Worker,
};
use crate::policy::Wanted;
use crate::secret::Secret;

/// What one request wants, besides what its vault is set to.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub wanted: &'a Wanted,
    pub login_hint: Option<&'a str>,
    pub subject: Option<&'a Secret>,
    pub actor: Option<&'a Secret>,
    pub user: Option<&'a str>,
    /// The agent wants a token for itself, to stand as actor.
    pub own: bool,
}

/// The value of a parameter.
pub(super) enum Value<'a> {
    Text(&'a str),
    Secret(&'a Secret),
    /// A request that the worker signs for this user, anew for each call.
    Signed(&'a Worker, &'a str),
}

/// What a grant lacks for its vault's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error("the request brings no token to exchange")]
    Subject,
    #[error("the request brings no actor token")]
    Actor,
    #[error("the request does not say for which user it is")]
    User,
    #[error("the route names no connection")]
    Connection,
}

type Parameters<'a> = Vec<(&'a str, Value<'a>)>;

/// The parameters of one call, without the client's authentication.
pub(super) fn parameters<'a>(kind: &'a Kind, ask: &Ask<'a>) -> Result<Parameters<'a>, Missing> {
    match kind {
        _ if ask.own => Ok(vec![("grant_type", Value::Text("client_credentials"))]),
        Kind::TokenVault(vault) => token_vault(vault, ask),
        Kind::TokenExchange(exchange) => token_exchange(exchange, ask),
        Kind::ClientCredentials(credentials) => Ok(client_credentials(credentials, ask)),
    }
}

fn token_vault<'a>(vault: &'a TokenVault, ask: &Ask<'a>) -> Result<Parameters<'a>, Missing> {
    let connection = ask.wanted.connection.as_deref().ok_or(Missing::Connection)?;
    let presented = || ask.subject.map(Value::Secret).ok_or(Missing::Subject);
    let (subject, kind) = match &vault.subject {
        VaultSubject::AccessToken => (presented()?, ACCESS_TOKEN),
        VaultSubject::RefreshToken => (presented()?, REFRESH_TOKEN),
        VaultSubject::Worker(worker) => {
            let user = ask.user.filter(|user| !user.is_empty()).ok_or(Missing::User)?;
            (Value::Signed(worker, user), JWT)
        }
    };
    let mut list = vec![
        ("grant_type", Value::Text(FEDERATED)),
        ("subject_token", subject),
        ("subject_token_type", Value::Text(kind)),
        ("requested_token_type", Value::Text(vault.requested_token_type())),
        ("connection", Value::Text(connection)),
    ];
    list.extend(ask.login_hint.map(|hint| ("login_hint", Value::Text(hint))));
    list.extend(
        ask.wanted
            .scope
            .as_deref()
            .map(|scope| ("scope", Value::Text(scope))),
    );
    Ok(list)
}

fn token_exchange<'a>(exchange: &'a TokenExchange, ask: &Ask<'a>) -> Result<Parameters<'a>, Missing> {
    let subject = ask.subject.map(Value::Secret).ok_or(Missing::Subject)?;
    let mut list = vec![("grant_type", Value::Text(&exchange.grant_type))];
    match &exchange.subject_token_type {
        Some(kind) => {
            list.push(("subject_token", subject));
            list.push(("subject_token_type", Value::Text(kind)));
        }
        None => list.push(("assertion", subject)),
    }
    if let Some(Actor { token_type, .. }) = &exchange.actor {
        let actor = ask.actor.ok_or(Missing::Actor)?;
        list.push(("actor_token", Value::Secret(actor)));
        list.push(("actor_token_type", Value::Text(token_type)));
    }
    if let Some(kind) = &exchange.requested_token_type {
        list.push(("requested_token_type", Value::Text(kind)));
    }
    add_wanted(&mut list, &exchange.wanted, ask.wanted);
    list.extend(exchange.preset.fixed().iter().map(|(n, v)| (*n, Value::Text(v))));
    add_extra(&mut list, &exchange.extra);
    Ok(list)
}

fn client_credentials<'a>(credentials: &'a ClientCredentials, ask: &Ask<'a>) -> Parameters<'a> {
    let mut list = vec![("grant_type", Value::Text("client_credentials"))];
    add_wanted(&mut list, &credentials.wanted, ask.wanted);
    add_extra(&mut list, &credentials.extra);
    list
}

/// The route's audience, resource and scope, each in place of the vault's own.
fn add_wanted<'a>(list: &mut Parameters<'a>, vault: &'a Wanted, route: &'a Wanted) {
    let several = |route: &'a [String], vault: &'a [String]| if route.is_empty() { vault } else { route };
    for audience in several(&route.audience, &vault.audience) {
        list.push(("audience", Value::Text(audience)));
    }
    for resource in several(&route.resource, &vault.resource) {
        list.push(("resource", Value::Text(resource)));
    }
    if let Some(scope) = route.scope.as_deref().or(vault.scope.as_deref()) {
        list.push(("scope", Value::Text(scope)));
    }
}

fn add_extra<'a>(list: &mut Parameters<'a>, extra: &'a [(String, String)]) {
    list.extend(
        extra
            .iter()
            .map(|(name, value)| (name.as_str(), Value::Text(value))),
    );
}

#[cfg(test)]
mod tests;
