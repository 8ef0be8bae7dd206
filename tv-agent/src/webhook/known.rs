//! What is known of our ConfigMaps in all namespaces, by their digests: a thousand of them whole would be 250 MB. Pure.

use std::collections::HashMap;
use std::collections::HashSet;

use crate::limits;

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// As one of us wrote it, with this digest.
    Kept(String),
    /// Changed by somebody else.
    Changed,
    /// It was there, and pods use it.
    Gone,
}

/// At most [`limits::WEBHOOK_NAMESPACES`]; of further ones nothing is remembered, so each review writes anew.
#[derive(Default)]
pub struct Known {
    states: HashMap<String, State>,
    /// While all are listed: those that were named so far.
    listed: Option<HashSet<String>>,
}

impl Known {
    /// `digest`: of its contents; `claimed`: the one that its writer put on it. True: somebody else has changed it.
    pub fn seen(&mut self, namespace: &str, digest: String, claimed: Option<&str>) -> bool {
        if let Some(listed) = &mut self.listed {
            listed.insert(namespace.to_owned());
        }
        let state = match claimed == Some(&*digest) {
            true => State::Kept(digest),
            false => State::Changed,
        };
        let changed = state == State::Changed;
        self.put(namespace, state);
        changed
    }

    pub fn gone(&mut self, namespace: &str) {
        if let Some(state) = self.states.get_mut(namespace) {
            *state = State::Gone;
        }
    }

    /// All are listed from now on…
    pub fn begin(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// …and that was all. True: some are gone.
    pub fn end(&mut self) -> bool {
        let Some(listed) = self.listed.take() else {
            return false;
        };
        let mut any = false;
        for (namespace, state) in &mut self.states {
            if !listed.contains(namespace) {
                *state = State::Gone;
                any = true;
            }
        }
        any
    }

    /// We wrote it.
    pub fn written(&mut self, namespace: &str, digest: &str) {
        if let Some(listed) = &mut self.listed {
            listed.insert(namespace.to_owned());
        }
        self.put(namespace, State::Kept(digest.to_owned()));
    }

    /// The namespace is no more.
    pub fn forget(&mut self, namespace: &str) {
        self.states.remove(namespace);
    }

    /// Whether a pod there finds a ConfigMap of ours; with the roots of a moment ago, perhaps.
    pub fn is_kept(&self, namespace: &str) -> bool {
        matches!(self.states.get(namespace), Some(State::Kept(_)))
    }

    /// Those that are not as they should be.
    pub fn outdated(&self, digest: &str) -> Vec<String> {
        let outdated = |state: &State| !matches!(state, State::Kept(found) if found == digest);
        let states = self.states.iter().filter(|(_, state)| outdated(state));
        states.map(|(namespace, _)| namespace.clone()).collect()
    }

    pub fn len(&self) -> usize {
        self.states.len()
    }

    fn put(&mut self, namespace: &str, state: State) {
        if self.states.len() < limits::WEBHOOK_NAMESPACES || self.states.contains_key(namespace) {
            self.states.insert(namespace.to_owned(), state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_removed_or_is_old_is_written_again() {
        let mut known = Known::default();
        assert!(!known.is_kept("a"));
        assert!(!known.seen("a", "1".to_owned(), Some("1")));
        assert!(known.is_kept("a") && known.outdated("1").is_empty());
        assert_eq!(known.outdated("2"), ["a"]);
        assert!(known.is_kept("a"), "old roots are better than none");
        assert!(known.seen("a", "3".to_owned(), Some("1")) && !known.is_kept("a"));
        assert!(known.seen("a", "3".to_owned(), None));
        assert_eq!(known.outdated("3"), ["a"]);
        known.written("a", "1");
        known.gone("a");
        assert!(!known.is_kept("a"));
        assert_eq!(known.outdated("1"), ["a"]);
        known.forget("a");
        known.gone("a");
        assert_eq!(known.len(), 0, "what was never there is not missed");
    }

    #[test]
    fn a_list_tells_what_is_gone_but_not_of_what_was_written_meanwhile() {
        let mut known = Known::default();
        for name in ["a", "b"] {
            known.seen(name, "1".to_owned(), Some("1"));
        }
        known.begin();
        known.seen("a", "1".to_owned(), Some("1"));
        known.written("c", "1");
        assert!(known.end());
        assert_eq!(known.outdated("1"), ["b"]);
        assert!(!known.end(), "no list was begun");
    }

    #[test]
    fn namespaces_beyond_the_limit_are_not_remembered() {
        let mut known = Known::default();
        for number in 0..=limits::WEBHOOK_NAMESPACES {
            known.written(&number.to_string(), "1");
        }
        assert_eq!(known.len(), limits::WEBHOOK_NAMESPACES);
        assert!(known.is_kept("0") && !known.is_kept(&limits::WEBHOOK_NAMESPACES.to_string()));
        known.written("0", "2");
        assert_eq!(known.outdated("1"), ["0"], "those that are known go on");
    }
}
