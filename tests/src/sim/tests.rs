//! The same seed, the same table; and what a shared cache is for.

use super::*;

fn small(cache: Cache) -> Plan {
    Plan {
        nodes: 120,
        subjects: 10,
        limit: 15,
        expires_in: Duration::from_secs(1200),
        gap: Duration::from_secs(60),
        phase: Duration::from_secs(900),
        cache,
        seed: 7,
    }
}

#[test]
fn the_same_seed_gives_the_same_table_and_another_one_another() {
    let plan = Plan {
        nodes: 40,
        ..small(Cache::None)
    };
    assert_eq!(table(&plan), table(&plan));
    assert_ne!(
        table(&plan),
        table(&Plan {
            seed: 8,
            ..plan.clone()
        })
    );
}

#[test]
fn with_a_shared_cache_a_restart_costs_the_vault_nothing() {
    let alone = play(&small(Cache::None));
    let shared = play(&small(Cache::Shared));
    for (alone, shared) in alone.iter().zip(&shared) {
        // What each node asks for itself is beyond the limit all the time.
        assert!(alone.limited() > 0 && alone.refused > 0, "{:?}", alone.minutes);
        assert!(alone.exchanges() > 10 * shared.exchanges());
        assert_eq!((shared.limited(), shared.refused), (0, 0));
        assert!(shared.waits.len() < shared.requests / 50);
        assert!(shared.waits.iter().all(|wait| *wait < Duration::from_secs(1)));
    }
    // One for each subject at first; then one for each at every renewal, whatever restarts.
    assert!(
        (10..=20).contains(&shared[0].exchanges()),
        "{:?}",
        shared[0].minutes
    );
    assert!(shared[1].exchanges() <= 20, "{:?}", shared[1].minutes);
}

#[test]
fn while_redis_is_away_it_is_no_worse_than_without() {
    let alone = &play(&small(Cache::None))[1];
    let failing = play(&small(Cache::Failing));
    assert!(failing[1].limited() > 0 && failing[1].limited() <= alone.limited());
    assert!(failing[1].refused < alone.refused);
    assert_eq!(
        failing[0],
        play(&small(Cache::Shared))[0],
        "nothing differs before"
    );
    assert_eq!(failing[2].refused, 0, "and it is over when it is back");
}

#[test]
fn the_vault_s_limit_is_one_for_each_minute() {
    let mut vault = Vault::new(2, MINUTE);
    let at = Duration::from_secs;
    assert_eq!(
        [vault.call(at(1)), vault.call(at(30)), vault.call(at(59))],
        [Some(1), Some(2), None]
    );
    assert_eq!(
        (vault.retry_after(at(59)), vault.retry_after(at(60))),
        (at(1), at(60))
    );
    assert_eq!(vault.call(at(60)), Some(3));
}

#[test]
fn chance_is_spread_over_its_range() {
    let mut random = Random::new(1);
    let units: Vec<f64> = (0..10_000).map(|_| random.unit()).collect();
    let mean = units.iter().sum::<f64>() / 10_000.0;
    assert!((0.48..0.52).contains(&mean) && units.iter().all(|unit| (0.0..1.0).contains(unit)));
    let gaps: Duration = (0..10_000).map(|_| random.exponential(MINUTE)).sum();
    assert!((55.0..65.0).contains(&(gaps.as_secs_f64() / 10_000.0)));
}
