//! `tv-agent explain HOST`: what happens to a connection to it, and why.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;

use super::{chain, load, print};
use crate::addr::HostName;
use crate::cli::{ExplainArgs, exit};
use crate::config::{Config, Intercept};
use crate::policy::credentials::{InjectScheme, OnForeignToken};
use crate::policy::{OnMissingToken, Routes, covers};
use crate::workload::Workload;

#[derive(Serialize)]
struct Explained {
    host: String,
    workload: Option<String>,
    /// `terminate`, `tunnel` or `native`.
    decision: &'static str,
    why: String,
    route: Option<RouteFacts>,
    /// Addresses that the host has now, and whether connections to each are redirected.
    addresses: Vec<Address>,
}

#[derive(Serialize)]
struct RouteFacts {
    name: String,
    matched: String,
    vault: String,
    token_endpoint: String,
    connection: String,
    login_hint: Option<String>,
    on_missing_token: OnMissingToken,
    on_foreign_token: OnForeignToken,
    /// Whose tokens are none of a stranger's.
    issuers: Vec<String>,
    /// Where the caller's token is looked for, in this order.
    subject_from: Vec<String>,
    inject_header: String,
    inject_scheme: InjectScheme,
    purge_statuses: Vec<u16>,
    /// A JSON pointer and the value there that means a refused token.
    purge_json: Option<(String, serde_json::Value)>,
    workloads: Vec<String>,
}

#[derive(Serialize)]
struct Address {
    address: IpAddr,
    redirected: bool,
    why: String,
}

pub async fn run(args: &ExplainArgs) -> u8 {
    let config = match load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            return exit::USAGE;
        }
    };
    let Some(host) = HostName::parse(&args.host) else {
        tracing::error!(
            "{:?} is not a host name; allowed: a DNS name such as api.github.com",
            args.host
        );
        return exit::USAGE;
    };
    let resolved = tokio::net::lookup_host((host.as_str(), 443)).await;
    let addresses = resolved
        .map(|list| list.map(|a| a.ip()).collect())
        .unwrap_or_default();
    let explained = explain(config, &host, args.workload.as_deref(), addresses);
    print(args.output.output, &explained, || text(&explained));
    exit::OK
}

/// Pure: what the configuration says about the host, the workload, and the host's addresses.
fn explain(config: Config, host: &HostName, workload: Option<&str>, addresses: Vec<IpAddr>) -> Explained {
    let enrolled = workload.map(|path| config.intercept.cgroups.iter().any(|glob| covers(glob, path)));
    let addresses = addresses
        .into_iter()
        .map(|address| {
            let address = address.to_canonical();
            let (redirected, why) = redirected(&config.intercept, address);
            Address {
                address,
                redirected,
                why,
            }
        })
        .collect();
    let caller = Workload {
        cgroup_id: 0,
        cgroup: workload.map(Into::into),
        tgid: 0,
        uid: 0,
    };
    let named = config
        .routes
        .iter()
        .any(|r| r.hosts.iter().any(|h| h.matches(host)));
    let endpoints: std::collections::BTreeMap<_, _> = config
        .vaults
        .iter()
        .map(|(name, v)| (name.clone(), v.settings.token_endpoint.to_string()))
        .collect();
    let routes = Routes::new(config.routes);
    let route = routes.find(host, &caller).map(|route| RouteFacts {
        name: route.name.to_string(),
        matched: route
            .hosts
            .iter()
            .find(|h| h.matches(host))
            .map(ToString::to_string)
            .unwrap_or_default(),
        vault: route.vault.to_string(),
        token_endpoint: endpoints.get(&route.vault).cloned().unwrap_or_default(),
        connection: route.connection.to_string(),
        login_hint: route.login_hint.as_deref().map(str::to_owned),
        on_missing_token: route.on_missing_token,
        on_foreign_token: route.credentials.on_foreign,
        issuers: route
            .credentials
            .issuers
            .iter()
            .map(ToString::to_string)
            .collect(),
        subject_from: std::iter::once("header authorization".to_owned())
            .chain(route.credentials.places.iter().map(ToString::to_string))
            .collect(),
        inject_header: route.credentials.inject.header.to_string(),
        inject_scheme: route.credentials.inject.scheme,
        purge_statuses: route.credentials.purge.statuses.clone(),
        purge_json: route
            .credentials
            .purge
            .json
            .as_ref()
            .map(|rule| (rule.pointer.clone(), rule.equals.clone())),
        workloads: route.workloads.clone(),
    });
    let (decision, why) = match (&route, enrolled) {
        (_, Some(false)) => (
            "native",
            "the workload is in no enrolled cgroup (intercept.cgroups), so nothing is attached to it"
                .to_owned(),
        ),
        (Some(route), _) => (
            "terminate",
            format!("route {} names it ({})", route.name, route.matched),
        ),
        (None, _) if named => (
            "tunnel",
            "a route names it, but not for this workload (workloads:); bytes pass untouched".to_owned(),
        ),
        (None, _) => ("tunnel", "no route names it; bytes pass untouched".to_owned()),
    };
    Explained {
        host: host.to_string(),
        workload: workload.map(str::to_owned),
        decision,
        why,
        route,
        addresses,
    }
}

fn redirected(intercept: &Intercept, address: IpAddr) -> (bool, String) {
    match intercept.bypass.iter().find(|net| net.contains(&address)) {
        Some(net) => (false, format!("in intercept.bypass_cidrs {net}")),
        None => (true, format!("TCP to ports {:?}", intercept.ports)),
    }
}

fn text(explained: &Explained) -> String {
    let mut text = format!("{}: {} — {}\n", explained.host, explained.decision, explained.why);
    if let Some(route) = &explained.route {
        let missing = match route.on_missing_token {
            OnMissingToken::Reject => "refused with 401",
            OnMissingToken::Passthrough => "passed through",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  vault {} at {}", route.vault, route.token_endpoint);
        let _ = writeln!(text, "  connection {}", route.connection);
        if let Some(hint) = &route.login_hint {
            let _ = writeln!(text, "  login_hint {hint}");
        }
        let _ = writeln!(text, "  a request without a token is {missing}");
        credentials(&mut text, route);
        if !route.workloads.is_empty() {
            let _ = writeln!(text, "  only for {}", route.workloads.join(", "));
        }
    }
    if explained.addresses.is_empty() {
        text.push_str("  it has no address now\n");
    }
    for Address {
        address,
        redirected,
        why,
    } in &explained.addresses
    {
        let verb = if *redirected {
            "redirected"
        } else {
            "not redirected"
        };
        let _ = writeln!(text, "  {address}: {verb}, {why}");
    }
    text
}

fn credentials(text: &mut String, route: &RouteFacts) {
    let foreign = match route.on_foreign_token {
        OnForeignToken::Reject => "refused with 401",
        OnForeignToken::Passthrough => "passed through as it came",
        OnForeignToken::Exchange => "exchanged like any other",
    };
    let scheme = match route.inject_scheme {
        InjectScheme::AsPresented => "in the caller's scheme",
        InjectScheme::Bearer => "as Bearer",
        InjectScheme::Token => "as token",
        InjectScheme::Basic => "as Basic",
        InjectScheme::None => "by itself",
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "  the caller's token: {}", route.subject_from.join(", "));
    let strangers = if route.issuers.is_empty() {
        "a provider's own token".to_owned()
    } else {
        format!(
            "a provider's own token, or one not of {},",
            route.issuers.join(", ")
        )
    };
    let _ = writeln!(text, "  {strangers} is {foreign}");
    let _ = writeln!(
        text,
        "  the provider's token goes out in {}, {scheme}",
        route.inject_header
    );
    let statuses: Vec<String> = route.purge_statuses.iter().map(ToString::to_string).collect();
    let mut purge = statuses.join(", ");
    if let Some((pointer, value)) = &route.purge_json {
        let _ = write!(
            purge,
            "{}{value} at {pointer}",
            if purge.is_empty() { "" } else { ", or " }
        );
    }
    let _ = writeln!(text, "  it is dropped when the provider answers {purge}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_says_why() {
        let env = |name: &str| {
            Some(if name == "AUTH0_DOMAIN" {
                "t.example".into()
            } else {
                "x".to_owned()
            })
        };
        let config = || {
            let mut config = Config::from_env(&env).unwrap();
            config.intercept.cgroups = vec!["/kubepods.slice".into()];
            config
        };
        let ask = |host: &str, workload: Option<&str>| {
            let host = HostName::parse(host).unwrap();
            explain(
                config(),
                &host,
                workload,
                vec!["127.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap()],
            )
        };
        let routed = ask("gmail.googleapis.com", Some("/kubepods.slice/pod1"));
        assert_eq!(routed.decision, "terminate");
        assert_eq!(
            routed.route.as_ref().unwrap().token_endpoint,
            "https://t.example/oauth/token"
        );
        assert_eq!(
            routed.addresses.iter().map(|a| a.redirected).collect::<Vec<_>>(),
            [false, true]
        );
        assert!(text(&routed).contains("connection google-oauth2"));
        for line in [
            "  the caller's token: header authorization\n",
            "  a provider's own token, or one not of https://t.example/, is refused with 401\n",
            "  the provider's token goes out in authorization, in the caller's scheme\n",
            "  it is dropped when the provider answers 401\n",
        ] {
            assert!(text(&routed).contains(line), "{}", text(&routed));
        }
        assert_eq!(ask("example.com", None).decision, "tunnel");
        assert_eq!(ask("api.github.com", Some("/user.slice")).decision, "native");
    }

    #[test]
    fn it_tells_how_tokens_come_and_go() {
        let file = r#"
vaults: { main: { kind: auth0_token_vault, domain: t.example, client_id: x, client_auth: { method: client_secret_post, secret: { env: S } } } }
routes:
  - name: slack
    hosts: [slack.com]
    vault: main
    connection: slack
    subject_from: [{ cookie: at }, { query: t }]
    inject: { header: X-Key, scheme: none }
    on_foreign_token: passthrough
    purge: { statuses: [], json: { pointer: /ok, equals: false } }
"#;
        let config = Config::parse(file, std::path::Path::new("x"), &|_| Some("s".into())).unwrap();
        let explained = explain(config, &HostName::parse("slack.com").unwrap(), None, vec![]);
        let text = text(&explained);
        for line in [
            "  the caller's token: header authorization, cookie at, query parameter t\n",
            "  a provider's own token, or one not of https://t.example/, is passed through as it came\n",
            "  the provider's token goes out in x-key, by itself\n",
            "  it is dropped when the provider answers false at /ok\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        let json = serde_json::to_value(&explained).unwrap();
        assert_eq!(json["route"]["on_foreign_token"], "passthrough");
        assert_eq!(json["route"]["purge_json"], serde_json::json!(["/ok", false]));
    }
}
