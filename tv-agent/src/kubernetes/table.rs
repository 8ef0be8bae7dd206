//! The pods of this node and the namespaces of the cluster, as last heard, and what follows from them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;

use super::enrol::{self, Orders};
use super::events::Teller;
use super::notes::{Note, Reason};
use super::objects::{self, Namespace, Resource, Seen, Skipped};
use super::settings::Settings;
use crate::limits;
use crate::metrics::Metrics;
use crate::workload::{Pod, PodFacts};

/// What is known.
pub struct Table {
    settings: Arc<Settings>,
    known: RwLock<Known>,
    orders: watch::Sender<Arc<Orders>>,
    teller: Teller,
    metrics: Metrics,
}

#[derive(Default)]
struct Known {
    /// By the UID that cgroups are named by.
    pods: HashMap<String, Entry>,
    /// The value of our label; a namespace that is missing is not known.
    namespaces: HashMap<String, Option<String>>,
    /// Pods and namespaces.
    listed: [bool; 2],
    /// Objects that were skipped, of which that was said.
    skipped: HashSet<(&'static str, String)>,
}

struct Entry {
    seen: Seen,
    pod: Arc<Pod>,
    order: Option<enrol::Order>,
    warnings: Vec<String>,
}

/// A change of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Put,
    Gone,
}

/// A list that is being taken: what it does not name is gone.
pub struct Listing {
    resource: Resource,
    pods: HashMap<String, Seen>,
    namespaces: HashMap<String, Option<String>>,
}

impl Listing {
    pub fn of(resource: Resource) -> Self {
        Self {
            resource,
            pods: HashMap::new(),
            namespaces: HashMap::new(),
        }
    }
}

impl Table {
    pub fn new(
        settings: Arc<Settings>,
        teller: Teller,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<Arc<Orders>>) {
        let (orders, receiver) = watch::channel(Arc::default());
        let table = Self {
            settings,
            known: RwLock::default(),
            orders,
            teller,
            metrics,
        };
        (table, receiver)
    }

    /// Takes an object of a list.
    pub fn list(&self, listing: &mut Listing, json: &str) {
        let taken = match listing.resource {
            Resource::Pods => objects::pod(json, &self.settings.rules.prefix).and_then(|seen| {
                room(
                    listing.pods.len(),
                    listing.pods.contains_key(&seen.uid),
                    limits::PODS,
                )?;
                listing.pods.insert(seen.uid.clone(), seen);
                Ok(())
            }),
            Resource::Namespaces => objects::namespace(json, &self.settings.rules.prefix).and_then(|seen| {
                let known = listing.namespaces.contains_key(&seen.name);
                room(listing.namespaces.len(), known, limits::NAMESPACES_KNOWN)?;
                listing.namespaces.insert(seen.name, seen.enrol);
                Ok(())
            }),
        };
        if let Err(skipped) = taken {
            self.skip(listing.resource, json, &skipped);
        }
    }

    /// Puts a whole list in the place of what was known.
    pub fn replace(&self, listing: Listing) {
        let mut known = self.write();
        match listing.resource {
            Resource::Pods => {
                known.listed[0] = true;
                let before = std::mem::take(&mut known.pods);
                for (uid, seen) in listing.pods {
                    let warned = before.get(&uid).map(|entry| entry.warnings.clone());
                    self.put(&mut known, seen, warned.unwrap_or_default());
                }
            }
            Resource::Namespaces => {
                known.listed[1] = true;
                known.namespaces = listing.namespaces;
                self.decide_again(&mut known, None);
            }
        }
        self.publish(&known);
    }

    /// Takes a change of one object.
    pub fn change(&self, resource: Resource, change: Change, json: &str) {
        let prefix = &self.settings.rules.prefix;
        let taken = match resource {
            Resource::Pods => objects::pod(json, prefix).and_then(|seen| self.change_pod(change, seen)),
            Resource::Namespaces => {
                objects::namespace(json, prefix).and_then(|seen| self.change_namespace(change, seen))
            }
        };
        if let Err(skipped) = taken {
            self.skip(resource, json, &skipped);
        }
    }

    fn change_pod(&self, change: Change, seen: Seen) -> Result<(), Skipped> {
        let mut known = self.write();
        match change {
            Change::Put => {
                let before = known.pods.get(&seen.uid).map(|entry| entry.warnings.clone());
                room(known.pods.len(), before.is_some(), limits::PODS)?;
                self.put(&mut known, seen, before.unwrap_or_default());
            }
            Change::Gone => {
                // A mirror pod that was made again goes by the same hash.
                let same = known.pods.get(&seen.uid);
                if same.is_some_and(|entry| entry.seen.object_uid == seen.object_uid) {
                    known.pods.remove(&seen.uid);
                }
            }
        }
        self.publish(&known);
        Ok(())
    }

    fn change_namespace(&self, change: Change, seen: Namespace) -> Result<(), Skipped> {
        let mut known = self.write();
        match change {
            Change::Put => {
                let before = known.namespaces.get(&seen.name);
                room(known.namespaces.len(), before.is_some(), limits::NAMESPACES_KNOWN)?;
                if before == Some(&seen.enrol) {
                    return Ok(());
                }
                known.namespaces.insert(seen.name.clone(), seen.enrol);
            }
            Change::Gone => drop(known.namespaces.remove(&seen.name)),
        }
        self.decide_again(&mut known, Some(&seen.name));
        self.publish(&known);
        Ok(())
    }

    /// Puts one pod in, decided. `warned`: what was said of it before.
    fn put(&self, known: &mut Known, seen: Seen, warned: Vec<String>) {
        let pod = Arc::new(Pod {
            namespace: seen.namespace.clone(),
            name: seen.name.clone(),
            service_account: seen.service_account.clone(),
            labels: seen.labels.clone(),
            annotations: seen.annotations.clone(),
            containers: seen.containers.clone(),
            prefix: self.settings.rules.prefix.clone(),
        });
        let mut entry = Entry {
            seen,
            pod,
            order: None,
            warnings: warned,
        };
        self.decide(&known.namespaces, &mut entry);
        known.pods.insert(entry.seen.uid.clone(), entry);
    }

    fn decide_again(&self, known: &mut Known, namespace: Option<&str>) {
        let Known { pods, namespaces, .. } = known;
        for entry in pods.values_mut() {
            if namespace.is_none_or(|namespace| entry.seen.namespace == namespace) {
                self.decide(namespaces, entry);
            }
        }
    }

    fn decide(&self, namespaces: &HashMap<String, Option<String>>, entry: &mut Entry) {
        let namespace = namespaces.get(&entry.seen.namespace).map(Option::as_deref);
        let decision = enrol::decide(&entry.seen, namespace, &self.settings.rules);
        entry.order = enrol::order(&entry.seen, &decision);
        for text in &decision.warnings {
            if !entry.warnings.contains(text) {
                let seen = &entry.seen;
                tracing::warn!(pod = seen.name, namespace = seen.namespace, "{text}");
                self.teller.tell(Note {
                    pod: seen.uid.clone(),
                    reason: Reason::BadAnnotation,
                    about: text.clone(),
                    text: text.clone(),
                });
            }
        }
        entry.warnings = decision.warnings;
    }

    fn publish(&self, known: &Known) {
        let orders = known.pods.iter();
        let orders: BTreeMap<_, _> = orders
            .filter_map(|(uid, entry)| Some((uid.clone(), entry.order.clone()?)))
            .collect();
        let enrolled = orders.values().filter(|order| order.enrol).count();
        self.metrics.kubernetes.pods(known.pods.len(), enrolled);
        let new = Orders {
            pods: orders,
            listed: known.listed == [true; 2],
        };
        self.orders.send_if_modified(|old| {
            let changed = **old != new;
            if changed {
                *old = Arc::new(new);
            }
            changed
        });
    }

    fn skip(&self, resource: Resource, json: &str, skipped: &Skipped) {
        let marks = objects::marks(json);
        self.metrics.kubernetes.skipped(resource.label(), skipped.label());
        let mut known = self.write();
        let news =
            known.skipped.len() < limits::PODS && known.skipped.insert((resource.label(), marks.key.clone()));
        drop(known);
        if news {
            tracing::warn!(
                resource = resource.label(), object = marks.key, %skipped,
                "an object of the API server is not taken; what was known of it stays"
            );
        }
    }

    /// Namespace, name and object's UID of a pod, for an Event.
    pub fn object(&self, uid: &str) -> Option<(String, String, String)> {
        let known = self.read();
        let seen = &known.pods.get(uid)?.seen;
        Some((seen.namespace.clone(), seen.name.clone(), seen.object_uid.clone()))
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there is room for one more.
fn room(held: usize, known: bool, limit: usize) -> Result<(), Skipped> {
    if known || held < limit {
        return Ok(());
    }
    Err(Skipped::TooMany)
}

impl PodFacts for Table {
    fn of(&self, uid: &str) -> Option<Arc<Pod>> {
        self.read().pods.get(uid).map(|entry| entry.pod.clone())
    }
}

#[cfg(test)]
mod tests;
