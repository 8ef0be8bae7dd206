//! Which pods get trust, and which of their containers are left alone: the node agent's rules. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// The configuration's part of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Of labels and annotations, without the slash.
    pub prefix: String,
    /// What counts where nobody says anything: `enrol: all`, or `asked`.
    pub unsaid: bool,
    /// Names of containers that are left alone in every pod.
    pub exclude: BTreeSet<String>,
}

/// Sidecars of service meshes: they bring roots of their own, and what they send was a workload's before.
pub const SIDECARS: [&str; 6] = [
    "istio-proxy",
    "istio-init",
    "istio-validation",
    "linkerd-proxy",
    "linkerd-init",
    "linkerd-network-validator",
];

/// What a pod says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    pub labels: &'a BTreeMap<String, String>,
    pub annotations: &'a BTreeMap<String, String>,
    pub host_network: bool,
    /// Names of its containers, of all kinds.
    pub containers: &'a BTreeSet<&'a str>,
}

/// What was decided, and what is wrong with what the pod says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub enrol: bool,
    /// Names of containers that are left alone.
    pub exclude: BTreeSet<String>,
    pub warnings: Vec<String>,
}

/// `namespace`: what is to become of a pod that says nothing of its own, by its namespace.
pub fn asked(pod: Asking<'_>, namespace: bool, rules: &Rules) -> Asked {
    let mut warnings = Vec::new();
    let enrol = format!("{}/enrol", rules.prefix);
    let own = [pod.labels.get(&enrol), pod.annotations.get(&enrol)];
    let own: BTreeSet<&str> = own.into_iter().flatten().map(String::as_str).collect();
    let own: Vec<&str> = own.into_iter().collect();
    let enrolled = match own[..] {
        ["true"] => true,
        ["false"] => false,
        [other] => {
            warnings.push(format!(
                "{enrol} of the pod is {other:.64?}; allowed: \"true\" or \"false\""
            ));
            rules.unsaid
        }
        [_, _, ..] => {
            warnings.push(format!(
                "the pod's label and annotation {enrol} contradict each other; give one of them"
            ));
            rules.unsaid
        }
        // The node's own services live there: they have to ask themselves.
        [] => namespace && !pod.host_network,
    };
    let mut exclude: BTreeSet<String> = rules
        .exclude
        .iter()
        .filter(|name| pod.containers.contains(name.as_str()))
        .cloned()
        .collect();
    let more = format!("{}/exclude-containers", rules.prefix);
    let list = pod.annotations.get(&more).map(String::as_str).unwrap_or_default();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if pod.containers.contains(name) {
            exclude.insert(name.to_owned());
        } else {
            warnings.push(format!(
                "{more} names {name:.64?}, which is no container of this pod"
            ));
        }
    }
    Asked {
        enrol: enrolled,
        exclude,
        warnings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        pairs.collect()
    }

    fn rules(unsaid: bool) -> Rules {
        Rules {
            prefix: "tv-agent.io".to_owned(),
            unsaid,
            exclude: SIDECARS.map(str::to_owned).into(),
        }
    }

    fn decide(labels: &[(&str, &str)], annotations: &[(&str, &str)], namespace: bool, unsaid: bool) -> Asked {
        let pod = Asking {
            labels: &map(labels),
            annotations: &map(annotations),
            host_network: false,
            containers: &["app", "logs", "istio-proxy"].into(),
        };
        asked(pod, namespace, &rules(unsaid))
    }

    #[test]
    fn the_pods_own_word_wins_over_its_namespaces() {
        const ENROL: &str = "tv-agent.io/enrol";
        for (labels, annotations, namespace, unsaid, enrolled) in [
            (&[][..], &[][..], true, false, true),
            (&[], &[], false, false, false),
            (&[(ENROL, "true")], &[], false, false, true),
            (&[], &[(ENROL, "true")], false, false, true),
            (&[(ENROL, "false")], &[], true, false, false),
            (&[], &[(ENROL, "false")], true, true, false),
            (&[(ENROL, "true")], &[(ENROL, "true")], false, false, true),
            // Neither yes nor no: as if nobody had said anything.
            (&[(ENROL, "yes")], &[], true, false, false),
            (&[(ENROL, "yes")], &[], false, true, true),
            (&[(ENROL, "true")], &[(ENROL, "false")], true, false, false),
            (&[("other.io/enrol", "true")], &[], false, false, false),
        ] {
            let asked = decide(labels, annotations, namespace, unsaid);
            assert_eq!(
                asked.enrol, enrolled,
                "{labels:?} {annotations:?} {namespace} {unsaid}"
            );
        }
        assert_eq!(decide(&[(ENROL, "yes")], &[], true, false).warnings.len(), 1);
        let odd = decide(&[(ENROL, "true")], &[(ENROL, "false")], true, false);
        assert!(odd.warnings[0].contains("contradict"));
    }

    #[test]
    fn pods_in_the_hosts_network_have_to_ask_themselves() {
        let empty = BTreeMap::new();
        let label = map(&[("tv-agent.io/enrol", "true")]);
        for (labels, enrolled) in [(&empty, false), (&label, true)] {
            let pod = Asking {
                labels,
                annotations: &empty,
                host_network: true,
                containers: &["app"].into(),
            };
            assert_eq!(asked(pod, true, &rules(true)).enrol, enrolled);
        }
    }

    #[test]
    fn containers_are_excluded_by_default_and_by_annotation() {
        let asked = decide(
            &[],
            &[("tv-agent.io/exclude-containers", " logs,, nobody ")],
            true,
            false,
        );
        assert_eq!(asked.exclude, ["istio-proxy", "logs"].map(str::to_owned).into());
        assert_eq!(asked.warnings.len(), 1, "{:?}", asked.warnings);
        assert!(asked.warnings[0].contains("\"nobody\""));
    }
}
