//! DNS subtrees as name constraints use them (RFC 5280 §4.2.1.10): a name stands for itself and all below it.

use serde::{Deserialize, Serialize};

use super::Error;
use crate::addr::HostName;

/// The subtrees that an authority may sign for, and those taken out of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subtrees {
    pub(super) permitted: Vec<String>,
    pub(super) excluded: Vec<String>,
}

impl Subtrees {
    /// Normalises names from the configuration: lower case, sorted, no doubles, none below another.
    ///
    /// A leading `*.` is dropped, since a constraint cannot say "below, but not itself" to every client.
    pub(super) fn parse(names: &[String]) -> Result<Self, Error> {
        let mut permitted = names
            .iter()
            .map(|name| {
                HostName::parse(name.strip_prefix("*.").unwrap_or(name))
                    .map(|host| host.as_str().to_owned())
                    .ok_or_else(|| Error::Subtree {
                        subtree: name.clone(),
                    })
            })
            .collect::<Result<Vec<_>, _>>()?;
        permitted.sort();
        permitted.dedup();
        let all = permitted.clone();
        permitted.retain(|name| !all.iter().any(|other| other != name && covers(other, name)));
        if permitted.is_empty() {
            return Err(Error::NoSubtrees);
        }
        Ok(Self {
            permitted,
            excluded: Vec::new(),
        })
    }

    pub(super) fn permit(&self, host: &HostName) -> bool {
        let within = |trees: &[String]| trees.iter().any(|tree| covers(tree, host.as_str()));
        within(&self.permitted) && !within(&self.excluded)
    }

    /// As constraints of a CA that need not have any: whether they let it sign for `name`, in lower case.
    pub(super) fn allow(&self, name: &str) -> bool {
        let within = |trees: &[String]| trees.iter().any(|tree| covers(tree, name));
        (self.permitted.is_empty() || within(&self.permitted)) && !within(&self.excluded)
    }
}

/// Whether `tree` covers `name`; both in lower case. A tree that begins with a dot covers only what is below.
fn covers(tree: &str, name: &str) -> bool {
    match name.strip_suffix(tree) {
        Some("") => !tree.is_empty(),
        Some(below) => tree.starts_with('.') || below.ends_with('.'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(trees: &[&str], host: &str) -> bool {
        let names: Vec<String> = trees.iter().map(|t| (*t).to_owned()).collect();
        Subtrees::parse(&names)
            .unwrap()
            .permit(&HostName::parse(host).unwrap())
    }

    #[test]
    fn a_subtree_covers_itself_and_what_is_below() {
        let trees = ["GoogleAPIs.com", "api.github.com"];
        for host in [
            "googleapis.com",
            "www.googleapis.com",
            "a.b.GOOGLEAPIS.COM",
            "api.github.com",
        ] {
            assert!(permits(&trees, host), "{host}");
        }
        for host in [
            "evilgoogleapis.com",
            "googleapis.com.evil.example",
            "github.com",
            "uploads.github.com",
            "com",
        ] {
            assert!(!permits(&trees, host), "{host}");
        }
    }

    #[test]
    fn excluded_and_dotted_subtrees_are_honoured() {
        let trees = Subtrees {
            permitted: vec![".example.com".into(), "example.org".into()],
            excluded: vec!["secret.example.org".into()],
        };
        let permit = |host: &str| trees.permit(&HostName::parse(host).unwrap());
        assert!(permit("a.example.com") && permit("example.org") && permit("a.example.org"));
        assert!(!permit("example.com") && !permit("secret.example.org") && !permit("x.secret.example.org"));
    }

    #[test]
    fn constraints_that_a_ca_need_not_have() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let limits = |permitted: &[&str], excluded: &[&str]| Subtrees {
            permitted: names(permitted),
            excluded: names(excluded),
        };
        assert!(limits(&[], &[]).allow("example.com"));
        assert!(!limits(&[], &["com"]).allow("example.com"));
        assert!(limits(&["example.com"], &["b.example.com"]).allow("a.example.com"));
        assert!(!limits(&["example.com"], &[]).allow("example.org"));
    }

    #[test]
    fn names_are_normalised_and_bad_ones_are_named() {
        let parse = |names: &[&str]| Subtrees::parse(&names.iter().map(|n| (*n).into()).collect::<Vec<_>>());
        assert_eq!(
            parse(&["*.B.example", "a.example", "x.b.example", "a.example"])
                .unwrap()
                .permitted,
            ["a.example", "b.example"]
        );
        for bad in ["*", "a.*.example", "10.0.0.1", "", "https://a.example"] {
            assert!(
                matches!(parse(&["a.example", bad]), Err(Error::Subtree { subtree }) if subtree == bad),
                "{bad:?}"
            );
        }
        assert!(matches!(parse(&[]), Err(Error::NoSubtrees)));
    }
}
