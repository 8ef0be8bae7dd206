//! Single flight, floor, freshness and staleness, by a clock that stands still until it is moved.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const TIMES: Times = Times {
    floor: Duration::from_secs(10),
    fresh: Duration::from_secs(100),
    fresh_max: Duration::from_secs(1000),
    stale: Duration::from_secs(500),
};

/// A source that counts its fetches; each takes a second, and fails while `broken`.
#[derive(Default)]
struct Source {
    fetches: AtomicUsize,
    broken: std::sync::atomic::AtomicBool,
    fresh: Mutex<Option<Duration>>,
}

impl Source {
    fn kept(self: &Arc<Self>) -> Kept<usize> {
        let source = self.clone();
        Kept::new(TIMES, move || {
            let source = source.clone();
            Box::pin(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let value = source.fetches.fetch_add(1, Ordering::Relaxed) + 1;
                if source.broken.load(Ordering::Relaxed) {
                    return Err(Unfetched::Lacks("a test"));
                }
                let fresh = *source.fresh.lock().unwrap();
                Ok(Fetched { value, fresh })
            })
        })
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::Relaxed)
    }

    fn break_down(&self, broken: bool) {
        self.broken.store(broken, Ordering::Relaxed);
    }
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_share_one_fetch_and_none_can_cancel_it() {
    let source = Arc::<Source>::default();
    let kept = source.kept();
    let impatient = tokio::time::timeout(Duration::from_millis(1), kept.get()).await;
    assert!(impatient.is_err());
    let all: Vec<_> = (0..100)
        .map(|_| {
            let kept = kept.clone();
            tokio::spawn(async move { *kept.get().await.unwrap() })
        })
        .collect();
    for one in all {
        assert_eq!(one.await.unwrap(), 1);
    }
    assert_eq!(source.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_value_is_fetched_again_when_it_is_no_longer_fresh() {
    let source = Arc::<Source>::default();
    let kept = source.kept();
    assert_eq!(*kept.get().await.unwrap(), 1);
    pass(99).await;
    assert_eq!(*kept.get().await.unwrap(), 1);
    pass(2).await;
    assert_eq!(*kept.get().await.unwrap(), 2);
    // What the server says counts, between the floor and the longest time.
    for (said, lives) in [(0, 10), (50, 50), (100_000, 1000)] {
        *source.fresh.lock().unwrap() = Some(Duration::from_secs(said));
        pass(2000).await;
        let first = *kept.get().await.unwrap();
        pass(lives - 1).await;
        assert_eq!(*kept.get().await.unwrap(), first, "{said}");
        pass(2).await;
        assert_eq!(*kept.get().await.unwrap(), first + 1, "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_value_serves_while_fetches_fail_but_not_for_ever() {
    let source = Arc::<Source>::default();
    let kept = source.kept();
    kept.get().await.unwrap();
    source.break_down(true);
    pass(200).await;
    assert_eq!(*kept.get().await.unwrap(), 1);
    assert_eq!(source.fetches(), 2);
    // The floor holds for failures as well.
    assert_eq!(*kept.get().await.unwrap(), 1);
    assert_eq!(source.fetches(), 2);
    pass(400).await;
    let error = kept.get().await.unwrap_err();
    assert_eq!(error.to_string(), "neither configured nor discovered: a test");
    assert!(error.retry_after <= TIMES.floor && error.retry_after > Duration::ZERO);
    source.break_down(false);
    assert!(kept.get().await.is_err(), "the floor");
    pass(10).await;
    assert_eq!(*kept.get().await.unwrap(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_newer_value_is_asked_for_no_more_often_than_the_floor() {
    let source = Arc::<Source>::default();
    let kept = source.kept();
    let first = kept.get().await.unwrap();
    for _ in 0..50 {
        assert!(kept.after(&first).await.unwrap().is_none());
    }
    assert_eq!(source.fetches(), 1);
    pass(10).await;
    let second = kept.after(&first).await.unwrap().unwrap();
    assert_eq!((*second, source.fetches()), (2, 2));
    // Known to be outdated already: no fetch.
    assert!(Arc::ptr_eq(&kept.after(&first).await.unwrap().unwrap(), &second));
    pass(10).await;
    source.break_down(true);
    assert!(kept.after(&second).await.is_err());
    assert!(
        kept.after(&second).await.is_err(),
        "nobody knows until the next fetch"
    );
    assert_eq!(source.fetches(), 3);
    assert!(Arc::ptr_eq(&kept.get().await.unwrap(), &second));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_panics_is_a_failed_one() {
    let kept = Kept::<()>::new(TIMES, || Box::pin(async { panic!("for the test") }));
    let error = kept.get().await.unwrap_err();
    assert!(matches!(error.cause, Unfetched::Aborted));
    pass(11).await;
    assert!(kept.get().await.is_err());
}
