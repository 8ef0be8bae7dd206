//! The network namespaces in which the data path serves: those that it may ask for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::addr::NetnsCookie;
use crate::netns::Netns;

/// Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Spaces(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// By number; None is the agent's own. With the listeners that stand in each.
    served: HashMap<Option<u64>, (Netns, NetnsCookie, usize)>,
}

/// One listener.
pub(super) struct Entered {
    spaces: Spaces,
    number: Option<u64>,
}

impl Spaces {
    /// A listener in `netns` is given to the data path; it may ask for that until the result is dropped.
    pub(super) fn enter(&self, netns: &Netns, cookie: NetnsCookie) -> Entered {
        let number = netns.number();
        let mut known = self.lock();
        let entry = known
            .served
            .entry(number)
            .or_insert_with(|| (netns.clone(), cookie, 0));
        entry.2 += 1;
        drop(known);
        Entered {
            spaces: self.clone(),
            number,
        }
    }

    /// Where `number` leads; None where nothing is served.
    pub(super) fn find(&self, number: Option<u64>) -> Option<Netns> {
        self.lock().served.get(&number).map(|(netns, ..)| netns.clone())
    }

    pub(super) fn has(&self, cookie: NetnsCookie) -> bool {
        self.lock().served.values().any(|(_, known, _)| *known == cookie)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut known = self.spaces.lock();
        let last = known.served.get_mut(&self.number).is_some_and(|entry| {
            entry.2 -= 1;
            entry.2 == 0
        });
        if last {
            known.served.remove(&self.number);
        }
    }
}
