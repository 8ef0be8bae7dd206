//! The kernel half goes by the initial time namespace, /proc and we by our own; time_namespaces(7).

use std::sync::LazyLock;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

static OFFSETS: LazyLock<String> =
    LazyLock::new(|| std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default());

/// Now by the initial time namespace: CLOCK_MONOTONIC or CLOCK_BOOTTIME.
pub fn now(clock: ClockId) -> Duration {
    let own = clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    shifted(own, -offset(&OFFSETS, clock))
}

/// A moment of the initial time namespace by that of this process.
pub fn to_own(moment: Duration, clock: ClockId) -> Duration {
    shifted(moment, offset(&OFFSETS, clock))
}

fn shifted(moment: Duration, nanoseconds: i128) -> Duration {
    let moment = i128::try_from(moment.as_nanos()).unwrap_or(i128::MAX);
    Duration::from_nanos(u64::try_from(moment + nanoseconds).unwrap_or(0))
}

/// What this process's time namespace adds to the clock, nanoseconds. Without such namespaces there is no file, and
/// nothing is added.
fn offset(offsets: &str, clock: ClockId) -> i128 {
    // A number stands for the clock in what is written to the file; the kernel shows the name.
    let names = match clock {
        ClockId::CLOCK_BOOTTIME => ["boottime", "7"],
        _ => ["monotonic", "1"],
    };
    let offset = offsets.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        names.contains(&fields.next()?).then_some(())?;
        let (seconds, nanoseconds): (i128, i128) =
            (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(seconds * 1_000_000_000 + nanoseconds)
    });
    offset.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_namespace_is_taken_out_of_the_clock() {
        let shifted = "monotonic       -1000   500000000\nboottime            7         0\n";
        assert_eq!(offset(shifted, ClockId::CLOCK_MONOTONIC), -999_500_000_000);
        assert_eq!(offset(shifted, ClockId::CLOCK_BOOTTIME), 7_000_000_000);
        let plain = "monotonic           0         0\nboottime            0         0\n";
        assert_eq!(offset(plain, ClockId::CLOCK_MONOTONIC), 0);
        assert_eq!(offset("", ClockId::CLOCK_MONOTONIC), 0);
        assert_eq!(offset("monotonic x y\n", ClockId::CLOCK_MONOTONIC), 0);
        assert!(now(ClockId::CLOCK_MONOTONIC) > Duration::ZERO);
    }
}
