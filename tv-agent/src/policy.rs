//! Stage 5: which route a host name belongs to. Pure: no clock, no I/O, nothing asynchronous.

use std::collections::HashMap;
use std::sync::Arc;

use crate::addr::HostName;
use crate::workload::Workload;

pub mod credentials;

pub use credentials::Credentials;

/// A host of a route: an exact name, or `*.` and a suffix that stands for one label or more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    suffix: HostName,
    wildcard: bool,
}

/// Why a host pattern was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatternError {
    #[error("is not a host name; allowed: a DNS name such as api.github.com, or *. and a DNS name")]
    NotAName,
    #[error(
        "would match a whole top-level domain; allowed: a wildcard below a domain, such as *.googleapis.com"
    )]
    TooWide,
}

impl HostPattern {
    /// # Errors
    /// When `text` is no host name, or a wildcard right below a top-level domain.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let suffix = HostName::parse(name).ok_or(PatternError::NotAName)?;
        if wildcard && !suffix.as_str().contains('.') {
            return Err(PatternError::TooWide);
        }
        Ok(Self { suffix, wildcard })
    }

    pub fn matches(&self, host: &HostName) -> bool {
        if !self.wildcard {
            return *host == self.suffix;
        }
        host.as_str()
            .strip_suffix(self.suffix.as_str())
            .is_some_and(|head| head.len() > 1 && head.ends_with('.'))
    }

    /// The DNS subtree that a name constraint has to permit for this pattern (RFC 5280 §4.2.1.10).
    pub fn subtree(&self) -> &str {
        self.suffix.as_str()
    }

    /// The name itself, when the pattern is no wildcard.
    pub fn exact(&self) -> Option<&HostName> {
        (!self.wildcard).then_some(&self.suffix)
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.wildcard {
            f.write_str("*.")?;
        }
        self.suffix.fmt(f)
    }
}

/// What happens to a request on a routed host that carries no credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMissingToken {
    #[default]
    Reject,
    Passthrough,
}

/// One rule: requests to these hosts get a token of this connection from this vault.
#[derive(Clone, Debug)]
pub struct Route {
    pub name: Arc<str>,
    pub hosts: Vec<HostPattern>,
    pub vault: Arc<str>,
    pub connection: Arc<str>,
    pub login_hint: Option<Arc<str>>,
    pub on_missing_token: OnMissingToken,
    pub credentials: Credentials,
    /// cgroup paths (`*` stands for one component or part of it, a pattern covers its subtree); empty: all.
    pub workloads: Vec<String>,
}

impl Route {
    fn admits(&self, workload: &Workload) -> bool {
        self.workloads.is_empty()
            || workload
                .cgroup
                .as_deref()
                .is_some_and(|path| self.workloads.iter().any(|glob| covers(glob, path)))
    }
}

/// All routes of one configuration, with an index.
#[derive(Debug, Default)]
pub struct Routes {
    routes: Vec<Arc<Route>>,
    exact: HashMap<HostName, Vec<usize>>,
    /// Wildcards by their suffix.
    wildcard: HashMap<HostName, Vec<usize>>,
}

impl Routes {
    pub fn new(routes: Vec<Route>) -> Self {
        let mut all = Self::default();
        for (index, route) in routes.into_iter().enumerate() {
            for host in &route.hosts {
                let table = if host.wildcard {
                    &mut all.wildcard
                } else {
                    &mut all.exact
                };
                table.entry(host.suffix.clone()).or_default().push(index);
            }
            all.routes.push(Arc::new(route));
        }
        all
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter()
    }

    /// The route of `host` for `workload`: an exact name before a wildcard, a longer wildcard before a
    /// shorter one, among equals the first in the configuration.
    pub fn find<'a>(&'a self, host: &'a HostName, workload: &Workload) -> Option<&'a Arc<Route>> {
        self.candidates(host).find(move |route| route.admits(workload))
    }

    /// Whether any route names `host`, whoever asks: what a leaf may be minted for.
    pub fn names(&self, host: &HostName) -> bool {
        self.candidates(host).next().is_some()
    }

    fn candidates<'a>(&'a self, host: &'a HostName) -> impl Iterator<Item = &'a Arc<Route>> {
        let exact = self.exact.get(host).into_iter().flatten();
        let wildcards = parents(host)
            .filter_map(|parent| self.wildcard.get(&parent))
            .flatten();
        exact.chain(wildcards).map(|&index| &self.routes[index])
    }
}

/// `a.b.c` → `b.c`, `c`.
fn parents(host: &HostName) -> impl Iterator<Item = HostName> + '_ {
    host.as_str()
        .match_indices('.')
        .filter_map(|(dot, _)| HostName::parse(&host.as_str()[dot + 1..]))
}

/// Whether `path` is what `glob` names, or lies below it.
pub fn covers(glob: &str, path: &str) -> bool {
    let mut parts = path.split('/').filter(|p| !p.is_empty());
    glob.split('/')
        .filter(|g| !g.is_empty())
        .all(|g| parts.next().is_some_and(|p| component(g, p)))
}

fn component(glob: &str, part: &str) -> bool {
    let Some((head, tail)) = glob.split_once('*') else {
        return glob == part;
    };
    let Some(rest) = part.strip_prefix(head) else {
        return false;
    };
    // Every place where the rest of the pattern could start.
    (0..=rest.len())
        .filter(|&i| rest.is_char_boundary(i))
        .any(|i| component(tail, &rest[i..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        HostName::parse(name).unwrap()
    }

    fn route(name: &str, hosts: &[&str], workloads: &[&str]) -> Route {
        Route {
            name: name.into(),
            hosts: hosts.iter().map(|h| HostPattern::parse(h).unwrap()).collect(),
            vault: "main".into(),
            connection: name.into(),
            login_hint: None,
            on_missing_token: OnMissingToken::Reject,
            credentials: Credentials::default(),
            workloads: workloads.iter().map(|w| (*w).to_owned()).collect(),
        }
    }

    fn caller(cgroup: Option<&str>) -> Workload {
        Workload {
            cgroup_id: 1,
            cgroup: cgroup.map(Into::into),
            tgid: 1,
            uid: 0,
        }
    }

    #[test]
    fn patterns() {
        let wild = HostPattern::parse("*.GoogleApis.com").unwrap();
        assert!(wild.matches(&host("gmail.googleapis.com")));
        assert!(wild.matches(&host("a.b.googleapis.com")));
        for other in ["googleapis.com", "xgoogleapis.com", "googleapis.com.evil.example"] {
            assert!(!wild.matches(&host(other)), "{other}");
        }
        assert_eq!(HostPattern::parse("*.com"), Err(PatternError::TooWide));
        for bad in [
            "*",
            "*.",
            "",
            "a.*.b",
            "*a.b",
            "192.0.2.1",
            "https://a.b",
            "a.b:443",
        ] {
            assert_eq!(HostPattern::parse(bad), Err(PatternError::NotAName), "{bad:?}");
        }
    }

    #[test]
    fn the_most_specific_route_wins() {
        let routes = Routes::new(vec![
            route("wide", &["*.example.com"], &[]),
            route("narrow", &["*.eu.example.com"], &[]),
            route("exact", &["api.eu.example.com"], &[]),
        ]);
        let name = |h| routes.find(&host(h), &caller(None)).map(|r| r.name.to_string());
        assert_eq!(name("api.eu.example.com").as_deref(), Some("exact"));
        assert_eq!(name("x.eu.example.com").as_deref(), Some("narrow"));
        assert_eq!(name("x.example.com").as_deref(), Some("wide"));
        assert_eq!(name("example.com"), None);
    }

    #[test]
    fn a_route_may_be_for_some_workloads_only() {
        let routes = Routes::new(vec![
            route("pods", &["api.example.com"], &["/kubepods*/pod-*"]),
            route("rest", &["api.example.com"], &["/system.slice"]),
        ]);
        let name = |c| {
            routes
                .find(&host("api.example.com"), &caller(c))
                .map(|r| r.name.to_string())
        };
        assert_eq!(
            name(Some("/kubepods.slice/pod-7/container")).as_deref(),
            Some("pods")
        );
        assert_eq!(
            name(Some("/system.slice/billing.service")).as_deref(),
            Some("rest")
        );
        assert_eq!(name(Some("/kubepods.slice/burstable")), None);
        assert_eq!(name(None), None, "an unknown caller is nobody's workload");
        assert!(routes.names(&host("api.example.com")));
    }

    #[test]
    fn globs() {
        assert!(covers("/a/*.service", "/a/x.service/sub"));
        assert!(covers("/", "/anything"));
        assert!(!covers("/a/b", "/a"));
        assert!(!covers("/a/*x", "/a/y"));
        assert!(covers("*a*b*", "/xxaYYbZZ"));
    }
}
