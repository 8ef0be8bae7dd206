//! Stage 5: which route a host name belongs to. Pure: no clock, no I/O, nothing asynchronous.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderName;

use crate::addr::HostName;
use crate::workload::Workload;

pub mod connection;
pub mod credentials;
mod selector;
mod verify;

pub use credentials::Credentials;
pub use selector::{Selector, Verdict, covers};
pub use verify::{Channel, Verify};

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

/// What happens to a process that is known not to trust our CA, on a routed host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUntrusted {
    #[default]
    Refuse,
    /// The provider sees the caller's own token.
    Tunnel,
}

/// What is asked of a vault. A route's own takes the place of its vault's, each part by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The account at the provider (Token Vault).
    pub connection: Option<Arc<str>>,
    /// RFC 8693 §2.1; repeated when there are several.
    pub audience: Vec<String>,
    /// RFC 8707.
    pub resource: Vec<String>,
    /// Separated by spaces (RFC 6749 §3.3).
    pub scope: Option<String>,
}

impl Wanted {
    pub fn connection(name: impl Into<Arc<str>>) -> Self {
        Self {
            connection: Some(name.into()),
            ..Self::default()
        }
    }

    /// The one word for logs and messages.
    pub fn target(&self) -> &str {
        let audience = self.audience.first().or_else(|| self.resource.first());
        self.connection
            .as_deref()
            .or_else(|| audience.map(String::as_str))
            .or(self.scope.as_deref())
            .unwrap_or_default()
    }
}

/// Where a word about the user comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    Fixed(Arc<str>),
    /// A header of the request, which is taken off it.
    Header(HeaderName),
    /// A path in the claims of the caller's verified token.
    Claim(Vec<String>),
}

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(text) => f.write_str(text),
            Self::Header(name) => write!(f, "header {name}"),
            Self::Claim(path) => write!(f, "claim {}", path.join(".")),
        }
    }
}

/// One rule: requests to these hosts get a token of this vault.
#[derive(Clone, Debug)]
pub struct Route {
    pub name: Arc<str>,
    pub hosts: Vec<HostPattern>,
    pub vault: Arc<str>,
    pub wanted: Arc<Wanted>,
    pub login_hint: Option<Hint>,
    pub verify: Option<Verify>,
    pub on_missing_token: OnMissingToken,
    pub on_untrusted: OnUntrusted,
    pub credentials: Credentials,
    /// Which workloads it is for: any of these; empty: all.
    pub workloads: Vec<Selector>,
    /// Patterns for the connections that a pod may choose instead; empty: none.
    pub connection_override: Vec<String>,
}

impl Route {
    /// Whether it is for `workload`: one selector is enough, and one that cannot be told leaves it open.
    pub fn verdict(&self, workload: &Workload) -> Verdict {
        if self.workloads.is_empty() {
            return Verdict::Admitted;
        }
        let mut all = Verdict::Differs("workloads");
        for selector in &self.workloads {
            match selector.verdict(workload) {
                Verdict::Admitted => return Verdict::Admitted,
                unknown @ Verdict::Unknown(_) => all = unknown,
                Verdict::Differs(_) => {}
            }
        }
        all
    }
}

/// What the routes say about a host and a workload.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    Route(&'a Arc<Route>),
    /// This route names the host, and too little is known of the workload to tell whether it is for it.
    Unsettled(&'a Arc<Route>),
    Nothing,
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
    ///
    /// A route that may be the workload's settles it as well: the next one might hand out another account's token.
    pub fn find<'a>(&'a self, host: &'a HostName, workload: &Workload) -> Found<'a> {
        for route in self.candidates(host) {
            match route.verdict(workload) {
                Verdict::Admitted => return Found::Route(route),
                Verdict::Unknown(_) => return Found::Unsettled(route),
                Verdict::Differs(_) => {}
            }
        }
        Found::Nothing
    }

    /// Whether any route names `host`, whoever asks: what a leaf may be minted for.
    pub fn names(&self, host: &HostName) -> bool {
        self.candidates(host).next().is_some()
    }

    /// Every route that names `host`, the most specific first.
    pub fn candidates<'a>(&'a self, host: &'a HostName) -> impl Iterator<Item = &'a Arc<Route>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Cgroup;

    fn host(name: &str) -> HostName {
        HostName::parse(name).unwrap()
    }

    fn found(routes: &Routes, name: &str, workload: &Workload) -> Option<String> {
        match routes.find(&host(name), workload) {
            Found::Route(route) => Some(route.name.to_string()),
            Found::Unsettled(route) => Some(format!("{}?", route.name)),
            Found::Nothing => None,
        }
    }

    fn route(name: &str, hosts: &[&str], workloads: &[&str]) -> Route {
        Route {
            name: name.into(),
            hosts: hosts.iter().map(|h| HostPattern::parse(h).unwrap()).collect(),
            vault: "main".into(),
            wanted: Arc::new(Wanted::connection(name)),
            login_hint: None,
            verify: None,
            on_missing_token: OnMissingToken::Reject,
            on_untrusted: OnUntrusted::Refuse,
            credentials: Credentials::default(),
            workloads: workloads.iter().map(|w| Selector::cgroup(*w)).collect(),
            connection_override: Vec::new(),
        }
    }

    fn caller(cgroup: Option<&str>) -> Workload {
        Workload {
            cgroup: cgroup.map(|path| Arc::new(Cgroup::at(path))),
            ..Workload::default()
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
        let name = |h| found(&routes, h, &caller(None));
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
        let name = |c| found(&routes, "api.example.com", &caller(c));
        assert_eq!(
            name(Some("/kubepods.slice/pod-7/container")).as_deref(),
            Some("pods")
        );
        assert_eq!(
            name(Some("/system.slice/billing.service")).as_deref(),
            Some("rest")
        );
        assert_eq!(name(Some("/kubepods.slice/burstable")), None);
        // Not the next one: it may be a pod.
        assert_eq!(name(None).as_deref(), Some("pods?"));
        assert!(routes.names(&host("api.example.com")));
    }

    #[test]
    fn a_more_specific_route_that_is_for_all_leaves_nothing_open() {
        let routes = Routes::new(vec![
            route("some", &["*.example.com"], &["/a"]),
            route("all", &["api.example.com"], &[]),
        ]);
        assert_eq!(
            found(&routes, "api.example.com", &caller(None)).as_deref(),
            Some("all")
        );
        assert_eq!(
            found(&routes, "x.example.com", &caller(None)).as_deref(),
            Some("some?")
        );
        assert_eq!(found(&routes, "x.example.com", &caller(Some("/b"))), None);
    }
}
