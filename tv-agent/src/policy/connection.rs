//! Which connection of the vault a request gets: the route's, or one that the caller's pod chose. Pure.

use std::sync::Arc;

use super::selector::matches;
use super::{Route, Wanted};
use crate::workload::Workload;

/// Longest name of a connection; Auth0 takes 128 characters.
const LONGEST: usize = 128;

/// Why a pod does not get the connection that it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error(
        "the pod's annotation {annotation} is no name of a connection: {value:?}; allowed: 1 to 128 letters, digits and - _ . | :"
    )]
    Malformed { annotation: String, value: String },
    #[error(
        "the pod's annotation {annotation} asks for the connection {value:?}, which route {route} does not allow (connection_override)"
    )]
    NotAllowed {
        annotation: String,
        value: String,
        route: Arc<str>,
    },
    #[error(
        "the pod may choose the connection of route {route} by an annotation, and its annotations are not known (yet)"
    )]
    Unknown { route: Arc<str> },
}

/// What is asked of the vault for `workload`: None, what the route says.
///
/// `PREFIX/connection.ROUTE` is for one route, `PREFIX/connection` for all that name a connection.
///
/// # Errors
/// When the pod asks for what it may not have, or may ask and it is not known whether it does.
pub fn of(route: &Route, workload: &Workload) -> Result<Option<Arc<Wanted>>, Denied> {
    let Some(pod) = workload.pod.as_deref() else {
        let in_pod = workload
            .cgroup
            .as_deref()
            .is_none_or(|c| c.identity.pod.is_some());
        return if in_pod && !route.connection_override.is_empty() {
            Err(Denied::Unknown {
                route: route.name.clone(),
            })
        } else {
            Ok(None)
        };
    };
    let prefix = &pod.prefix;
    let asked = |annotation: String| {
        let value = pod.annotations.get(&annotation)?;
        Some((annotation, value))
    };
    let everywhere = || asked(format!("{prefix}/connection")).filter(|_| route.wanted.connection.is_some());
    let own = asked(format!("{prefix}/connection.{}", route.name));
    let Some((annotation, value)) = own.or_else(everywhere) else {
        return Ok(None);
    };
    if !is_name(value) {
        return Err(Denied::Malformed {
            annotation,
            value: value.chars().take(LONGEST).collect(),
        });
    }
    let allowed = route.connection_override.iter().any(|glob| matches(glob, value));
    if route.wanted.connection.is_none() || !allowed {
        return Err(Denied::NotAllowed {
            annotation,
            value: value.clone(),
            route: route.name.clone(),
        });
    }
    Ok(Some(Arc::new(Wanted {
        connection: Some(value.as_str().into()),
        ..(*route.wanted).clone()
    })))
}

fn is_name(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.|:".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Credentials, HostPattern, OnMissingToken, OnUntrusted};
    use crate::workload::{Cgroup, Pod};

    fn route(connection: Option<&str>, allowed: &[&str]) -> Route {
        Route {
            name: "github".into(),
            hosts: vec![HostPattern::parse("api.github.com").unwrap()],
            vault: "main".into(),
            wanted: Arc::new(Wanted {
                connection: connection.map(Into::into),
                ..Wanted::default()
            }),
            login_hint: None,
            verify: None,
            on_missing_token: OnMissingToken::Reject,
            on_untrusted: OnUntrusted::Refuse,
            credentials: Credentials::default(),
            workloads: Vec::new(),
            connection_override: allowed.iter().map(|&glob| glob.to_owned()).collect(),
        }
    }

    fn pod(annotations: &[(&str, &str)]) -> Workload {
        let pairs = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Workload {
            pod: Some(Arc::new(Pod {
                namespace: "shop".into(),
                name: "cart".into(),
                service_account: "cart".into(),
                labels: Default::default(),
                annotations: pairs.collect(),
                containers: Default::default(),
                prefix: "tv-agent.io".into(),
            })),
            ..Workload::default()
        }
    }

    #[test]
    fn a_pod_chooses_among_what_the_route_allows() {
        let work = route(Some("github"), &["github-*"]);
        let connection = |route: &Route, annotations: &[(&str, &str)]| {
            let found = of(route, &pod(annotations));
            found.map(|wanted| {
                wanted
                    .and_then(|wanted| wanted.connection.clone())
                    .map(|c| c.to_string())
            })
        };
        assert_eq!(connection(&work, &[]), Ok(None));
        let all = ("tv-agent.io/connection", "github-work");
        assert_eq!(connection(&work, &[all]), Ok(Some("github-work".into())));
        let own = ("tv-agent.io/connection.github", "github-own");
        assert_eq!(connection(&work, &[all, own]), Ok(Some("github-own".into())));
        assert_eq!(
            connection(&work, &[("tv-agent.io/connection.google", "x")]),
            Ok(None)
        );
        for (route, value) in [
            (route(Some("github"), &[]), "github-work"),
            (route(Some("github"), &["github-*"]), "google"),
            (route(None, &["*"]), "github-work"),
        ] {
            let denied = connection(&route, &[("tv-agent.io/connection.github", value)]).unwrap_err();
            assert!(matches!(denied, Denied::NotAllowed { .. }), "{denied}");
            assert!(
                denied.to_string().contains("tv-agent.io/connection.github"),
                "{denied}"
            );
        }
        // What names no connection is not meant by the annotation for all.
        assert_eq!(connection(&route(None, &[]), &[all]), Ok(None));
        for value in ["", "a b", "a\nb", &"x".repeat(129), "é"] {
            let denied = connection(
                &route(Some("github"), &["*"]),
                &[("tv-agent.io/connection", value)],
            );
            assert!(matches!(denied, Err(Denied::Malformed { .. })), "{value}");
        }
    }

    #[test]
    fn what_is_not_known_of_a_pod_is_not_no() {
        let within = |path: &str| Workload {
            cgroup: Some(Arc::new(Cgroup::at(path))),
            ..Workload::default()
        };
        let pod = within("/kubepods/pod8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff");
        let allows = route(Some("github"), &["*"]);
        assert!(matches!(of(&allows, &pod), Err(Denied::Unknown { .. })));
        assert!(matches!(
            of(&allows, &Workload::default()),
            Err(Denied::Unknown { .. })
        ));
        assert_eq!(of(&allows, &within("/system.slice/a.service")), Ok(None));
        assert_eq!(of(&route(Some("github"), &[]), &pod), Ok(None));
    }
}
