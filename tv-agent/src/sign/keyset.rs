//! Named sets of signing keys: generated, from a file, or from a URL; the first key signs, all are published.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;
use zeroize::Zeroizing;

use super::algorithm::Algorithm;
use super::jwks;
use super::key::{Key, KeyError};
use super::store::{self, FILE_BYTES, Store, StoreError};
use crate::https;
use crate::limits;

/// A key set as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub name: Arc<str>,
    pub source: Source,
}

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Made here, and made anew after `rotate`.
    Generate { how: Generate, rotate: Option<Duration> },
    /// A JWK set (RFC 7517 §5) with private keys.
    File { path: PathBuf },
    /// The same over HTTPS, read again after `refresh`.
    Url {
        url: Url,
        refresh: Duration,
        /// PEM files with roots, besides the system's.
        extra_roots: Vec<PathBuf>,
    },
}

impl Source {
    pub fn label(&self) -> &'static str {
        match self {
            Self::Generate { .. } => "generated",
            Self::File { .. } => "file",
            Self::Url { .. } => "url",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generate {
    pub algorithm: Algorithm,
    /// For RSA: 2048, 3072 or 4096.
    pub bits: u16,
}

/// Why a key set is not there, or not changed. Messages hold nothing of a key.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    #[error("keysets.{set}")]
    Store { set: Arc<str>, source: StoreError },
    #[error("keysets.{set}: {from}: it is no JWK set (an object with the list `keys`, RFC 7517) or a key")]
    NotASet { set: Arc<str>, from: String },
    #[error("keysets.{set}: {from}: it has more than {} keys", limits::KEYS)]
    TooMany { set: Arc<str>, from: String },
    #[error("keysets.{set}: {from}: it has no key")]
    Empty { set: Arc<str>, from: String },
    #[error("keysets.{set}: {from}: key {number}")]
    Key {
        set: Arc<str>,
        from: String,
        number: usize,
        source: KeyError,
    },
    #[error("keysets.{set}: {from}: two keys have the id {kid:?}")]
    Twice {
        set: Arc<str>,
        from: String,
        kid: String,
    },
    #[error("keysets.{set}: {from}: {problem}")]
    Fetch {
        set: Arc<str>,
        from: String,
        problem: String,
    },
    #[error(
        "keysets.{set}: its keys come from {from}: put new ones there, the first one signs; they are read again by themselves"
    )]
    NotOurs { set: Arc<str>, from: String },
}

/// A key as people may see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub set: String,
    /// `generated`, `file` or `url`.
    pub source: String,
    pub kid: String,
    pub algorithm: String,
    /// Seconds since 1970; 0: unknown.
    pub created: u64,
    /// `current` signs; tokens by `previous` are still out.
    pub state: String,
}

/// One set, in use.
pub struct KeySet {
    settings: Settings,
    store: Option<Store>,
    client: Option<reqwest::Client>,
    keys: ArcSwap<Vec<Arc<Key>>>,
    /// When the file was changed that the keys are of; when the URL was asked last.
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    changed: Option<SystemTime>,
    asked: Option<u64>,
    loaded: Option<u64>,
}

impl KeySet {
    /// Reads the keys, or makes them. Those of a URL come with the first [`KeySet::tend`]. `client` is for a URL.
    ///
    /// # Errors
    /// When there are no keys that can be used.
    pub fn open(
        settings: Settings,
        dir: &Path,
        now: u64,
        client: Option<reqwest::Client>,
    ) -> Result<Self, SetError> {
        let mut set = Self::unread(settings, dir);
        set.client = client;
        set.read(now)?;
        Ok(set)
    }

    /// A set whose keys were not read yet: for commands, which make none unasked.
    pub fn unread(settings: Settings, dir: &Path) -> Self {
        let generated = matches!(settings.source, Source::Generate { .. });
        Self {
            store: generated.then(|| Store::new(dir, &settings.name)),
            client: None,
            keys: ArcSwap::from_pointee(Vec::new()),
            seen: Mutex::default(),
            settings,
        }
    }

    /// Reads the keys that are on disk, and changes nothing there.
    ///
    /// # Errors
    /// When there are none, or none that can be used.
    pub fn look(&self) -> Result<(), SetError> {
        match &self.store {
            Some(store) => {
                let keys = store.load().map_err(|source| self.stored(source))?;
                self.take(keys, store::changed(&store.path));
                Ok(())
            }
            None => self.read(0),
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The key that signs: the first one, or the first one for `algorithm`.
    pub fn signing(&self, algorithm: Option<Algorithm>) -> Option<Arc<Key>> {
        let keys = self.keys.load();
        let fits = |key: &&Arc<Key>| algorithm.is_none_or(|wanted| wanted == key.algorithm);
        keys.iter().find(fits).cloned()
    }

    /// The public keys as a JWK set. Symmetric keys have no public half and are not in it.
    pub fn jwks(&self) -> Vec<Value> {
        self.keys
            .load()
            .iter()
            .filter_map(|key| key.public_jwk())
            .collect()
    }

    pub fn list(&self) -> Vec<Shown> {
        let row = |(index, key): (usize, &Arc<Key>)| Shown {
            set: self.settings.name.to_string(),
            source: self.settings.source.label().to_owned(),
            kid: key.kid.clone(),
            algorithm: key.algorithm.to_string(),
            created: key.created,
            state: if index == 0 { "current" } else { "previous" }.to_owned(),
        };
        self.keys.load().iter().enumerate().map(row).collect()
    }

    /// Makes a new current key. Blocks while it does.
    ///
    /// # Errors
    /// When that fails, or the keys are not made here.
    pub fn rotate(&self, now: u64) -> Result<(), SetError> {
        match (&self.settings.source, &self.store) {
            (Source::Generate { how, .. }, Some(store)) => {
                let keys = store.rotate(how, now).map_err(|source| self.stored(source))?;
                self.take(keys, store::changed(&store.path));
                Ok(())
            }
            _ => Err(SetError::NotOurs {
                set: self.settings.name.clone(),
                from: self.from(),
            }),
        }
    }

    /// What has to be done now and then: rotates by time, reads what has changed, asks the URL. The keys that are
    /// there stay when it fails. True: there are other keys now.
    ///
    /// # Errors
    /// Why there are no newer ones.
    pub async fn tend(self: &Arc<Self>, now: u64) -> Result<bool, SetError> {
        if let (Source::Url { url, refresh, .. }, Some(client)) = (&self.settings.source, &self.client) {
            if !self.due(now, refresh.as_secs()) {
                return Ok(false);
            }
            let text = self.fetch(client, url).await?;
            self.take(jwks::parse(&self.settings.name, self.from(), &text)?, None);
            self.seen().loaded = Some(now);
            return Ok(true);
        }
        if !self.stale(now) {
            return Ok(false);
        }
        let set = self.clone();
        // A large RSA key takes a second.
        let done = tokio::task::spawn_blocking(move || set.read(now)).await;
        done.unwrap_or(Ok(())).map(|()| true)
    }

    /// Whether the file is another one now, or the current key too old.
    fn stale(&self, now: u64) -> bool {
        let path = match (&self.settings.source, &self.store) {
            (Source::File { path }, _) => path,
            (Source::Generate { .. }, Some(store)) => &store.path,
            _ => return false,
        };
        self.too_old(now) || store::changed(path) != self.seen().changed
    }

    fn too_old(&self, now: u64) -> bool {
        let Source::Generate {
            rotate: Some(rotate), ..
        } = self.settings.source
        else {
            return false;
        };
        self.signing(None)
            .is_some_and(|key| is_old(key.created, now, rotate))
    }

    /// A URL that failed is asked again after [`RETRY`].
    fn due(&self, now: u64, refresh: u64) -> bool {
        let mut seen = self.seen();
        let wait = if seen.loaded.is_some() && seen.loaded == seen.asked {
            refresh
        } else {
            RETRY
        };
        let due = seen.asked.is_none_or(|asked| now >= asked.saturating_add(wait));
        if due {
            seen.asked = Some(now);
        }
        due
    }

    /// From disk; a URL's keys stay away.
    fn read(&self, now: u64) -> Result<(), SetError> {
        match (&self.settings.source, &self.store) {
            (Source::Generate { how, rotate }, Some(store)) => {
                let mut keys = store.open(how, now).map_err(|source| self.stored(source))?;
                let old = |keys: &[Key]| rotate.filter(|rotate| is_old(keys[0].created, now, *rotate));
                if let Some(rotate) = old(&keys) {
                    let before = now.saturating_sub(rotate.as_secs()).saturating_add(1);
                    let rotated = store.rotate_older(how, now, before);
                    keys = rotated.map_err(|source| self.stored(source))?;
                }
                self.take(keys, store::changed(&store.path));
                Ok(())
            }
            (Source::File { path }, _) => {
                let when = store::changed(path);
                // Noticed once, whatever it holds.
                self.seen().changed = when;
                let (bytes, _) = store::read(path).map_err(|source| self.stored(source))?;
                self.take(jwks::parse(&self.settings.name, self.from(), &bytes)?, when);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn take(&self, keys: Vec<Key>, when: Option<SystemTime>) {
        self.keys
            .store(Arc::new(keys.into_iter().map(Arc::new).collect()));
        self.seen().changed = when;
    }

    async fn fetch(&self, client: &reqwest::Client, url: &Url) -> Result<Zeroizing<Vec<u8>>, SetError> {
        let failed = |problem| SetError::Fetch {
            set: self.settings.name.clone(),
            from: self.from(),
            problem,
        };
        let asked = client.get(url.clone()).timeout(limits::KEYS_TIME).send().await;
        let broken = |error: reqwest::Error| failed(https::causes(&error.without_url()));
        let mut answer = asked.map_err(broken)?;
        if answer.status() != http::StatusCode::OK {
            return Err(failed(format!("it answered {}", answer.status())));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES));
        let whole = https::fill(&mut answer, &mut bytes, FILE_BYTES)
            .await
            .map_err(broken)?;
        if !whole {
            return Err(failed(format!("it is larger than {FILE_BYTES} bytes")));
        }
        Ok(bytes)
    }

    fn stored(&self, source: StoreError) -> SetError {
        SetError::Store {
            set: self.settings.name.clone(),
            source,
        }
    }

    fn from(&self) -> String {
        match &self.settings.source {
            Source::Generate { .. } => self.store.as_ref().map(|store| store.path.display().to_string()),
            Source::File { path } => Some(path.display().to_string()),
            // Whatever a query holds may be a secret.
            Source::Url { url, .. } => Some(format!("https://{}{}", url.authority(), url.path())),
        }
        .unwrap_or_default()
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds after which a URL is asked again that gave no keys.
const RETRY: u64 = 10;

/// A key that was made in the future was made by a clock that was wrong: it is not old.
fn is_old(created: u64, now: u64, rotate: Duration) -> bool {
    now.saturating_sub(created) >= rotate.as_secs()
}

/// All sets of a configuration.
#[derive(Clone, Default)]
pub struct KeySets(BTreeMap<Arc<str>, Arc<KeySet>>);

impl KeySets {
    pub fn new(sets: impl IntoIterator<Item = impl Into<Arc<KeySet>>>) -> Self {
        let sets = sets.into_iter().map(Into::<Arc<KeySet>>::into);
        let named = sets.map(|set| (set.settings.name.clone(), set));
        Self(named.collect())
    }

    pub fn get(&self, name: &str) -> Option<&Arc<KeySet>> {
        self.0.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<KeySet>> {
        self.0.values()
    }

    /// The public keys of one set, or of all, as a JWK set (RFC 7517 §5). None: there is no such set.
    pub fn jwks(&self, name: Option<&str>) -> Option<Value> {
        let keys: Vec<Value> = match name {
            Some(name) => self.get(name)?.jwks(),
            None => self.iter().flat_map(|set| set.jwks()).collect(),
        };
        Some(json!({ "keys": keys }))
    }

    pub fn list(&self) -> Vec<Shown> {
        self.iter().flat_map(|set| set.list()).collect()
    }
}
