//! The fleet's second-level cache in Redis or Valkey: what one node got from the vault serves the others, and one node
//! asks for all. Whatever it does or fails to do, a token can be had without it.
//!
//! The server is not trusted: it sees opaque names, sealed values, sizes and times (`seal.rs`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Cmd;
use rustls::RootCertStore;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::cache::{Good, Key};
use super::life::Unlived;
use crate::clock;
use crate::dial::{Dialer, Unflagged};
use crate::https;
use crate::limits;
use crate::metrics::Metrics;
use crate::secret::Secret;

mod berth;
mod event;
mod link;
mod meter;
pub mod plan;
mod removal;
mod seal;

pub(super) use berth::Berth;
pub use event::Event;
pub use seal::SealKey;

use link::Link;
use plan::{Found, Lock, Purpose, Step, Value};
use seal::{Contents, Ring};

/// The shared cache as configured.
pub struct Settings {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    pub db: i64,
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// One or more; the first seals, all open.
    pub keys: Vec<SealKey>,
    /// Before every name.
    pub prefix: String,
    /// For each question to the server.
    pub timeout: Duration,
    /// Longest time that a token lies there.
    pub ttl_max: Duration,
}

impl Settings {
    /// For the log.
    fn server(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Tells whether a new configuration means another cache.
    fn fingerprint(&self, roots: &RootCertStore) -> [u8; 32] {
        let mut hash = Sha256::new();
        let plain = (&self.host, self.port, self.tls, self.db, &self.user, &self.prefix);
        let times = (self.timeout, self.ttl_max);
        let keys: Vec<&str> = self.keys.iter().map(SealKey::id).collect();
        hash.update(format!(
            "{plain:?} {times:?} {keys:?} {}",
            self.password.is_some()
        ));
        if let Some(password) = &self.password {
            password.digest_into(&mut hash);
        }
        for root in &roots.roots {
            hash.update(&*root.subject);
            hash.update(&*root.subject_public_key_info);
        }
        hash.finalize().into()
    }
}

fn connector(settings: &Settings, roots: Arc<RootCertStore>) -> Result<Option<TlsConnector>, https::Error> {
    let made = settings
        .tls
        .then(|| https::tls(roots).map(|tls| TlsConnector::from(Arc::new(tls))));
    made.transpose()
}

/// Whether the server can be connected and signed in to, and is one that can be used. For `check`.
///
/// # Errors
/// Why not, with every cause.
pub async fn reach(settings: Settings, roots: Arc<RootCertStore>) -> Result<(), String> {
    let tls = connector(&settings, roots).map_err(|error| https::causes(&error))?;
    // It goes out as any program's socket does: there is no kernel half to flag it for.
    let dialer = Dialer::new(Arc::new(Unflagged), limits::CONNECT_TIME);
    link::try_once(Arc::new(settings), tls, dialer, Metrics::new())
        .await
        .map_err(|error| https::causes(&error))
}

/// The shared cache, in use.
pub struct Shared {
    fingerprint: [u8; 32],
    prefix: String,
    ttl_max: Duration,
    ring: Ring,
    link: Link,
    /// Things to do for which no request waits.
    errands: Arc<Semaphore>,
    metrics: Metrics,
}

/// What a flight found.
pub(super) enum Claim {
    Found(Arc<Good>),
    /// The token that was to be renewed goes on to serve; `settled`: to its end.
    Keep {
        settled: bool,
    },
    /// The vault has to be asked. What comes of it is to be [left](Berth::leave).
    Ask(Berth),
}

/// What a flight knows before it looks.
pub(super) struct Wish<'a> {
    pub key: Key,
    pub purpose: Purpose,
    /// The token that is to be renewed.
    pub ours: Option<&'a Good>,
    /// The digest of the one that the provider refused a moment ago.
    pub refused: Option<[u8; 32]>,
    /// Longest wait for another node.
    pub patience: Duration,
    /// Longest life of a token here.
    pub ttl_max: Duration,
}

/// The values at the entry's names, and whether the lock is ours (1), another's (0), or was not reached for (-1).
type Looked = (Vec<Option<Vec<u8>>>, i64);

/// KEYS: the entry's names, the lock. ARGV: mode, owner, the lock's life in ms. One round trip for look and lock.
const LOOK: &str = "\
local found = redis.call('MGET', unpack(KEYS, 1, #KEYS - 1)) \
local any = false \
for i = 1, #KEYS - 1 do any = any or found[i] end \
local lock = -1 \
if ARGV[1] == 'insist' or (ARGV[1] == 'look' and not any) then \
lock = redis.call('SET', KEYS[#KEYS], ARGV[2], 'NX', 'PX', ARGV[3]) and 1 or 0 end \
return {found, lock}";
/// Deletes what has not changed meanwhile.
const DELETE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

impl Shared {
    /// Begins to connect; never fails for want of a server. Call within a tokio runtime.
    ///
    /// # Errors
    /// When TLS cannot be set up, which is a defect of the build.
    pub fn open(
        settings: Settings,
        roots: Arc<RootCertStore>,
        dialer: Dialer,
        metrics: Metrics,
    ) -> Result<Self, https::Error> {
        let mut settings = settings;
        let fingerprint = settings.fingerprint(&roots);
        let tls = connector(&settings, roots)?;
        let ring = Ring::new(std::mem::take(&mut settings.keys));
        tracing::info!(server = settings.server(), keys = ?ring.ids().collect::<Vec<_>>(), "shared cache");
        Ok(Self {
            fingerprint,
            prefix: settings.prefix.clone(),
            ttl_max: settings.ttl_max,
            ring,
            link: Link::open(Arc::new(settings), tls, dialer, metrics.clone()),
            errands: Arc::new(Semaphore::new(limits::SHARED_ERRANDS)),
            metrics,
        })
    }

    /// Whether these settings mean this cache.
    pub fn is(&self, settings: &Settings, roots: &RootCertStore) -> bool {
        self.fingerprint == settings.fingerprint(roots)
    }

    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// The place of `key`, without the lock.
    pub(super) fn berth(self: &Arc<Self>, key: &Key) -> Berth {
        Berth {
            shared: self.clone(),
            key: *key,
            names: self.ring.names(&self.prefix, key),
            owner: None,
        }
    }

    /// Another node's token, or the right to ask the vault. Each question takes no longer than the configured time, all
    /// of it no longer than [`limits::SHARED_LOCK`] and one question.
    pub(super) async fn claim(self: &Arc<Self>, wish: &Wish<'_>) -> Claim {
        let names = self.ring.names(&self.prefix, &wish.key);
        let owner = format!("{:032x}", rand::random::<u128>());
        let berth = |owner| Berth {
            shared: self.clone(),
            key: wish.key,
            names: names.clone(),
            owner,
        };
        let began = Instant::now();
        let mut mode = if wish.purpose == Purpose::Glance {
            "glance"
        } else {
            "look"
        };
        let mut looks = 0;
        loop {
            let command = look(&names, mode, &owner);
            let Ok((values, lock)) = self.link.ask::<Looked>(&command).await else {
                // The lock may be ours although nobody said so.
                return Claim::Ask(berth((mode != "glance").then_some(owner)));
            };
            let (value, good) = self.read(&names, &values, wish);
            let lock = match lock {
                1 => Lock::Ours,
                0 => Lock::Theirs,
                _ => Lock::Untried,
            };
            let held = (lock == Lock::Ours).then(|| owner.clone());
            let so_far = (began.elapsed(), looks);
            match (
                plan::next((value, lock), wish.purpose, so_far, wish.patience, rand::random()),
                good,
            ) {
                (Step::Take, Some(good)) => {
                    self.metrics
                        .shared_cache(if looks == 0 { Event::Hit } else { Event::Awaited }.label());
                    berth(held).release();
                    return Claim::Found(good);
                }
                (Step::Leave, _) => {
                    let settled = value == Value::Settled;
                    return Claim::Keep { settled };
                }
                // A server that does not do what it is told must not keep us here.
                (Step::Insist, _) if mode == "insist" => {
                    self.metrics.shared_cache(Event::Nonsense.label());
                    return Claim::Ask(berth(None));
                }
                (Step::Insist, _) => mode = "insist",
                (Step::Wait(pause), _) => {
                    tokio::time::sleep(pause).await;
                    looks += 1;
                }
                (Step::Ask | Step::Take, _) => {
                    let event = if looks == 0 { Event::Miss } else { Event::GaveUp };
                    self.metrics.shared_cache(event.label());
                    return Claim::Ask(berth(held));
                }
            }
        }
    }

    /// The best of what lay at the entry's names. What does not open or is over is counted, and nothing else.
    fn read(
        &self,
        names: &[String],
        values: &[Option<Vec<u8>>],
        wish: &Wish<'_>,
    ) -> (Value, Option<Arc<Good>>) {
        let mut best = Value::Absent;
        for (index, (name, sealed)) in names.iter().zip(values).enumerate() {
            let Some(sealed) = sealed else { continue };
            best = Value::Useless;
            let useless = |event: Event| self.metrics.shared_cache(event.label());
            let Some(Contents { token, lived }) = self.ring.open(&wish.key, index, name, sealed) else {
                useless(Event::Garbled);
                continue;
            };
            let (age, life) = match lived.seen(clock::unix_now(), wish.ttl_max) {
                Ok(seen) => seen,
                Err(Unlived::Expired) => {
                    useless(Event::Expired);
                    continue;
                }
                Err(Unlived::Clock) => {
                    useless(Event::Clock);
                    continue;
                }
            };
            let now = Instant::now();
            let good = Good::new(
                token,
                Some(life),
                now.checked_sub(age).unwrap_or(now),
                rand::random(),
            );
            let found = Found {
                is_refused: wish.refused == Some(good.digest),
                is_ours: wish.ours.is_some_and(|ours| ours.digest == good.digest),
                is_newer: wish.ours.is_none_or(|ours| good.left() > ours.left()),
                is_final: life.is_final,
            };
            match plan::judge(found, wish.purpose) {
                Value::Usable => return (Value::Usable, Some(Arc::new(good))),
                Value::Settled => return (Value::Settled, None),
                Value::Useless | Value::Absent if found.is_refused => useless(Event::Rejected),
                Value::Useless | Value::Absent => {}
            }
        }
        (best, None)
    }
}

fn lock_name(names: &[String]) -> String {
    format!("{}:lock", names.first().map(String::as_str).unwrap_or_default())
}

fn look(names: &[String], mode: &str, owner: &str) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command
        .arg(LOOK)
        .arg(names.len() + 1)
        .arg(names)
        .arg(lock_name(names));
    command
        .arg(mode)
        .arg(owner)
        .arg(limits::SHARED_LOCK.as_millis() as u64);
    command
}

fn delete(name: &str, value: &[u8]) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(DELETE).arg(1).arg(name).arg(value);
    command
}
