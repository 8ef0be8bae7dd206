//! `tv-agent explain HOST`: what happens to a connection to it, and why.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;

use super::{chain, load, print};
use crate::addr::HostName;
use crate::cli::{ExplainArgs, exit};
use crate::config::{Config, Intercept};
use crate::policy::{OnMissingToken, Route, Routes, Wanted, covers};
use crate::token::{Kind, VaultSettings};
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
    kind: &'static str,
    /// The dialect of token exchange.
    preset: Option<&'static str>,
    token_endpoint: String,
    client_auth: &'static str,
    connection: Option<String>,
    /// What is asked for, by the route or else by the vault.
    audience: Vec<String>,
    resource: Vec<String>,
    scope: Option<String>,
    login_hint: Option<String>,
    /// Only tokens that meet the vault's conditions are exchanged.
    conditions: usize,
    /// Which tokens of the caller are verified, and by what.
    verify: Option<String>,
    on_missing_token: OnMissingToken,
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
    let vaults = config.vaults;
    let routes = Routes::new(config.routes);
    let route = routes.find(host, &caller).and_then(|route| {
        let settings = &vaults.get(&route.vault)?.settings;
        Some(facts(route, host, settings))
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

fn facts(route: &Route, host: &HostName, settings: &VaultSettings) -> RouteFacts {
    let none = Wanted::default();
    let (preset, default) = match &settings.kind {
        Kind::TokenVault(_) => (None, &none),
        Kind::TokenExchange(exchange) => (Some(exchange.preset.label()), &exchange.wanted),
        Kind::ClientCredentials(credentials) => (None, &credentials.wanted),
    };
    let wanted = &route.wanted;
    let several = |own: &[String], default: &[String]| if own.is_empty() { default } else { own }.to_vec();
    RouteFacts {
        name: route.name.to_string(),
        matched: route
            .hosts
            .iter()
            .find(|h| h.matches(host))
            .map(ToString::to_string)
            .unwrap_or_default(),
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
        workloads: route.workloads.clone(),
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
        if let Some(verify) = &route.verify {
            let _ = writeln!(text, "  verifies the {verify}");
        }
        let preset = route
            .preset
            .map(|preset| format!(", preset {preset}"))
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "  vault {} ({}{preset}) at {}",
            route.vault, route.kind, route.token_endpoint
        );
        let _ = writeln!(text, "  client authentication {}", route.client_auth);
        let joined = |list: &[String]| (!list.is_empty()).then(|| list.join(", "));
        for (name, value) in [
            ("connection", route.connection.clone()),
            ("audience", joined(&route.audience)),
            ("resource", joined(&route.resource)),
            ("scope", route.scope.clone()),
            ("login_hint", route.login_hint.clone()),
        ] {
            if let Some(value) = value {
                let _ = writeln!(text, "  {name} {value}");
            }
        }
        if route.conditions > 0 {
            let _ = writeln!(
                text,
                "  only tokens that meet one of its {} conditions are exchanged",
                route.conditions
            );
        }
        let _ = writeln!(text, "  a request without a token is {missing}");
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
        assert_eq!(ask("example.com", None).decision, "tunnel");
        assert_eq!(ask("api.github.com", Some("/user.slice")).decision, "native");
    }
}
