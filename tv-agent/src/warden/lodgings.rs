//! Which pods are to be covered, as the data path tells it in parts.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::kubernetes::Orders;
use crate::limits;
use crate::workload::is_pod_uid;

/// What was told, for those who cover. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Lodgings {
    told: watch::Sender<Arc<Orders>>,
    /// The parts so far of what is being told.
    parts: Arc<Mutex<Orders>>,
}

impl Default for Lodgings {
    fn default() -> Self {
        Self {
            told: watch::Sender::new(Arc::default()),
            parts: Arc::default(),
        }
    }
}

impl Lodgings {
    pub fn orders(&self) -> watch::Receiver<Arc<Orders>> {
        self.told.subscribe()
    }

    /// # Errors
    /// When they are too many, or no pods.
    pub(super) fn take(&self, orders: Orders, more: bool) -> io::Result<()> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = orders.listed;
        parts.pods.extend(orders.pods);
        let bad = parts.pods.len() > limits::PODS || !parts.pods.keys().all(|uid| is_pod_uid(uid));
        if bad {
            *parts = Orders::default();
            return Err(io::ErrorKind::InvalidData.into());
        }
        if !more {
            let mut whole = std::mem::take(&mut *parts);
            whole.listed = listed;
            self.told.send_replace(Arc::new(whole));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::Order;
    use crate::wire::{self, Ask};

    fn orders(count: usize) -> Orders {
        let order = Order {
            enrol: true,
            ..Order::default()
        };
        let uid = |number| format!("8f6a1c2e-1b2c-4d3e-9f00-{number:012x}");
        Orders {
            pods: (0..count).map(|number| (uid(number), order.clone())).collect(),
            listed: true,
        }
    }

    fn tell(lodgings: &Lodgings, orders: &Orders) -> io::Result<usize> {
        let parts = wire::pods(orders);
        let count = parts.len();
        for part in parts {
            let Ask::Pods { orders, more } = part else {
                panic!("another question")
            };
            lodgings.take(orders, more)?;
        }
        Ok(count)
    }

    #[test]
    fn parts_become_a_whole_at_the_last_one() {
        let lodgings = Lodgings::default();
        let told = lodgings.orders();
        assert!(!told.borrow().listed);
        for (count, parts) in [
            (0, 1),
            (1, 1),
            (limits::WIRE_PODS, 1),
            (limits::WIRE_PODS + 1, 2),
            (limits::PODS, 8),
        ] {
            assert_eq!(tell(&lodgings, &orders(count)).unwrap(), parts);
            assert_eq!(**told.borrow(), orders(count), "{count}");
        }
        let first = wire::pods(&orders(limits::WIRE_PODS + 1)).remove(0);
        let Ask::Pods { orders: part, more } = first else {
            panic!("another question")
        };
        lodgings.take(part, more).unwrap();
        assert_eq!(
            told.borrow().pods.len(),
            limits::PODS,
            "as before, until the last part"
        );
    }

    #[test]
    fn more_pods_than_a_node_has_and_what_is_none_are_refused() {
        let lodgings = Lodgings::default();
        assert!(tell(&lodgings, &orders(limits::PODS + 1)).is_err());
        let mut odd = orders(1);
        odd.pods.insert("../../system.slice".into(), Order::default());
        assert!(tell(&lodgings, &odd).is_err());
        assert!(lodgings.orders().borrow().pods.is_empty());
        tell(&lodgings, &orders(3)).unwrap();
        assert_eq!(
            lodgings.orders().borrow().pods.len(),
            3,
            "nothing is left of what was refused"
        );
    }
}
