//! Stage 7: what becomes of a connection. Pure.

use std::sync::Arc;

use crate::addr::HostName;
use crate::hello::First;
use crate::policy::{Found, OnUntrusted, Route, Routes};
use crate::trust::{Belief, Standing};
use crate::workload::Workload;

/// What happens to names that cannot be seen (no SNI, ECH, not TLS) and are not known to be a routed host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknownName {
    #[default]
    Tunnel,
    Refuse,
}

/// The verdict on one connection. The text is the reason: a metrics label and a log field.
#[derive(Clone, Debug)]
pub enum Decision {
    /// End TLS here: a route names this host.
    Terminate { host: HostName, route: Arc<Route> },
    /// Copy the bytes to the origin, untouched.
    Tunnel(&'static str),
    /// Close with a reset.
    Refuse(&'static str),
}

/// Decides by what the client said first and by who it is.
///
/// `candidate`: the origin's address is known to serve a routed host, so a connection to it without a
/// visible name might carry a subject token to a provider (DESIGN §5.8).
pub fn connection(
    first: &First,
    routes: &Routes,
    workload: &Workload,
    candidate: bool,
    on_unknown_name: OnUnknownName,
) -> Decision {
    let unknown = |why_tunnel, why_refuse| {
        if candidate {
            Decision::Refuse(why_refuse)
        } else {
            match on_unknown_name {
                OnUnknownName::Tunnel => Decision::Tunnel(why_tunnel),
                OnUnknownName::Refuse => Decision::Refuse(why_tunnel),
            }
        }
    };
    match first {
        First::Hello(hello) => match &hello.sni {
            Some(host) => match routes.find(host, workload) {
                Found::Route(route) => Decision::Terminate {
                    host: host.clone(),
                    route: route.clone(),
                },
                // To let it through would be to let the subject token through (DESIGN invariant 1).
                Found::Unsettled(_) => Decision::Refuse("workload_unknown"),
                // With ECH the visible name is only the outer one.
                Found::Nothing if hello.ech && candidate => Decision::Refuse("ech_candidate"),
                Found::Nothing => Decision::Tunnel("not_routed"),
            },
            None => unknown("no_sni", "no_sni_candidate"),
        },
        First::NotTls => unknown("not_tls", "not_tls_candidate"),
        // A hello that we could not see to its end may still name a routed host: letting it through would
        // let the subject token through with it.
        First::TooLong => Decision::Refuse("hello_too_long"),
        First::TooSlow => Decision::Refuse("hello_too_slow"),
        First::Bad => Decision::Refuse("hello_malformed"),
        First::Silent => unknown("silent", "silent_candidate"),
        First::Closed => Decision::Refuse("closed_early"),
    }
}

/// What becomes of a decision to end TLS for a process, by what is known of its trust in our CA.
///
/// A handshake harms nobody: nothing goes upstream before it is finished. So whoever was not seen to distrust us may
/// try, and who was may try again after a while.
pub fn trusting(decision: Decision, standing: Standing) -> Decision {
    let Decision::Terminate { route, .. } = &decision else {
        return decision;
    };
    match (route.on_untrusted, standing.belief) {
        (OnUntrusted::Tunnel, Belief::Untrusted) => Decision::Tunnel("untrusted_tunnel"),
        (OnUntrusted::Tunnel, Belief::NeedsRestart) => Decision::Tunnel("needs_restart_tunnel"),
        (OnUntrusted::Refuse, Belief::Untrusted) if standing.paused => Decision::Refuse("untrusted"),
        _ => decision,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::Hello;
    use crate::policy::{HostPattern, OnMissingToken, Selector};

    fn route(host: &str, workloads: Vec<Selector>) -> Route {
        Route {
            name: "r".into(),
            hosts: vec![HostPattern::parse(host).unwrap()],
            vault: "main".into(),
            wanted: Arc::new(crate::policy::Wanted::connection("c")),
            login_hint: None,
            verify: None,
            on_missing_token: OnMissingToken::Reject,
            on_untrusted: OnUntrusted::Refuse,
            credentials: Default::default(),
            workloads,
            connection_override: Vec::new(),
        }
    }

    fn verdict(first: &First, candidate: bool, unknown: OnUnknownName) -> String {
        let routes = Routes::new(vec![
            route("api.example.com", vec![]),
            route("some.example.com", vec![Selector::cgroup("/a")]),
        ]);
        let workload = Workload::default();
        match connection(first, &routes, &workload, candidate, unknown) {
            Decision::Terminate { host, .. } => format!("terminate {host}"),
            Decision::Tunnel(why) => format!("tunnel {why}"),
            Decision::Refuse(why) => format!("refuse {why}"),
        }
    }

    fn hello(sni: Option<&str>, ech: bool) -> First {
        First::Hello(Hello {
            sni: sni.map(|s| HostName::parse(s).unwrap()),
            alpn: vec![],
            ech,
        })
    }

    #[test]
    fn who_does_not_trust_us_is_refused_for_a_while_or_tunnelled_where_the_route_says_so() {
        let become_of = |on_untrusted, belief, paused| {
            let mut route = route("api.example.com", vec![]);
            route.on_untrusted = on_untrusted;
            let host = HostName::parse("api.example.com").unwrap();
            let route = Arc::new(route);
            match trusting(Decision::Terminate { host, route }, Standing { belief, paused }) {
                Decision::Terminate { .. } => "terminate",
                Decision::Tunnel(why) | Decision::Refuse(why) => why,
            }
        };
        for belief in Belief::ALL {
            let (refused, tunnelled) = match belief {
                Belief::Untrusted => ("untrusted", "untrusted_tunnel"),
                Belief::NeedsRestart => ("terminate", "needs_restart_tunnel"),
                _ => ("terminate", "terminate"),
            };
            assert_eq!(
                become_of(OnUntrusted::Refuse, belief, true),
                refused,
                "{belief:?}"
            );
            assert_eq!(
                become_of(OnUntrusted::Refuse, belief, false),
                "terminate",
                "{belief:?}"
            );
            for paused in [true, false] {
                assert_eq!(
                    become_of(OnUntrusted::Tunnel, belief, paused),
                    tunnelled,
                    "{belief:?}"
                );
            }
        }
        // What is not ended here does not ask.
        let untrusted = Standing {
            belief: Belief::Untrusted,
            paused: true,
        };
        let decision = trusting(Decision::Tunnel("not_routed"), untrusted);
        assert!(matches!(decision, Decision::Tunnel("not_routed")));
    }

    #[test]
    fn every_first_word_has_its_verdict() {
        use OnUnknownName::{Refuse, Tunnel};
        let cases: &[(First, bool, OnUnknownName, &str)] = &[
            (
                hello(Some("api.example.com"), false),
                false,
                Tunnel,
                "terminate api.example.com",
            ),
            (
                hello(Some("api.example.com"), true),
                true,
                Refuse,
                "terminate api.example.com",
            ),
            (
                hello(Some("some.example.com"), false),
                false,
                Tunnel,
                "refuse workload_unknown",
            ),
            (
                hello(Some("other.example.com"), false),
                true,
                Refuse,
                "tunnel not_routed",
            ),
            (
                hello(Some("public.example"), true),
                true,
                Tunnel,
                "refuse ech_candidate",
            ),
            (
                hello(Some("public.example"), true),
                false,
                Tunnel,
                "tunnel not_routed",
            ),
            (hello(None, false), false, Tunnel, "tunnel no_sni"),
            (hello(None, false), true, Tunnel, "refuse no_sni_candidate"),
            (hello(None, false), false, Refuse, "refuse no_sni"),
            (First::NotTls, false, Tunnel, "tunnel not_tls"),
            (First::NotTls, true, Tunnel, "refuse not_tls_candidate"),
            (First::Silent, false, Tunnel, "tunnel silent"),
            (First::TooLong, false, Tunnel, "refuse hello_too_long"),
            (First::TooSlow, false, Tunnel, "refuse hello_too_slow"),
            (First::Bad, false, Tunnel, "refuse hello_malformed"),
        ];
        for (first, candidate, unknown, expected) in cases {
            assert_eq!(&verdict(first, *candidate, *unknown), expected, "{first:?}");
        }
    }
}
