//! What to do by what lies in the shared cache: take it, ask the vault, wait for the node that asks it. Pure.

use std::time::Duration;

use crate::limits;

/// What the node wants a token for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A request waits for it.
    Need,
    /// A request waits, but the vault may not be asked now.
    Glance,
    /// To replace one that still serves.
    Renew,
}

/// Another node's token beside what this node knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The provider refused this very token a moment ago.
    pub is_refused: bool,
    /// It is the token that is to be renewed.
    pub is_ours: bool,
    /// It ends later than ours, if there is one.
    pub is_newer: bool,
    /// Asking the vault again would not prolong it.
    pub is_final: bool,
}

/// What lay there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Absent,
    /// Does not open, is over, or is no use to this node.
    Useless,
    Usable,
    /// It is ours, and the vault gives no other.
    Settled,
}

/// Whose the right to ask the vault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    Ours,
    Theirs,
    /// Nobody reached for it.
    Untried,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Take,
    /// Ask the vault; whoever has the lock lets go of it afterwards.
    Ask,
    /// Look again, and reach for the lock although something lies there.
    Insist,
    Wait(Duration),
    /// The token that serves goes on to serve.
    Leave,
}

pub fn judge(found: Found, purpose: Purpose) -> Value {
    match purpose {
        _ if found.is_refused => Value::Useless,
        Purpose::Renew if found.is_ours && found.is_final => Value::Settled,
        Purpose::Renew if found.is_ours || !found.is_newer => Value::Useless,
        Purpose::Need | Purpose::Glance | Purpose::Renew => Value::Usable,
    }
}

/// `waited` so far, in `looks` looks at another node's lock; `patience` is all the time there is for it; `random` is
/// in 0..1.
pub fn next(
    (value, lock): (Value, Lock),
    purpose: Purpose,
    (waited, looks): (Duration, u32),
    patience: Duration,
    random: f64,
) -> Step {
    match (value, lock, purpose) {
        (Value::Usable, ..) => Step::Take,
        (Value::Settled, ..) => Step::Leave,
        (_, Lock::Ours, _) | (.., Purpose::Glance) => Step::Ask,
        (_, Lock::Untried, _) => Step::Insist,
        (_, Lock::Theirs, Purpose::Renew) => Step::Leave,
        (_, Lock::Theirs, Purpose::Need) => {
            let pause = pause(looks, random);
            // A lock lives no longer than this, so its owner is slow, or one after the other failed.
            if waited + pause > patience.min(limits::SHARED_LOCK) {
                Step::Ask
            } else {
                Step::Wait(pause)
            }
        }
    }
}

/// Before look number `looks`: 25 ms, twice as long each time up to 200 ms, and half of it by chance.
pub fn pause(looks: u32, random: f64) -> Duration {
    let whole = Duration::from_millis((25u64 << looks.min(3)).min(200));
    whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

/// Before connection attempt number `failures` (from 1): a second, twice as long each time up to half a minute, and half
/// of it by chance.
pub fn reconnect(failures: u32, random: f64) -> Duration {
    let whole = Duration::from_secs((1u64 << failures.saturating_sub(1).min(5)).min(30));
    whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn step(value: Value, lock: Lock, purpose: Purpose) -> Step {
        next((value, lock), purpose, (Duration::ZERO, 0), LONG, 1.0)
    }

    #[test]
    fn a_token_that_was_refused_is_no_use_to_anybody() {
        let fresh = Found {
            is_refused: false,
            is_ours: false,
            is_newer: true,
            is_final: false,
        };
        for purpose in [Purpose::Need, Purpose::Glance, Purpose::Renew] {
            assert_eq!(judge(fresh, purpose), Value::Usable);
            let refused = Found {
                is_refused: true,
                ..fresh
            };
            assert_eq!(judge(refused, purpose), Value::Useless);
        }
        let older = Found {
            is_newer: false,
            ..fresh
        };
        assert_eq!(judge(older, Purpose::Need), Value::Usable);
        assert_eq!(judge(older, Purpose::Renew), Value::Useless);
        let ours = Found {
            is_ours: true,
            ..fresh
        };
        assert_eq!(judge(ours, Purpose::Renew), Value::Useless);
        let last = Found {
            is_final: true,
            ..ours
        };
        assert_eq!(judge(last, Purpose::Renew), Value::Settled);
        assert_eq!(judge(last, Purpose::Need), Value::Usable);
    }

    #[test]
    fn one_asks_and_the_others_wait() {
        use {Lock::*, Purpose::*, Value::*};
        assert_eq!(step(Usable, Untried, Need), Step::Take);
        assert_eq!(step(Usable, Ours, Need), Step::Take);
        assert_eq!(step(Absent, Ours, Need), Step::Ask);
        assert_eq!(step(Useless, Untried, Need), Step::Insist);
        assert_eq!(step(Useless, Ours, Renew), Step::Ask);
        assert_eq!(step(Settled, Untried, Renew), Step::Leave);
        assert_eq!(step(Absent, Theirs, Need), Step::Wait(Duration::from_millis(25)));
        // Who needs nothing yet does not wait, and who may not ask takes no lock.
        assert_eq!(step(Absent, Theirs, Renew), Step::Leave);
        for (value, lock) in [(Absent, Untried), (Useless, Untried), (Absent, Theirs)] {
            assert_eq!(step(value, lock, Glance), Step::Ask);
        }
    }

    #[test]
    fn a_node_that_died_costs_its_lock_s_life_and_a_short_patience_less() {
        for (patience, most) in [
            (LONG, limits::SHARED_LOCK),
            (Duration::from_millis(300), Duration::from_millis(300)),
        ] {
            for random in [0.0, 0.7, 1.0] {
                let (mut waited, mut looks) = (Duration::ZERO, 0);
                let seen = (Value::Absent, Lock::Theirs);
                while let Step::Wait(pause) = next(seen, Purpose::Need, (waited, looks), patience, random) {
                    waited += pause;
                    looks += 1;
                }
                assert!(
                    waited <= most && waited + Duration::from_millis(200) > most,
                    "{waited:?}"
                );
                assert!(looks < 60, "{looks} looks");
            }
        }
    }

    #[test]
    fn pauses_grow_and_have_bounds() {
        assert_eq!(pause(0, 0.0), Duration::from_micros(12_500));
        assert_eq!(pause(2, 1.0), Duration::from_millis(100));
        assert_eq!(pause(u32::MAX, 9.0), Duration::from_millis(200));
        assert_eq!(reconnect(0, 1.0), Duration::from_secs(1));
        assert_eq!(reconnect(1, 0.0), Duration::from_millis(500));
        assert_eq!(reconnect(3, 1.0), Duration::from_secs(4));
        assert_eq!(reconnect(u32::MAX, 9.0), Duration::from_secs(30));
    }
}
