//! Keeps the ConfigMaps with the roots: written before a pod needs one, and again when roots change or somebody else has
//! changed or removed one.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::Settings;
use super::content::{Content, digest};
use super::known::Known;
use super::metrics::Metrics;
use crate::https::causes;
use crate::limits;

/// Who writes, for the API server's record of fields (server-side apply).
const MANAGER: &str = "tv-agent-webhook";
/// Locks, of which each namespace has one: only one review of a namespace writes.
const LOCKS: usize = 64;
/// ConfigMaps of one page of a list, 250 KiB each.
const PAGE: u32 = 16;
/// ConfigMaps that are written again at once.
const WRITERS: usize = 4;
/// What was changed by somebody else is written again after this, not at once.
const CALM: Duration = Duration::from_secs(1);

/// Why a ConfigMap is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the API server did not answer within {} s", limits::WEBHOOK_API_TIME.as_secs())]
    Timeout,
    #[error("the API server refused it ({code}): {message}")]
    Refused {
        code: u16,
        message: String,
        /// The namespace is gone, or goes.
        over: bool,
    },
    #[error("the API server cannot be asked")]
    Unreachable(#[source] kube::Error),
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Unreachable(error);
        };
        let mut causes = status.details.iter().flat_map(|details| &details.causes);
        let ending = causes.any(|cause| cause.reason == "NamespaceTerminating");
        Self::Refused {
            code: status.code,
            over: status.code == 404 || ending,
            message: status.message,
        }
    }
}

pub struct Keeper {
    client: Client,
    name: String,
    labels: BTreeMap<&'static str, String>,
    digest_annotation: String,
    content: ArcSwap<Content>,
    known: Mutex<Known>,
    locks: [tokio::sync::Mutex<()>; LOCKS],
    /// All were listed once.
    listed: AtomicBool,
    work: Notify,
    metrics: Metrics,
}

impl Keeper {
    pub fn new(client: Client, settings: &Settings, content: Content, metrics: Metrics) -> Self {
        let prefix = &settings.book.rules.prefix;
        Self {
            client,
            name: settings.book.config_map.clone(),
            labels: BTreeMap::from([
                ("app.kubernetes.io/managed-by", MANAGER.to_owned()),
                ("app.kubernetes.io/part-of", "tv-agent".to_owned()),
            ]),
            digest_annotation: format!("{prefix}/roots-digest"),
            content: ArcSwap::from_pointee(content),
            known: Mutex::default(),
            locks: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            listed: AtomicBool::new(false),
            work: Notify::new(),
            metrics,
        }
    }

    pub fn content(&self) -> Arc<Content> {
        self.content.load_full()
    }

    /// Other contents; their fingerprints, when they are.
    pub fn replace(&self, content: Content) -> Option<String> {
        if self.content.load().digest == content.digest {
            return None;
        }
        let fingerprints = content.fingerprints.clone();
        self.content.store(content.into());
        self.work.notify_one();
        Some(fingerprints)
    }

    /// Whether the API server has told us of all ConfigMaps once.
    pub fn listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed)
    }

    /// Returns when a pod of `namespace` finds the ConfigMap.
    ///
    /// # Errors
    /// When it cannot be written in time.
    pub async fn ensure(&self, namespace: &str) -> Result<(), Error> {
        if self.known().is_kept(namespace) {
            return Ok(());
        }
        let wanted = async {
            let _turn = self.lock(namespace).lock().await;
            if self.known().is_kept(namespace) {
                return Ok(());
            }
            self.write(namespace).await
        };
        let written = timeout(limits::WEBHOOK_API_TIME, wanted).await;
        let written = written.map_err(|_| Error::Timeout).flatten();
        if written.is_err() {
            self.metrics.write(false);
        }
        written
    }

    async fn write(&self, namespace: &str) -> Result<(), Error> {
        let content = self.content();
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self.name,
                "labels": self.labels,
                "annotations": { &*self.digest_annotation: content.digest },
            },
            "data": content.data(),
        });
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let parameters = PatchParams::apply(MANAGER).force();
        api.patch(&self.name, &parameters, &Patch::Apply(&map)).await?;
        let count = {
            let mut known = self.known();
            known.written(namespace, &content.digest);
            known.len()
        };
        self.metrics.namespaces(count);
        self.metrics.write(true);
        tracing::info!(
            namespace,
            roots = content.fingerprints,
            "the ConfigMap with the roots is written"
        );
        Ok(())
    }

    /// Hears of every ConfigMap of ours, for ever.
    pub async fn watch(self: Arc<Self>) {
        // By its name, which the role allows; no other ConfigMap is ever seen.
        let ours = watcher::Config::default()
            .fields(&format!("metadata.name={}", self.name))
            .page_size(PAGE);
        let api: Api<ConfigMap> = Api::all(self.client.clone());
        let mut events = pin!(watcher(api, ours).default_backoff());
        let mut down = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if std::mem::take(&mut down) {
                        tracing::info!("the API server is there again");
                    }
                    self.take(event);
                }
                Err(error) if !down => {
                    down = true;
                    let error = causes(&error);
                    tracing::warn!(
                        error,
                        "the ConfigMaps cannot be watched; what was known of them stays"
                    );
                }
                Err(_) => {}
            }
        }
    }

    fn take(&self, event: Event<ConfigMap>) {
        let namespace = |map: &ConfigMap| map.metadata.namespace.clone().unwrap_or_default();
        let mut known = self.known();
        let wanting = match event {
            Event::Apply(map) | Event::InitApply(map) => {
                let claimed = map.metadata.annotations.as_ref();
                let claimed = claimed.and_then(|all| all.get(&self.digest_annotation));
                let digest = digest(&map.data.clone().unwrap_or_default());
                known.seen(&namespace(&map), digest, claimed.map(String::as_str))
            }
            Event::Delete(map) => {
                known.gone(&namespace(&map));
                true
            }
            Event::Init => {
                known.begin();
                false
            }
            Event::InitDone => {
                self.listed.store(true, Ordering::Relaxed);
                known.end()
            }
        };
        self.metrics.namespaces(known.len());
        if wanting {
            self.work.notify_one();
        }
    }

    /// Writes again what is not as it should be, for ever. Another replica may still read old roots from its mount: it is
    /// not answered at once, or the two would write in turns as fast as they can.
    pub async fn sweep(self: Arc<Self>, every: Duration) {
        loop {
            if timeout(every, self.work.notified()).await.is_ok() {
                sleep(CALM.min(every)).await;
            }
            let outdated = self.known().outdated(&self.content.load().digest);
            stream::iter(outdated)
                .for_each_concurrent(WRITERS, |namespace| self.rewrite(namespace))
                .await;
        }
    }

    async fn rewrite(&self, namespace: String) {
        let turn = async {
            let _turn = self.lock(&namespace).lock().await;
            self.write(&namespace).await
        };
        match timeout(limits::WEBHOOK_API_TIME, turn).await {
            Ok(Ok(())) => {}
            Ok(Err(Error::Refused { over: true, .. })) => self.known().forget(&namespace),
            Ok(Err(error)) => self.failed(&namespace, &error),
            Err(_) => self.failed(&namespace, &Error::Timeout),
        }
    }

    fn failed(&self, namespace: &str, error: &Error) {
        self.metrics.write(false);
        let error = causes(error);
        tracing::warn!(
            namespace,
            error,
            "cannot bring the ConfigMap with the roots up to date"
        );
    }

    fn lock(&self, namespace: &str) -> &tokio::sync::Mutex<()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(namespace);
        &self.locks[hash as usize % LOCKS]
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
