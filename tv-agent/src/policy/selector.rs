//! Which workloads a route is for. Pure, and of three values: what is not known of a workload is not taken for "no".

use std::collections::BTreeMap;
use std::fmt;

use crate::workload::{Pod, Workload};

/// Criteria that must all hold. Patterns: `*` stands for any characters, of one path component for `cgroup`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Path below the cgroup2 mount; its subtree is covered too.
    pub cgroup: Option<String>,
    /// Pattern for a systemd unit.
    pub unit: Option<String>,
    /// Container id, or how it begins.
    pub container: Option<String>,
    /// Pod UID.
    pub pod: Option<String>,
    /// Patterns for the pod's namespace, name and service account.
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub service_account: Option<String>,
    /// Labels of the pod, each with exactly this value.
    pub labels: BTreeMap<String, String>,
    pub uid: Option<u32>,
    /// The name that `uid` was given by, for people.
    pub user: Option<String>,
}

/// Whether a selector, or a route, is for a workload. The text names the criterion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Admitted,
    Differs(&'static str),
    /// It cannot be told: so much is not known of the workload.
    Unknown(&'static str),
}

impl Selector {
    /// The form that is just a cgroup pattern.
    pub fn cgroup(glob: impl Into<String>) -> Self {
        Self {
            cgroup: Some(glob.into()),
            ..Self::default()
        }
    }

    pub fn verdict(&self, workload: &Workload) -> Verdict {
        let mut unknown = None;
        for (criterion, holds) in self.criteria(workload) {
            match holds {
                Some(true) => {}
                // Whatever else is not known: it cannot be this one.
                Some(false) => return Verdict::Differs(criterion),
                None => unknown = unknown.or(Some(criterion)),
            }
        }
        unknown.map_or(Verdict::Admitted, Verdict::Unknown)
    }

    /// Each criterion that is asked for, and whether it holds; None: not known.
    fn criteria<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = (&'static str, Option<bool>)> + 'a {
        let cgroup = workload.cgroup.as_deref();
        let of_cgroup = move |name, wanted: &'a Option<String>, holds: fn(&str, &str) -> bool, is| {
            let wanted = wanted.as_deref()?;
            let is: fn(&crate::workload::Cgroup) -> Option<&str> = is;
            Some((name, cgroup.map(|c| is(c).is_some_and(|is| holds(wanted, is)))))
        };
        let in_pod = move |name, wanted: &'a Option<String>, is: fn(&Pod) -> &str| {
            let wanted = wanted.as_deref()?;
            Some((name, of_pod(workload, |pod| matches(wanted, is(pod)))))
        };
        let fixed = [
            of_cgroup("cgroup", &self.cgroup, covers, |c| Some(&c.path)),
            of_cgroup("unit", &self.unit, matches, |c| c.identity.unit.as_deref()),
            of_cgroup("container", &self.container, begins, |c| {
                c.identity.container.as_deref()
            }),
            of_cgroup("pod", &self.pod, str::eq_ignore_ascii_case, |c| {
                c.identity.pod.as_deref()
            }),
            self.uid.map(|uid| ("uid", workload.uid.map(|is| is == uid))),
            in_pod("namespace", &self.namespace, |pod| &pod.namespace),
            in_pod("name", &self.name, |pod| &pod.name),
            in_pod("service_account", &self.service_account, |pod| {
                &pod.service_account
            }),
        ];
        let labels = self.labels.iter().map(move |(label, value)| {
            let holds = of_pod(workload, |pod| pod.labels.get(label) == Some(value));
            ("labels", holds)
        });
        fixed.into_iter().flatten().chain(labels)
    }
}

/// What holds for the workload's pod: no for a workload that is in none, None for one whose facts are not known.
fn of_pod(workload: &Workload, holds: impl Fn(&Pod) -> bool) -> Option<bool> {
    match (&workload.pod, workload.cgroup.as_deref()) {
        (Some(pod), _) => Some(holds(pod)),
        (None, Some(cgroup)) if cgroup.identity.pod.is_none() => Some(false),
        (None, _) => None,
    }
}

/// As it is written in a configuration.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = [
            ("unit", &self.unit),
            ("container", &self.container),
            ("pod", &self.pod),
            ("namespace", &self.namespace),
            ("name", &self.name),
            ("service_account", &self.service_account),
            ("user", &self.user),
        ];
        let texts = texts
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key}: {}", value.as_deref()?)));
        let uid = self.uid.filter(|_| self.user.is_none());
        let uid = uid.map(|uid| format!("uid: {uid}"));
        let labels: Vec<_> = self.labels.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        let labels = (!labels.is_empty()).then(|| format!("labels: {{{}}}", labels.join(", ")));
        let rest: Vec<_> = texts.chain(uid).chain(labels).collect();
        match (&self.cgroup, rest.is_empty()) {
            (Some(cgroup), true) => f.write_str(cgroup),
            (Some(cgroup), false) => write!(f, "{{cgroup: {cgroup}, {}}}", rest.join(", ")),
            (None, _) => write!(f, "{{{}}}", rest.join(", ")),
        }
    }
}

/// Whether `path` is what `glob` names, or lies below it.
pub fn covers(glob: &str, path: &str) -> bool {
    let mut parts = path.split('/').filter(|p| !p.is_empty());
    glob.split('/')
        .filter(|g| !g.is_empty())
        .all(|g| parts.next().is_some_and(|p| matches(g, p)))
}

fn begins(prefix: &str, id: &str) -> bool {
    id.starts_with(prefix)
}

/// Linear in the text for each `*`: names are chosen by workloads, and must not cost us time.
pub(super) fn matches(glob: &str, text: &str) -> bool {
    let mut pieces = glob.split('*');
    let head = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(head) else {
        return false;
    };
    let Some(tail) = pieces.next_back() else {
        return rest.is_empty();
    };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(tail)
}

#[cfg(test)]
mod tests;
