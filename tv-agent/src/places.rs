//! How many of something each workload may have at once, so that one cannot take everybody's.

use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// Counts per cgroup id, each up to the same limit. Cheap to clone.
#[derive(Clone)]
pub struct Places {
    taken: Arc<DashMap<u64, usize>>,
    limit: usize,
}

/// One place; given back on drop.
pub struct Place {
    taken: Arc<DashMap<u64, usize>>,
    workload: u64,
}

impl Places {
    pub fn new(limit: usize) -> Self {
        Self {
            taken: Arc::default(),
            limit,
        }
    }

    /// A place for `workload`, a cgroup id; None when it has all that it may have.
    pub fn take(&self, workload: u64) -> Option<Place> {
        let mut count = self.taken.entry(workload).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Place {
            taken: self.taken.clone(),
            workload,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.taken.entry(self.workload) {
            *count.get_mut() -= 1;
            // Workloads come and go: the table holds those that are here.
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_workload_has_its_own_limit_and_leaves_no_trace() {
        let places = Places::new(2);
        let held = [places.take(1), places.take(1)];
        assert!(held.iter().all(Option::is_some));
        assert!(places.take(1).is_none(), "the third is too many");
        let other = places.take(2);
        assert!(other.is_some(), "another workload does not notice");
        drop(held);
        assert!(places.take(1).is_some());
        drop(other);
        assert!(places.taken.is_empty());
    }
}
