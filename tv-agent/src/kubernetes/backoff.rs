//! How long to wait after failures in a row. Pure.

use std::time::Duration;

/// The pause after the `failures`-th failure in a row (from 1): doubled each time up to `most`, then shortened by up to
/// half of it at random, so that a fleet does not come back at once. `random`: 0 to 1.
///
/// What the server asked for (`Retry-After`) is the least, and bounded as well.
pub fn pause(
    failures: u32,
    first: Duration,
    most: Duration,
    asked: Option<Duration>,
    random: f64,
) -> Duration {
    let doubled = first.saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    let bound = doubled.min(most);
    let jittered = bound.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0);
    match asked {
        // Later by a share, never earlier than was asked for.
        Some(asked) => asked
            .min(most)
            .max(jittered)
            .mul_f64(1.0 + random.clamp(0.0, 1.0) / 10.0),
        None => jittered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_are_spread() {
        let (first, most) = (Duration::from_millis(500), Duration::from_secs(30));
        let at = |failures, random| pause(failures, first, most, None, random);
        assert_eq!(at(1, 0.0), first);
        assert_eq!(at(1, 1.0), first / 2);
        assert_eq!(at(3, 0.0), first * 4);
        for failures in [7, 31, 32, 33, u32::MAX] {
            assert_eq!(at(failures, 0.0), most, "{failures}");
            assert_eq!(at(failures, 1.0), most / 2);
        }
    }

    #[test]
    fn what_the_server_asks_for_is_the_least_and_bounded() {
        let (first, most) = (Duration::from_millis(500), Duration::from_secs(30));
        let at = |asked, random| pause(1, first, most, Some(Duration::from_secs(asked)), random);
        assert_eq!(at(7, 0.0), Duration::from_secs(7));
        assert!(at(7, 1.0) > Duration::from_secs(7));
        assert_eq!(at(1_000_000, 0.0), most);
        assert_eq!(at(0, 0.0), first);
    }
}
