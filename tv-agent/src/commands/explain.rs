//! `tv-agent explain HOST`: what happens to a connection to it, and why.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;

use super::{chain, load, print};
use crate::addr::HostName;
use crate::cli::{ExplainArgs, exit};
use crate::config::{Capture, Config, Intercept};
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
    /// What `capture: dns` or `cidr` means for the host.
    narrowing: Option<String>,
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
            let (redirected, why) = redirected(&config.intercept, host, address);
            Address {
                address,
                redirected,
                why,
            }
        })
        .collect();
    let narrowing = narrowing(&config.intercept.capture, host);
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
        narrowing,
        addresses,
    }
}

fn redirected(intercept: &Intercept, host: &HostName, address: IpAddr) -> (bool, String) {
    if let Some(net) = intercept.bypass.iter().find(|net| net.contains(&address)) {
        return (false, format!("in intercept.bypass_cidrs {net}"));
    }
    let ports = format!("TCP to ports {:?}", intercept.ports);
    match &intercept.capture {
        Capture::All => (true, ports),
        Capture::Cidr(nets) => match nets.iter().find(|net| net.contains(&address)) {
            Some(net) => (true, format!("{ports}, in intercept.capture_cidrs {net}")),
            None => (false, "in none of intercept.capture_cidrs".to_owned()),
        },
        Capture::Dns { hosts, .. } if hosts.iter().any(|known| known.matches(host)) => (
            true,
            format!("{ports}, once it is known to be an address of {host}"),
        ),
        Capture::Dns { .. } => (
            false,
            "capture: dns, unless a routed host has the address too, or the workload's namespace is unsure"
                .to_owned(),
        ),
    }
}

fn narrowing(capture: &Capture, host: &HostName) -> Option<String> {
    let hosts = match capture {
        Capture::All => return None,
        Capture::Cidr(_) => {
            return Some("capture: cidr: only addresses in intercept.capture_cidrs are looked at".to_owned());
        }
        Capture::Dns { hosts, .. } => hosts,
    };
    let exact = hosts.iter().any(|known| known.exact() == Some(host));
    let text = if exact {
        "capture: dns: its addresses are learnt from the workloads' DNS answers, and looked up by the agent each minute"
    } else if hosts.iter().any(|known| known.matches(host)) {
        "capture: dns: its addresses are learnt from the workloads' DNS answers alone, for a wildcard names it; one that \
         a workload has otherwise (DNS over HTTPS, nss-resolve, nscd, /etc/hosts, written down) is not looked at"
    } else {
        "capture: dns: no route names it, so its addresses are not looked at"
    };
    Some(text.to_owned())
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
        if !route.workloads.is_empty() {
            let _ = writeln!(text, "  only for {}", route.workloads.join(", "));
        }
    }
    if let Some(narrowing) = &explained.narrowing {
        let _ = writeln!(text, "  {narrowing}");
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

    #[test]
    fn narrowing_is_explained() {
        let env = |_: &str| Some("t.example".to_owned());
        let ask = |host: &str, cidr: bool| {
            let mut config = Config::from_env(&env).unwrap();
            config.intercept.capture = if cidr {
                Capture::Cidr(vec!["192.0.2.0/25".parse().unwrap()])
            } else {
                Capture::Dns {
                    hosts: config
                        .routes
                        .iter()
                        .flat_map(|route| route.hosts.clone())
                        .collect(),
                    unsure_for: std::time::Duration::from_secs(1),
                }
            };
            let addresses = ["192.0.2.1", "192.0.2.200"].map(|address| address.parse().unwrap());
            let explained = explain(config, &HostName::parse(host).unwrap(), None, addresses.to_vec());
            let redirected = [0, 1].map(|n| explained.addresses[n].redirected);
            (redirected, explained.narrowing.unwrap())
        };
        let (redirected, why) = ask("api.github.com", false);
        assert!(
            redirected == [true, true] && why.contains("looked up by the agent"),
            "{why}"
        );
        let (redirected, why) = ask("x.googleapis.com", false);
        assert!(redirected == [true, true] && why.contains("wildcard"), "{why}");
        let (redirected, why) = ask("example.com", false);
        assert!(redirected == [false, false] && why.contains("no route"), "{why}");
        assert_eq!(ask("api.github.com", true).0, [true, false]);
    }
}
