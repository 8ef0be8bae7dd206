//! Which pods are enrolled, and which of their containers are left alone. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::asked::{Asked, Asking, Rules, asked};
use super::objects::Seen;

/// What is to be covered of the pods of this node: all that the kernel half is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// By the UID that the cgroup is named by. One that is missing is not known (yet, or any more).
    pub pods: BTreeMap<String, Order>,
    /// Whether pods and namespaces were listed once; until then little is known of anybody.
    pub listed: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub enrol: bool,
    /// Containers of it are left alone: its other containers are covered one by one.
    pub apart: bool,
    /// Those that are known by now.
    pub exclude: BTreeSet<String>,
}

/// What was decided of one pod, and what is wrong with what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// None: it depends on its namespace, which is not known.
    pub enrol: Option<bool>,
    /// Names of containers that are left alone.
    pub exclude: BTreeSet<String>,
    pub warnings: Vec<String>,
}

/// `namespace`: None when it is not known; else the value of its label.
pub fn decide(pod: &Seen, namespace: Option<Option<&str>>, rules: &Rules) -> Decision {
    let asking = Asking {
        labels: &pod.labels,
        annotations: &pod.annotations,
        host_network: pod.host_network,
        containers: &pod.names.iter().map(String::as_str).collect(),
    };
    let Asked {
        enrol,
        exclude,
        mut warnings,
    } = asked(asking, rules);
    let mut by_namespace = || match namespace? {
        Some(said) => Some(rules.said(said, "namespace", &mut warnings)),
        None => Some(rules.unsaid()),
    };
    let enrol = if pod.terminated {
        Some(false)
    } else {
        enrol.or_else(&mut by_namespace)
    };
    Decision {
        enrol,
        exclude,
        warnings,
    }
}

/// The order for a pod, once it is decided.
pub fn order(pod: &Seen, decision: &Decision) -> Option<Order> {
    let ids = pod.containers.iter();
    let ids = ids.filter(|(_, name)| decision.exclude.contains(*name));
    Some(Order {
        enrol: decision.enrol?,
        apart: !decision.exclude.is_empty(),
        exclude: ids.map(|(id, _)| id.clone()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::asked::Enrol;

    fn rules(enrol: Enrol) -> Rules {
        Rules {
            prefix: "tv-agent.io".into(),
            enrol,
            exclude: ["istio-proxy".to_owned()].into(),
        }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        pairs.collect()
    }

    #[test]
    fn who_asks_who_says_no_and_who_does_not_say() {
        const ENROL: &str = "tv-agent.io/enrol";
        // Label, annotation, namespace's label → with `asked`, with `all`, warnings.
        let cases = [
            (None, None, Some(None), Some(false), Some(true), 0),
            (None, None, Some(Some("true")), Some(true), Some(true), 0),
            (None, None, Some(Some("false")), Some(false), Some(false), 0),
            (None, None, Some(Some("yes")), Some(false), Some(true), 1),
            (None, None, None, None, None, 0),
            (Some("true"), None, Some(Some("false")), Some(true), Some(true), 0),
            (
                None,
                Some("false"),
                Some(Some("true")),
                Some(false),
                Some(false),
                0,
            ),
            (Some("true"), None, None, Some(true), Some(true), 0),
            (Some("True"), None, Some(Some("true")), Some(false), Some(true), 1),
            (None, Some(""), None, Some(false), Some(true), 1),
            (Some("true"), Some("true"), None, Some(true), Some(true), 0),
            (Some("true"), Some("false"), None, Some(false), Some(true), 1),
        ];
        for (label, annotation, namespace, asked, all, warnings) in cases {
            let one = |value: Option<&str>| value.map_or_else(BTreeMap::new, |value| map(&[(ENROL, value)]));
            let pod = Seen {
                labels: one(label),
                annotations: one(annotation),
                ..Seen::default()
            };
            for (mode, wanted) in [(Enrol::Asked, asked), (Enrol::All, all)] {
                let decision = decide(&pod, namespace, &rules(mode));
                assert_eq!(
                    decision.enrol, wanted,
                    "{label:?} {annotation:?} {namespace:?} {mode:?}"
                );
                assert_eq!(decision.warnings.len(), warnings, "{:?}", decision.warnings);
            }
            let ended = Seen {
                terminated: true,
                ..pod.clone()
            };
            assert_eq!(decide(&ended, namespace, &rules(Enrol::All)).enrol, Some(false));
            let host = Seen {
                host_network: true,
                ..pod
            };
            let decision = decide(&host, Some(Some("true")), &rules(Enrol::All));
            let itself = label.or(annotation).is_some();
            assert_eq!(
                decision.enrol,
                if itself { all } else { Some(false) },
                "{label:?} {annotation:?}"
            );
        }
    }

    #[test]
    fn containers_are_left_alone_by_name() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let mut pod = Seen {
            labels: map(&[("tv-agent.io/enrol", "true")]),
            annotations: map(&[("tv-agent.io/exclude-containers", "logs, nobody,")]),
            names: ["app", "istio-proxy", "logs"].map(str::to_owned).into(),
            containers: map(&[(&a, "app"), (&b, "logs")]),
            ..Seen::default()
        };
        let decision = decide(&pod, None, &rules(Enrol::Asked));
        let names = ["istio-proxy", "logs"].map(str::to_owned);
        assert_eq!(decision.exclude, names.into());
        assert!(
            decision.warnings[0].contains("\"nobody\""),
            "{:?}",
            decision.warnings
        );
        let order = order(&pod, &decision).unwrap();
        assert_eq!(
            (order.enrol, order.apart, order.exclude),
            (true, true, [b].into())
        );
        pod.names = vec!["app".into()];
        pod.annotations.clear();
        let decision = decide(&pod, None, &rules(Enrol::Asked));
        assert!(!super::order(&pod, &decision).unwrap().apart);
    }
}
