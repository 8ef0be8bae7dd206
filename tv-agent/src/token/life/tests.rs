//! The rules in numbers.

use super::*;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn ttl(expires_in: Option<u64>, subject_exp: Option<u64>) -> Option<u64> {
    let life = Life::of(
        expires_in.map(secs),
        subject_exp,
        secs(1000),
        secs(300),
        secs(86_400),
    );
    life.map(|life| life.ttl.as_secs())
}

#[test]
fn the_shortest_of_the_three_lives_counts() {
    assert_eq!(ttl(Some(3600), None), Some(3540));
    assert_eq!(ttl(None, None), Some(300));
    assert_eq!(ttl(Some(3600), Some(1100)), Some(100));
    assert_eq!(ttl(None, Some(1100)), Some(100));
    assert_eq!(ttl(Some(120), Some(1100)), Some(60));
    assert_eq!(ttl(Some(u64::MAX), None), Some(86_400));
    assert_eq!(ttl(Some(u64::MAX), Some(u64::MAX)), Some(86_400));
    // At or below the margin, or with a subject that has ended: use once.
    for none in [
        (Some(0), None),
        (Some(59), None),
        (Some(60), None),
        (Some(3600), Some(1000)),
        (None, Some(1)),
    ] {
        assert_eq!(ttl(none.0, none.1), None, "{none:?}");
    }
    assert_eq!(ttl(Some(61), None), Some(1));
    // The operator's maximum cannot exceed ours.
    assert_eq!(
        Life::of(None, None, secs(0), Duration::MAX, Duration::MAX)
            .unwrap()
            .ttl,
        limits::TOKEN_TTL_MAX
    );
    assert_eq!(Life::of(None, None, secs(0), Duration::ZERO, Duration::MAX), None);
}

#[test]
fn refreshes_of_a_fleet_lie_between_seven_and_eight_tenths_of_the_life() {
    let life = Life::of(None, None, secs(0), secs(100), secs(900)).unwrap();
    let at = |spread| life.refresh_at(spread).unwrap();
    assert_eq!((at(0.0), at(0.5), at(1.0)), (secs(80), secs(75), secs(70)));
    // Whatever comes out of a random number generator.
    assert_eq!((at(-1.0), at(7.0)), (secs(80), secs(70)));
    let is_final = Life {
        is_final: true,
        ..life
    };
    assert_eq!(is_final.refresh_at(0.5), None);
}

#[test]
fn what_another_node_says_of_a_life_is_believed_within_our_own_bounds() {
    let told = |fetched, expires| Lived {
        fetched: secs(fetched),
        expires: secs(expires),
        is_final: false,
    };
    let seen = |lived: Lived, now| {
        lived
            .seen(secs(now), secs(1000))
            .map(|(age, life)| (age.as_secs(), life.ttl.as_secs()))
    };
    assert_eq!(seen(told(100, 400), 150), Ok((50, 300)));
    assert_eq!(seen(told(100, 400), 399), Ok((299, 300)));
    assert_eq!(seen(told(100, 400), 400), Err(Unlived::Expired));
    assert_eq!(seen(told(100, 400), 9000), Err(Unlived::Expired));
    // Longer than this node would keep it.
    assert_eq!(seen(told(100, 1_000_000), 200), Ok((100, 1000)));
    assert_eq!(seen(told(100, 1_000_000), 1100), Err(Unlived::Expired));
    // A clock that is ahead by less than the margin makes it new; by more, nothing.
    assert_eq!(seen(told(160, 460), 100), Ok((0, 300)));
    assert_eq!(seen(told(161, 461), 100), Err(Unlived::Clock));
    // Ends before it begins, and numbers without end.
    assert_eq!(seen(told(400, 100), 400), Err(Unlived::Expired));
    let endless = Lived {
        expires: Duration::MAX,
        ..told(0, 0)
    };
    assert_eq!(
        endless.seen(secs(1), Duration::MAX).unwrap().1.ttl,
        limits::TOKEN_TTL_MAX
    );
}
