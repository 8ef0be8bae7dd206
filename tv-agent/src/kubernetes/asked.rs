//! What labels and annotations ask for: the rules of the node agent and of the admission webhook. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// The configuration's part of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Of labels and annotations, without the slash.
    pub prefix: String,
    pub enrol: Enrol,
    /// Names of containers that are left alone in every pod.
    pub exclude: BTreeSet<String>,
}

/// Which pods are enrolled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Enrol {
    /// Those that ask, or whose namespace does.
    #[default]
    Asked,
    /// Those that do not say no.
    All,
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
    /// None: it says nothing, so its namespace decides.
    pub enrol: Option<bool>,
    /// Names of containers that are left alone.
    pub exclude: BTreeSet<String>,
    pub warnings: Vec<String>,
}

impl Rules {
    /// For everybody who does not say.
    pub fn unsaid(&self) -> bool {
        self.enrol == Enrol::All
    }

    /// The label and annotation by which a pod or namespace is enrolled.
    pub fn key(&self) -> String {
        format!("{}/enrol", self.prefix)
    }

    /// What a `value` of [`key`](Self::key) means, of a pod or of a namespace.
    pub fn said(&self, value: &str, of: &str, warnings: &mut Vec<String>) -> bool {
        match value {
            "true" => true,
            "false" => false,
            other => {
                warnings.push(format!(
                    "{} of the {of} is {other:.64?}; allowed: \"true\" or \"false\". The {of} counts as one that does \
                     not say",
                    self.key()
                ));
                self.unsaid()
            }
        }
    }
}

pub fn asked(pod: Asking<'_>, rules: &Rules) -> Asked {
    let mut warnings = Vec::new();
    let enrol = rules.key();
    let own = [pod.labels.get(&enrol), pod.annotations.get(&enrol)];
    let own: BTreeSet<&str> = own.into_iter().flatten().map(String::as_str).collect();
    let own: Vec<&str> = own.into_iter().collect();
    let enrolled = match own[..] {
        [said] => Some(rules.said(said, "pod", &mut warnings)),
        [_, _, ..] => {
            warnings.push(format!(
                "the pod's label and annotation {enrol} contradict each other; give one of them"
            ));
            Some(rules.unsaid())
        }
        // The node's own services live there, this agent among them: they have to ask themselves.
        [] => pod.host_network.then_some(false),
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
                "{more} names {name:.64?}, which is no container of this pod; nothing is left alone by it"
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

    fn rules(all: bool) -> Rules {
        Rules {
            prefix: "tv-agent.io".to_owned(),
            enrol: if all { Enrol::All } else { Enrol::Asked },
            exclude: SIDECARS.map(str::to_owned).into(),
        }
    }

    fn decide(labels: &[(&str, &str)], annotations: &[(&str, &str)], all: bool) -> Asked {
        let pod = Asking {
            labels: &map(labels),
            annotations: &map(annotations),
            host_network: false,
            containers: &["app", "logs", "istio-proxy"].into(),
        };
        asked(pod, &rules(all))
    }

    #[test]
    fn the_pods_own_word_wins_over_its_namespaces() {
        const ENROL: &str = "tv-agent.io/enrol";
        for (labels, annotations, all, enrolled) in [
            (&[][..], &[][..], false, None),
            (&[], &[], true, None),
            (&[(ENROL, "true")], &[], false, Some(true)),
            (&[], &[(ENROL, "true")], false, Some(true)),
            (&[(ENROL, "false")], &[], true, Some(false)),
            (&[], &[(ENROL, "false")], true, Some(false)),
            (&[(ENROL, "true")], &[(ENROL, "true")], false, Some(true)),
            // Neither yes nor no: as if nobody had said anything, its namespace included.
            (&[(ENROL, "yes")], &[], false, Some(false)),
            (&[(ENROL, "yes")], &[], true, Some(true)),
            (&[(ENROL, "true")], &[(ENROL, "false")], false, Some(false)),
            (&[("other.io/enrol", "true")], &[], false, None),
        ] {
            let asked = decide(labels, annotations, all);
            assert_eq!(asked.enrol, enrolled, "{labels:?} {annotations:?} {all}");
        }
        assert_eq!(decide(&[(ENROL, "yes")], &[], false).warnings.len(), 1);
        let odd = decide(&[(ENROL, "true")], &[(ENROL, "false")], false);
        assert!(odd.warnings[0].contains("contradict"));
    }

    #[test]
    fn pods_in_the_hosts_network_have_to_ask_themselves() {
        let empty = BTreeMap::new();
        let label = map(&[("tv-agent.io/enrol", "true")]);
        for (labels, enrolled) in [(&empty, Some(false)), (&label, Some(true))] {
            let pod = Asking {
                labels,
                annotations: &empty,
                host_network: true,
                containers: &["app"].into(),
            };
            assert_eq!(asked(pod, &rules(true)).enrol, enrolled);
        }
    }

    #[test]
    fn containers_are_excluded_by_default_and_by_annotation() {
        let asked = decide(
            &[],
            &[("tv-agent.io/exclude-containers", " logs,, nobody ")],
            false,
        );
        assert_eq!(asked.exclude, ["istio-proxy", "logs"].map(str::to_owned).into());
        assert_eq!(asked.warnings.len(), 1, "{:?}", asked.warnings);
        assert!(asked.warnings[0].contains("\"nobody\""));
    }
}
