use proptest::prelude::*;

use super::*;
use crate::trust::{StoreKind, Unreached};

const NOW: Duration = Duration::from_secs(1000);

fn root(name: &str) -> Arc<str> {
    name.into()
}

fn installed(at: u64, roots: &[&str]) -> Installation {
    Installation {
        at: Duration::from_secs(at),
        roots: roots.iter().map(|root| (*root).to_owned()).collect(),
        stores: [StoreKind::Bundle].into(),
        unreached: Vec::new(),
    }
}

fn facts(runtime: Runtime, started: u64, installation: Option<&Installation>) -> Facts<'_> {
    Facts {
        started: Duration::from_secs(started),
        runtime,
        installation,
        version: u64::from(installation.is_some()),
        issuing: "a",
    }
}

#[test]
fn without_a_handshake_the_installation_decides() {
    let there = installed(100, &["a"]);
    let nothing = Evidence::default();
    let belief = |runtime, started, there| nothing.belief(&facts(runtime, started, there));
    assert_eq!(belief(Runtime::Python, 50, None), Belief::Unknown);
    assert_eq!(belief(Runtime::Python, 50, Some(&there)), Belief::Installed);
    for caching in [Runtime::Go, Runtime::Node, Runtime::Deno, Runtime::Java] {
        assert_eq!(
            belief(caching, 99, Some(&there)),
            Belief::NeedsRestart,
            "{caching:?}"
        );
        assert_eq!(
            belief(caching, 100, Some(&there)),
            Belief::Installed,
            "{caching:?}"
        );
    }
    // A try that could do nothing, and one with another root, leave everything open.
    let failed = Installation {
        roots: there.roots.clone(),
        unreached: vec![Unreached {
            path: "/etc/ssl".into(),
            why: "read-only".into(),
        }],
        ..Installation::default()
    };
    assert_eq!(belief(Runtime::Python, 50, Some(&failed)), Belief::Unknown);
    let other = installed(100, &["b"]);
    assert_eq!(belief(Runtime::Python, 50, Some(&other)), Belief::Unknown);
}

#[test]
fn distrust_pauses_for_a_while_and_ends_when_the_installation_changes() {
    let there = installed(100, &["a"]);
    let mut evidence = Evidence::default();
    let before = facts(Runtime::Python, 50, None);
    evidence.distrusted(Sign::Alert("unknown_ca"), &root("a"), 0, NOW);
    assert_eq!(evidence.belief(&before), Belief::Untrusted);
    assert!(evidence.is_paused(&before, NOW + limits::TRUST_PAUSE - Duration::from_millis(1)));
    assert!(
        !evidence.is_paused(&before, NOW + limits::TRUST_PAUSE),
        "then it may try"
    );
    assert_eq!(
        evidence.belief(&before),
        Belief::Untrusted,
        "and is still not believed"
    );
    assert_eq!(evidence.reason(&before).unwrap(), "TLS alert unknown_ca");
    let after = facts(Runtime::Python, 50, Some(&there));
    assert_eq!(evidence.belief(&after), Belief::Installed);
    assert!(!evidence.is_paused(&after, NOW) && evidence.reason(&after).is_none());
    let go = facts(Runtime::Go, 50, Some(&there));
    assert_eq!(evidence.belief(&go), Belief::NeedsRestart);
    evidence.completed(&root("a"));
    assert_eq!(evidence.belief(&before), Belief::Verified);
}

#[test]
fn a_proof_names_its_root() {
    let there = installed(100, &["a", "b"]);
    let mut evidence = Evidence::default();
    evidence.completed(&root("a"));
    let now = facts(Runtime::Go, 50, Some(&there));
    assert_eq!(evidence.belief(&now), Belief::Verified);
    let only_proven: BTreeSet<String> = ["a".to_owned()].into();
    assert_eq!(
        evidence.roots(&now),
        only_proven,
        "it cached its store before b was there"
    );
    let re_reads = facts(Runtime::Curl, 50, Some(&there));
    assert!(evidence.roots(&re_reads).contains("b"));
    let rotated = Facts { issuing: "b", ..now };
    assert_eq!(evidence.belief(&rotated), Belief::NeedsRestart);
}

#[test]
fn one_of_several_clients_does_not_spoil_the_others_until_it_is_all_that_is_heard() {
    let at = facts(Runtime::Python, 50, None);
    let mut evidence = Evidence::default();
    evidence.completed(&root("a"));
    for _ in 1..OUTWEIGH {
        evidence.distrusted(Sign::Closed, &root("a"), 0, NOW);
        assert_eq!(evidence.belief(&at), Belief::Verified);
        assert!(!evidence.is_paused(&at, NOW));
    }
    assert!(
        evidence
            .reason(&at)
            .unwrap()
            .starts_with("one of its TLS clients")
    );
    evidence.distrusted(Sign::Closed, &root("a"), 0, NOW);
    assert_eq!(evidence.belief(&at), Belief::Untrusted);
}

#[test]
fn the_advice_fits_the_case() {
    let there = installed(100, &["a"]);
    let mut evidence = Evidence::default();
    let advice =
        |evidence: &Evidence, runtime, started, there| evidence.advice(&facts(runtime, started, there));
    assert!(advice(&evidence, Runtime::Go, 50, Some(&there)).starts_with("restart it: "));
    assert!(advice(&evidence, Runtime::Node, 50, Some(&there)).contains("NODE_EXTRA_CA_CERTS"));
    assert_eq!(advice(&evidence, Runtime::Go, 150, Some(&there)), "");
    assert!(advice(&evidence, Runtime::Python, 50, None).starts_with("install the CA"));
    evidence.distrusted(Sign::Unused, &root("a"), 1, NOW);
    let elsewhere = advice(&evidence, Runtime::Native, 150, Some(&there));
    assert!(
        elsewhere.contains("from elsewhere") && elsewhere.contains("pinned"),
        "{elsewhere}"
    );
    assert!(advice(&evidence, Runtime::Java, 50, Some(&there)).starts_with("restart it"));
}

#[derive(Clone, Debug)]
enum Event {
    Completed(usize),
    Distrusted(usize),
    Installed,
    Rotated(usize),
    Later(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..2usize).prop_map(Event::Completed),
        (0..2usize).prop_map(Event::Distrusted),
        Just(Event::Installed),
        (0..2usize).prop_map(Event::Rotated),
        (0..20u64).prop_map(Event::Later),
    ]
}

proptest! {
    #[test]
    fn whatever_happens(events in proptest::collection::vec(event(), 0..40), caches: bool) {
        let roots = [root("a"), root("b")];
        let (mut evidence, mut now, mut version, mut issuing) = (Evidence::default(), 1000, 0, 0);
        let mut there: Option<Installation> = None;
        let mut completed = BTreeSet::new();
        let (mut last_distrust, mut changed) = (None, false);
        for event in events {
            match event {
                Event::Completed(at) => {
                    evidence.completed(&roots[at]);
                    completed.insert(at);
                }
                Event::Distrusted(at) => {
                    evidence.distrusted(Sign::Closed, &roots[at], version, Duration::from_secs(now));
                    last_distrust = Some(now);
                    changed = false;
                }
                Event::Installed => {
                    version += 1;
                    there = Some(installed(now, &["a", "b"]));
                    changed = true;
                }
                Event::Rotated(at) => issuing = at,
                Event::Later(by) => now += by,
            }
            let facts = Facts {
                started: Duration::from_secs(999),
                runtime: if caches { Runtime::Go } else { Runtime::Python },
                installation: there.as_ref(),
                version,
                issuing: &roots[issuing],
            };
            let belief = evidence.belief(&facts);
            // Never verified without a handshake under the root in use.
            prop_assert!(belief != Belief::Verified || completed.contains(&issuing));
            // Untrusted ends when what is installed changes.
            prop_assert!(belief != Belief::Untrusted || !changed);
            // Nobody is kept out for longer than the pause, nor who was not seen to distrust.
            let at = Duration::from_secs(now);
            let recent = last_distrust.is_some_and(|then| at - Duration::from_secs(then) < limits::TRUST_PAUSE);
            prop_assert!(!evidence.is_paused(&facts, at) || belief == Belief::Untrusted && recent);
            // A prediction needs a runtime that caches.
            prop_assert!(belief != Belief::NeedsRestart || caches);
            // Something is said of whoever cannot go on.
            prop_assert!(!evidence.advice(&facts).is_empty() || matches!(belief, Belief::Installed | Belief::Verified));
        }
    }
}
