//! How fast a token endpoint may be asked: a token bucket, a circuit breaker, the wait before a repetition.
//! Pure; `Gate` adds the clock and the locks.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::settings::Pacing;

/// Calls of one exchange, the first included.
pub(super) const ATTEMPTS: u32 = 3;
/// Longest wait before the first repetition; it doubles with each.
const BACK_OFF: Duration = Duration::from_millis(200);

/// The wait before repetition number `n` (from 0): full jitter, `random` in 0..1.
pub fn back_off(n: u32, random: f64) -> Duration {
    (BACK_OFF * 2u32.saturating_pow(n.min(8))).mul_f64(random.clamp(0.0, 1.0))
}

/// The generic cell rate algorithm: `burst` at once, then one per `interval`.
pub struct Bucket {
    interval: Duration,
    slack: Duration,
    /// When the next call would be due if all came evenly.
    due: Duration,
}

impl Bucket {
    pub fn new(per_second: f64, burst: u32) -> Self {
        let interval = Duration::from_secs_f64(1.0 / per_second);
        Self {
            interval,
            slack: interval * burst.saturating_sub(1),
            due: Duration::ZERO,
        }
    }

    /// Takes a turn: how long to wait for it; or, where that is longer than `patience`, takes none and tells
    /// the wait.
    pub fn reserve(&mut self, now: Duration, patience: Duration) -> Result<Duration, Duration> {
        let due = self.due.max(now);
        let wait = due.saturating_sub(self.slack).saturating_sub(now);
        if wait > patience {
            return Err(wait);
        }
        self.due = due + self.interval;
        Ok(wait)
    }
}

/// Nothing is sent after `limit` failures in a row; then one call tries.
struct Breaker {
    limit: u32,
    open: Duration,
    failures: u32,
    /// While it lies ahead, nobody calls.
    until: Option<Duration>,
}

/// A change worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Opened,
    Closed,
}

impl Breaker {
    fn allow(&mut self, now: Duration) -> Result<(), Duration> {
        match self.until {
            Some(until) if until > now => Err(until - now),
            Some(_) => {
                // One tries. Should nothing be heard of it, another one does after the same time.
                self.until = Some(now + self.open);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// How long nobody calls from `now` on.
    fn left(&self, now: Duration) -> Option<Duration> {
        self.until
            .and_then(|until| until.checked_sub(now))
            .filter(|left| !left.is_zero())
    }

    fn landed(&mut self, failed: bool, now: Duration) -> Option<Change> {
        if !failed {
            self.failures = 0;
            return self.until.take().map(|_| Change::Closed);
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < self.limit {
            return None;
        }
        let was_open = self.until.replace(now + self.open).is_some();
        (!was_open).then_some(Change::Opened)
    }
}

/// What stands between us and one token endpoint.
pub(super) struct Gate {
    began: Instant,
    /// The endpoint's allowance is used up until then.
    held: Mutex<Duration>,
    bucket: Option<Mutex<Bucket>>,
    breaker: Mutex<Breaker>,
}

impl Gate {
    pub fn new(pacing: &Pacing) -> Self {
        Self {
            began: Instant::now(),
            held: Mutex::default(),
            bucket: pacing
                .per_second
                .map(|rate| Mutex::new(Bucket::new(rate, pacing.burst))),
            breaker: Mutex::new(Breaker {
                limit: pacing.failures,
                open: pacing.open,
                failures: 0,
                until: None,
            }),
        }
    }

    /// Takes a turn of the configured rate; the wait for it, or the wait that is longer than `patience`.
    pub fn reserve(&self, patience: Duration) -> Result<Duration, Duration> {
        let now = self.began.elapsed();
        let held = locked(&self.held).saturating_sub(now);
        let patience = patience.checked_sub(held).ok_or(held)?;
        let turn = match &self.bucket {
            Some(bucket) => locked(bucket).reserve(now + held, patience),
            None => Ok(Duration::ZERO),
        };
        turn.map(|wait| held + wait).map_err(|wait| held + wait)
    }

    /// The endpoint said that its allowance is used up for `wait`: turns begin after that.
    pub fn hold(&self, wait: Duration) {
        let until = self.began.elapsed() + wait;
        let mut held = locked(&self.held);
        *held = until.max(*held);
    }

    /// Whether a call may go out; `Err`: in how long one may.
    pub fn allow(&self) -> Result<(), Duration> {
        locked(&self.breaker).allow(self.began.elapsed())
    }

    /// How long nobody may call, without taking the trial.
    pub fn open(&self) -> Option<Duration> {
        locked(&self.breaker).left(self.began.elapsed())
    }

    /// How a call ended: `failed` when the endpoint could not be reached or made no sense.
    pub fn landed(&self, failed: bool) -> Option<Change> {
        locked(&self.breaker).landed(failed, self.began.elapsed())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(5.0, 3);
        let waits: Vec<_> = (0..6)
            .map(|_| bucket.reserve(ms(1000), ms(10_000)).unwrap())
            .collect();
        assert_eq!(waits, [ms(0), ms(0), ms(0), ms(200), ms(400), ms(600)]);
        // Who would wait too long takes no turn.
        assert_eq!(bucket.reserve(ms(1000), ms(700)), Err(ms(800)));
        assert_eq!(bucket.reserve(ms(1000), ms(800)), Ok(ms(800)));
        // A long rest fills it to the burst and no further.
        let waits: Vec<_> = (0..4)
            .map(|_| bucket.reserve(ms(60_000), ms(999)).unwrap())
            .collect();
        assert_eq!(waits, [ms(0), ms(0), ms(0), ms(200)]);
    }

    #[test]
    fn a_bucket_never_gives_more_than_its_rate() {
        let mut bucket = Bucket::new(50.0, 10);
        let mut turns: Vec<Duration> = Vec::new();
        for step in 0..20_000u64 {
            let now = ms(step);
            if let Ok(wait) = bucket.reserve(now, ms(100)) {
                turns.push(now + wait);
            }
        }
        for start in (0..19_000u64).step_by(500) {
            let within = turns
                .iter()
                .filter(|t| (ms(start)..ms(start + 1000)).contains(*t))
                .count();
            assert!(within <= 60, "{within} in the second from {start} ms");
        }
        assert!(turns.len() >= 1000);
    }

    #[test]
    fn a_breaker_opens_tries_once_and_closes() {
        let mut breaker = Breaker {
            limit: 3,
            open: ms(1000),
            failures: 0,
            until: None,
        };
        assert_eq!(breaker.landed(true, ms(0)), None);
        assert_eq!(breaker.landed(true, ms(0)), None);
        assert_eq!(
            breaker.landed(false, ms(0)),
            None,
            "a success begins the row anew"
        );
        for _ in 0..2 {
            assert_eq!(breaker.landed(true, ms(10)), None);
        }
        assert_eq!(breaker.landed(true, ms(10)), Some(Change::Opened));
        assert_eq!(breaker.allow(ms(500)), Err(ms(510)));
        assert_eq!(
            breaker.landed(true, ms(20)),
            None,
            "told once; late news prolong it"
        );
        assert_eq!(breaker.left(ms(20)), Some(ms(1000)));
        assert_eq!(breaker.allow(ms(1020)), Ok(()));
        assert_eq!(
            breaker.allow(ms(1021)),
            Err(ms(999)),
            "one tries, the others wait"
        );
        assert_eq!(breaker.landed(true, ms(1100)), None);
        assert_eq!(breaker.allow(ms(2000)), Err(ms(100)));
        assert_eq!(breaker.allow(ms(2100)), Ok(()));
        assert_eq!(breaker.landed(false, ms(2200)), Some(Change::Closed));
        assert_eq!((breaker.allow(ms(2200)), breaker.left(ms(2200))), (Ok(()), None));
    }

    #[test]
    fn a_used_up_allowance_holds_all_turns() {
        for per_second in [None, Some(1000.0)] {
            let gate = Gate::new(&Pacing {
                per_second,
                burst: 10,
                ..Pacing::default()
            });
            assert_eq!(gate.reserve(ms(0)), Ok(ms(0)));
            gate.hold(Duration::from_secs(30));
            gate.hold(Duration::from_secs(1));
            assert!(gate.reserve(Duration::from_secs(20)).unwrap_err() > Duration::from_secs(25));
            let wait = gate.reserve(Duration::from_secs(40)).unwrap();
            assert!(
                (Duration::from_secs(25)..=Duration::from_secs(30)).contains(&wait),
                "{wait:?}"
            );
        }
    }

    #[test]
    fn the_back_off_grows_and_has_bounds() {
        assert_eq!(back_off(0, 1.0), ms(200));
        assert_eq!(back_off(1, 0.5), ms(200));
        assert_eq!(back_off(2, 0.0), ms(0));
        assert!(back_off(u32::MAX, 9.0) < Duration::from_secs(60));
    }
}
