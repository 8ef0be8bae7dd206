//! `tv-agent explain HOST`: what happens to a connection to it, and why.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::{chain, load, print};
use crate::addr::HostName;
use crate::cli::{ExplainArgs, exit};
use crate::config::{Capture, Config, Intercept};
use crate::policy::{Found, Route, Routes, Verdict, covers};
use crate::workload::{Cgroup, DEFAULT_PREFIX, Directory, Pod, PodFacts as _, Workload};

mod route;
mod trust;

use route::RouteFacts;

#[derive(Serialize)]
struct Explained {
    host: String,
    workload: Option<String>,
    /// `terminate`, `tunnel`, `refuse`, `native`, or `depends` where no workload was named and one matters.
    decision: &'static str,
    why: String,
    route: Option<RouteFacts>,
    /// By what is known of a process' trust in our CA; empty where TLS is not ended.
    trust: Vec<trust::Stated>,
    /// How each route that names the host, and is for some workloads only, was settled, in their order.
    selectors: Vec<Selected>,
    /// What `capture: dns` or `cidr` means for the host.
    narrowing: Option<String>,
    /// Addresses that the host has now, and whether connections to each are redirected.
    addresses: Vec<Address>,
}

#[derive(Serialize)]
struct Selected {
    route: String,
    selector: String,
    /// `matches`, or which criterion does not, or is not known.
    result: String,
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
    let caller = caller(args, &config);
    let explained = explain(config, &host, &caller, addresses);
    print(args.output.output, &explained, || text(&explained));
    exit::OK
}

/// The workload that is asked about; of its pod, what was said or else what the pod's file says.
fn caller(args: &ExplainArgs, config: &Config) -> Workload {
    let cgroup = args.workload.as_deref().map(|path| Arc::new(Cgroup::at(path)));
    let said = args.pod.pod_namespace.clone().zip(args.pod.pod_name.clone());
    let pod = match said {
        Some((namespace, name)) => Some(Arc::new(Pod {
            namespace,
            name,
            service_account: args.pod.pod_service_account.clone(),
            labels: args.pod.pod_label.iter().cloned().collect(),
            annotations: args.pod.pod_annotation.iter().cloned().collect(),
            containers: Default::default(),
            prefix: config
                .kubernetes
                .as_ref()
                .map_or(DEFAULT_PREFIX, |kubernetes| &kubernetes.rules.prefix)
                .to_owned(),
        })),
        None => {
            let uid = cgroup.as_deref().and_then(|cgroup| cgroup.identity.pod.clone());
            let facts = config.intercept.pod_facts.clone().map(Directory::new);
            uid.zip(facts).and_then(|(uid, facts)| facts.of(&uid))
        }
    };
    Workload {
        cgroup,
        pod,
        uid: args.uid,
        ..Workload::default()
    }
}

/// Pure: what the configuration says about the host, the workload, and the host's addresses.
fn explain(config: Config, host: &HostName, caller: &Workload, addresses: Vec<IpAddr>) -> Explained {
    let path = caller.cgroup.as_deref().map(|cgroup| cgroup.path.as_str());
    let enrolled = path.map(|path| config.intercept.cgroups.iter().any(|glob| covers(glob, path)));
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
    let (vaults, signers) = (config.vaults, config.signers);
    let routes = Routes::new(config.routes);
    let found = routes.find(host, caller);
    let facts = |route: &Route| {
        let signer = || {
            signers
                .get(&route.vault)
                .map(|signer| (&*route.vault, signer).into())
        };
        let obtain = vaults.get(&route.vault).map(Into::into).or_else(signer)?;
        Some(RouteFacts::new(route, host, caller, obtain))
    };
    let (decision, why) = match (found, enrolled) {
        (_, Some(false)) => (
            "native",
            "the workload is in no enrolled cgroup (intercept.cgroups), so nothing is attached to it"
                .to_owned(),
        ),
        (Found::Route(route), _) => (
            "terminate",
            format!("route {} names it ({})", route.name, route::pattern(route, host)),
        ),
        (Found::Unsettled(route), None) if caller.pod.is_none() && caller.uid.is_none() => (
            "depends",
            format!(
                "route {} is for some workloads only; name one with --workload",
                route.name
            ),
        ),
        (Found::Unsettled(route), _) => (
            "refuse",
            format!(
                "route {} names it, and too little is known of the workload to tell whether it is for it; for a pod, \
                 see intercept.pod_facts",
                route.name
            ),
        ),
        (Found::Nothing, _) if routes.names(host) => (
            "tunnel",
            "a route names it, but not for this workload (workloads:); bytes pass untouched".to_owned(),
        ),
        (Found::Nothing, _) => ("tunnel", "no route names it; bytes pass untouched".to_owned()),
    };
    Explained {
        host: host.to_string(),
        workload: path.map(str::to_owned),
        decision,
        why,
        route: match found {
            Found::Route(route) | Found::Unsettled(route) => facts(route),
            Found::Nothing => None,
        },
        trust: match found {
            Found::Route(route) if decision == "terminate" => trust::states(host, route),
            _ => Vec::new(),
        },
        selectors: selectors(&routes, host, caller),
        narrowing,
        addresses,
    }
}

/// Up to the route that settled it; the others were not asked.
fn selectors(routes: &Routes, host: &HostName, caller: &Workload) -> Vec<Selected> {
    let mut all = Vec::new();
    for route in routes.candidates(host) {
        all.extend(route.workloads.iter().map(|selector| Selected {
            route: route.name.to_string(),
            selector: selector.to_string(),
            result: match selector.verdict(caller) {
                Verdict::Admitted => "matches".to_owned(),
                Verdict::Differs(criterion) => format!("{criterion} is another"),
                Verdict::Unknown(criterion) => format!("{criterion} is not known"),
            },
        }));
        if !matches!(route.verdict(caller), Verdict::Differs(_)) {
            break;
        }
    }
    all
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
        text.push_str(&route.text());
    }
    text.push_str(&trust::text(&explained.trust));
    for Selected {
        route,
        selector,
        result,
    } in &explained.selectors
    {
        let _ = writeln!(text, "  route {route} is for {selector}: {result}");
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
    use crate::policy::Selector;

    fn at(path: Option<&str>) -> Workload {
        Workload {
            cgroup: path.map(|path| Arc::new(Cgroup::at(path))),
            ..Workload::default()
        }
    }

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
            let addresses = vec!["127.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap()];
            explain(config(), &host, &at(workload), addresses)
        };
        let routed = ask("gmail.googleapis.com", Some("/kubepods.slice/pod1"));
        assert_eq!(routed.decision, "terminate");
        assert_eq!(
            routed.route.as_ref().unwrap().obtain.token_endpoint.as_deref(),
            Some("https://t.example/oauth/token")
        );
        assert_eq!(
            routed.addresses.iter().map(|a| a.redirected).collect::<Vec<_>>(),
            [false, true]
        );
        assert!(text(&routed).contains("connection google-oauth2"));
        for line in [
            "  the caller's token: header authorization\n",
            "  a provider's own token, or one not of https://t.example/, is refused with 401\n",
            "  a process that is untrusted is refused for 10 s, ",
            "  inject: the provider's token goes out in authorization, in the caller's scheme\n",
            "    it is dropped when the provider answers 401\n",
        ] {
            assert!(text(&routed).contains(line), "{}", text(&routed));
        }
        let tunnelled = ask("example.com", None);
        assert_eq!((tunnelled.decision, tunnelled.trust.len()), ("tunnel", 0));
        assert_eq!(ask("api.github.com", Some("/user.slice")).decision, "native");
    }

    #[test]
    fn it_names_the_selector_that_settled_it() {
        let host = HostName::parse("api.github.com").unwrap();
        let ask = |caller: &Workload| {
            let mut config = Config::from_env(&|_| Some("x.example".to_owned())).unwrap();
            for route in &mut config.routes {
                let namespace = Some("shop".to_owned());
                route.workloads = vec![
                    Selector::cgroup("/batch"),
                    Selector {
                        namespace,
                        ..Selector::default()
                    },
                ];
            }
            explain(config, &host, caller, vec![])
        };
        let results = |explained: &Explained| -> Vec<String> {
            explained.selectors.iter().map(|s| s.result.clone()).collect()
        };
        let pod = "/kubepods/pod8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff";
        let known = Workload {
            pod: Some(Arc::new(Pod {
                annotations: Default::default(),
                containers: Default::default(),
                prefix: crate::workload::DEFAULT_PREFIX.into(),
                namespace: "shop".into(),
                name: "cart-0".into(),
                service_account: "cart".into(),
                labels: Default::default(),
            })),
            ..at(Some(pod))
        };
        // The configuration enrols nothing, which would settle everything.
        let unenrolled = ask(&known);
        assert_eq!(unenrolled.decision, "native");
        assert_eq!(results(&unenrolled), ["cgroup is another", "matches"]);
        assert!(text(&unenrolled).contains("is for {namespace: shop}: matches"));
        assert_eq!(
            results(&ask(&at(Some(pod)))),
            ["cgroup is another", "namespace is not known"]
        );
        assert_eq!(ask(&at(None)).decision, "depends");
        let nameless = Workload {
            uid: Some(1000),
            ..at(None)
        };
        assert_eq!(ask(&nameless).decision, "refuse", "its cgroup might be /batch");
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
    on_untrusted: tunnel
    purge: { statuses: [], json: { pointer: /ok, equals: false } }
"#;
        let config = Config::parse(file, std::path::Path::new("x"), &|_| Some("s".into())).unwrap();
        let explained = explain(config, &HostName::parse("slack.com").unwrap(), &at(None), vec![]);
        let text = text(&explained);
        for line in [
            "  the caller's token: header authorization, cookie at, query parameter t\n",
            "  a provider's own token, or one not of https://t.example/, is passed through as it came\n",
            "  inject: the provider's token goes out in x-key, by itself\n",
            "  a process that is untrusted is tunnelled: the provider sees its own token (untrusted_tunnel)\n",
            "  a process that is needs_restart is tunnelled: the provider sees its own token (needs_restart_tunnel)\n",
            "    it is dropped when the provider answers false at /ok\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        let json = serde_json::to_value(&explained).unwrap();
        assert_eq!(json["route"]["on_foreign_token"], "passthrough");
        assert_eq!(json["route"]["purge_json"], serde_json::json!(["/ok", false]));
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
            let explained = explain(
                config,
                &HostName::parse(host).unwrap(),
                &at(None),
                addresses.to_vec(),
            );
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
