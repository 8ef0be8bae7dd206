//! The fleet's shared cache in a real Redis: what it spares, and what becomes of requests when it fails or lies. A node
//! is a token service of its own here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use tokio::task::JoinSet;
use tv_agent::dial::{Dialer, Unflagged};
use tv_agent::limits;
use tv_agent::metrics::Metrics;
use tv_agent::policy::Wanted;
use tv_agent::secret::Secret;
use tv_agent::token::settings::{Pacing, TokenVault};
use tv_agent::token::shared::{self, SealKey, Settings, Shared};
use tv_agent::token::{
    ClientAuth, Encoding, Error, Filter, Grant, Kind, Obtained, Source, Tokens, Vault, VaultSettings,
};
use tv_tests::fakes::auth0::{Auth0, Mode};
use tv_tests::fakes::pki::Pki;
use tv_tests::flow::eventually;
use tv_tests::redis::Redis;

mod failing;
mod lying;
mod whole;

const SUBJECT: &str = "CANARY-subject-token-of-alice";
const PROVIDER: &str = "CANARY-provider-token-of-alice";
const CONNECTION: &str = "canary-connection";
const CLIENT_SECRET: &str = "CANARY-client-secret";
/// 32 bytes each.
const KEYS: [&str; 2] = [
    "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=",
    "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
];

/// A vault that all nodes ask.
struct Tenant {
    auth0: Auth0,
    pki: Pki,
}

impl Tenant {
    fn start() -> Self {
        let pki = Pki::new("Shared Root");
        let address = "127.0.0.1:0".parse().unwrap();
        let identity = pki.leaf(&["127.0.0.1"]);
        let auth0 = Auth0::start(&[address], &identity, "client-1", CLIENT_SECRET).unwrap();
        auth0.connect(SUBJECT, CONNECTION, PROVIDER, 3600);
        Self { auth0, pki }
    }

    fn exchanges(&self) -> usize {
        self.auth0.exchanges().len()
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.pki.root().clone()).unwrap();
        Arc::new(roots)
    }

    fn vault(&self) -> Arc<Vault> {
        let endpoint = format!("https://{}/oauth/token", self.auth0.addrs()[0]);
        let settings = VaultSettings {
            name: "canary-vault".into(),
            kind: Kind::TokenVault(TokenVault::default()),
            token_endpoint: endpoint.parse().unwrap(),
            discover: false,
            client_id: "client-1".into(),
            client_auth: ClientAuth::SecretPost(Secret::new(CLIENT_SECRET.into())),
            encoding: Encoding::Form,
            extra_roots: Vec::new(),
            timeout: Duration::from_secs(10),
            ttl_default: limits::TOKEN_TTL_DEFAULT,
            ttl_max: limits::TOKEN_TTL_MAX,
            pacing: Pacing::default(),
            when: Vec::new(),
        };
        Arc::new(Vault::new(settings, self.roots()).unwrap())
    }
}

/// One node of the fleet.
#[derive(Clone)]
struct Node {
    tokens: Tokens,
    metrics: Metrics,
    vault: Arc<Vault>,
}

fn settings(port: u16, keys: &[&str]) -> Settings {
    let keys = keys.iter().map(|key| SealKey::parse(&Secret::new((*key).into())));
    Settings {
        host: "127.0.0.1".into(),
        port,
        tls: false,
        db: 0,
        user: None,
        password: None,
        keys: keys.collect::<Option<_>>().unwrap(),
        prefix: "tv:".into(),
        // A loaded machine is slow; what a short time does is tested where Redis hangs.
        timeout: Duration::from_secs(1),
        ttl_max: limits::TOKEN_TTL_MAX,
    }
}

impl Node {
    /// A node that may not be connected yet.
    fn with(tenant: &Tenant, settings: Settings) -> Self {
        let metrics = Metrics::new();
        let tokens = Tokens::new(metrics.clone());
        let dialer = Dialer::new(Arc::new(Unflagged), limits::CONNECT_TIME);
        let shared = Shared::open(settings, tenant.roots(), dialer, metrics.clone()).unwrap();
        tokens.share(Some(Arc::new(shared)));
        Self {
            tokens,
            metrics,
            vault: tenant.vault(),
        }
    }

    async fn join(tenant: &Tenant, redis: &Redis) -> Self {
        Self::keyed(tenant, redis, &KEYS[..1]).await
    }

    async fn keyed(tenant: &Tenant, redis: &Redis, keys: &[&str]) -> Self {
        let node = Self::with(tenant, settings(redis.port(), keys));
        node.connected().await;
        node
    }

    async fn connected(&self) {
        assert!(eventually(|| self.is_up()).await, "no connection to Redis");
    }

    fn is_up(&self) -> bool {
        self.tokens.shared().unwrap().is_up()
    }

    async fn obtain(&self, subject: &str) -> Result<Obtained, Error> {
        let wanted = Arc::new(Wanted::connection(CONNECTION));
        let subject = Arc::new(Secret::new(subject.into()));
        let grant = Grant {
            subject: Some(&subject),
            route: "canary-route",
            ..Grant::new(&self.vault, &wanted)
        };
        self.tokens.obtain(grant).await
    }

    /// The provider's token of [`SUBJECT`], and where it came from.
    async fn get(&self) -> (String, Source) {
        let obtained = self.obtain(SUBJECT).await.unwrap();
        (obtained.token.expose().to_owned(), obtained.source)
    }

    async fn source(&self) -> Source {
        let (token, source) = self.get().await;
        assert_eq!(token, PROVIDER);
        source
    }

    /// How often `event` of the shared cache was counted.
    fn count(&self, event: &str) -> u64 {
        let prefix = format!("tv_agent_shared_cache_events_total{{event=\"{event}\"}} ");
        let text = self.metrics.render();
        text.lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .map_or(0, |count| count.parse().unwrap())
    }

    /// What it did has come to its end.
    async fn counted(&self, event: &str, count: u64) {
        let came = eventually(|| self.count(event) >= count).await;
        assert!(
            came,
            "{event} less than {count} times:\n{}",
            self.metrics.render()
        );
    }
}

/// The only name in it, once all locks are let go of.
async fn only_name(redis: &Redis) -> String {
    assert!(
        eventually(|| redis.names().len() == 1).await,
        "{:?}",
        redis.names()
    );
    redis.names().remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_nodes_make_one_exchange() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    tenant.auth0.set_mode(Mode::Slow(Duration::from_millis(400)));
    let mut nodes = Vec::new();
    for _ in 0..8 {
        nodes.push(Node::join(&tenant, &redis).await);
    }
    let mut callers = JoinSet::new();
    for node in nodes.iter().cycle().take(80) {
        let node = node.clone();
        callers.spawn(async move { node.source().await });
    }
    let sources = callers.join_all().await;
    assert_eq!(tenant.exchanges(), 1);
    assert!(sources.contains(&Source::Exchange) && sources.contains(&Source::Shared));
    // The lock is gone, and what is left ends with the token.
    let name = only_name(&redis).await;
    let left: u64 = redis.ask(&["TTL", &name]).parse().unwrap();
    assert!((3000..=3540).contains(&left), "{left} s");
    // From now on each has its own copy, with the time that is left of it.
    redis.ask(&["FLUSHALL"]);
    for node in &nodes {
        assert_eq!(node.source().await, Source::Cache);
        let listed = node.tokens.list();
        assert!(
            listed[0].left_s.is_some_and(|left| (3000..=3540).contains(&left)),
            "{listed:?}"
        );
    }
    // One that comes later asks anew, and the next finds that.
    let later = Node::join(&tenant, &redis).await;
    assert_eq!(later.source().await, Source::Exchange);
    later.counted("stored", 1).await;
    let next = Node::join(&tenant, &redis).await;
    assert_eq!((next.source().await, tenant.exchanges()), (Source::Shared, 2));
    assert_eq!((next.count("hit"), next.count("miss")), (1, 0));
}

#[tokio::test]
async fn a_failed_exchange_lets_the_next_node_try_at_once_and_is_not_shared() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let (a, b) = (
        Node::join(&tenant, &redis).await,
        Node::join(&tenant, &redis).await,
    );
    tenant
        .auth0
        .set_mode(Mode::Refuse(403, "access_denied", "not today"));
    assert!(a.obtain(SUBJECT).await.is_err());
    assert!(
        eventually(|| redis.names().is_empty()).await,
        "{:?}",
        redis.names()
    );
    tenant.auth0.set_mode(Mode::Normal);
    assert_eq!(b.source().await, Source::Exchange);
    b.counted("stored", 1).await;
    // The first remembers its refusal by itself, for its time.
    assert!(a.obtain(SUBJECT).await.is_err());
    assert_eq!(tenant.exchanges(), 2);
}

#[tokio::test]
async fn a_node_that_died_with_the_lock_costs_its_short_life() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let (a, b) = (
        Node::join(&tenant, &redis).await,
        Node::join(&tenant, &redis).await,
    );
    a.source().await;
    let name = only_name(&redis).await;
    let life = limits::SHARED_LOCK.as_millis().to_string();
    redis.ask(&["SET", &format!("{name}:lock"), "of-a-dead-node", "PX", &life]);
    redis.ask(&["DEL", &name]);
    let began = Instant::now();
    assert_eq!(b.source().await, Source::Exchange);
    // Either the lock ends or the patience does; the exchange comes after that.
    let took = began.elapsed();
    assert!(took > limits::SHARED_LOCK / 2, "{took:?}");
    assert!(took < limits::SHARED_LOCK * 3, "{took:?}");
    assert_eq!(tenant.exchanges(), 2);
}

#[tokio::test]
async fn while_the_vault_wants_to_be_left_alone_other_nodes_tokens_serve() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let (a, b) = (
        Node::join(&tenant, &redis).await,
        Node::join(&tenant, &redis).await,
    );
    tenant
        .auth0
        .connect("another-subject", CONNECTION, "another-token", 3600);
    tenant.auth0.set_mode(Mode::RateLimited {
        retry_after: Some(30),
    });
    assert!(a.obtain("another-subject").await.is_err());
    assert!(a.obtain(SUBJECT).await.is_err());
    assert_eq!(tenant.exchanges(), 1, "the pause holds, and takes no lock");
    tenant.auth0.set_mode(Mode::Normal);
    let began = Instant::now();
    assert_eq!(b.source().await, Source::Exchange);
    assert!(began.elapsed() < limits::SHARED_LOCK);
    b.counted("stored", 1).await;
    assert_eq!(a.source().await, Source::Shared);
    assert_eq!(tenant.exchanges(), 2);
}

/// Tokens live so many seconds: a minute less than the vault says.
fn brief(tenant: &Tenant, seconds: u64) {
    tenant
        .auth0
        .set_mode(Mode::ExpiresIn(Some((60 + seconds).into())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_nodes_that_renew_a_token_one_asks_the_vault() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    brief(&tenant, 4);
    tenant.auth0.rotate_next(SUBJECT, CONNECTION, "CANARY-second");
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(Node::join(&tenant, &redis).await);
    }
    let began = Instant::now();
    for node in &nodes {
        assert_eq!(node.get().await.0, PROVIDER);
        node.counted(if node.count("miss") == 1 { "stored" } else { "hit" }, 1)
            .await;
    }
    tenant.auth0.set_mode(Mode::Normal);
    // All are in use all the time, so that all want to renew.
    let mut firsts = Vec::new();
    while began.elapsed() < Duration::from_millis(4500) {
        for node in &nodes {
            let (token, _) = node.get().await;
            if token != PROVIDER && firsts.is_empty() {
                firsts.push(began.elapsed());
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(tenant.exchanges(), 2);
    for node in &nodes {
        assert_eq!(node.get().await.0, "CANARY-second");
    }
    assert!(firsts[0] >= Duration::from_millis(2800), "{firsts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_that_gives_the_same_token_again_is_asked_once_for_all() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    brief(&tenant, 8);
    let (a, b) = (
        Node::join(&tenant, &redis).await,
        Node::join(&tenant, &redis).await,
    );
    let began = Instant::now();
    assert_eq!(
        (a.source().await, b.source().await),
        (Source::Exchange, Source::Shared)
    );
    let mut before = 0;
    while began.elapsed() < Duration::from_secs(7) {
        a.source().await;
        b.source().await;
        before = tenant.exchanges();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The first, and one that brought the same token for both.
    assert_eq!(before, 2);
}

#[tokio::test]
async fn a_token_that_the_provider_refused_is_taken_from_the_fleet_and_no_other() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let (a, b) = (
        Node::join(&tenant, &redis).await,
        Node::join(&tenant, &redis).await,
    );
    tenant.auth0.rotate_next(SUBJECT, CONNECTION, "CANARY-second");
    let refused = a.obtain(SUBJECT).await.unwrap();
    a.counted("stored", 1).await;
    let same = b.obtain(SUBJECT).await.unwrap();
    assert_eq!(same.source, Source::Shared);
    assert!(a.tokens.reject(&refused));
    // At once, although the removal may still be under way: the same token is not taken back.
    let fresh = a.obtain(SUBJECT).await.unwrap();
    assert_eq!(
        (fresh.token.expose(), fresh.source),
        ("CANARY-second", Source::Exchange)
    );
    a.counted("stored", 2).await;
    let value = redis.ask(&["STRLEN", &only_name(&redis).await]);
    // The second node's provider refuses the old one as well; the new one stays, and is what it gets.
    assert!(b.tokens.reject(&same));
    let found = b.obtain(SUBJECT).await.unwrap();
    assert_eq!(
        (found.token.expose(), found.source),
        ("CANARY-second", Source::Shared)
    );
    assert_eq!(redis.ask(&["STRLEN", &only_name(&redis).await]), value);
    assert_eq!((tenant.exchanges(), b.count("removed")), (2, 0));
    // Refused as well: gone from Redis, for those who come later.
    let c = Node::join(&tenant, &redis).await;
    let third = c.obtain(SUBJECT).await.unwrap();
    assert!(c.tokens.reject(&third));
    c.counted("removed", 1).await;
    assert!(redis.names().is_empty());
}

#[tokio::test]
async fn a_flush_empties_the_shared_cache_too() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let (a, b) = (
        Node::join(&tenant, &redis).await,
        Node::join(&tenant, &redis).await,
    );
    let many = 1200;
    let others = format!(
        "for i = 1, {many} do redis.call('SET', 'tv:old:' .. i, 'x') end redis.call('SET', 'theirs', 'x')"
    );
    redis.ask(&["EVAL", &others, "0"]);
    tenant
        .auth0
        .connect("another-subject", CONNECTION, "another-token", 3600);
    for subject in [SUBJECT, "another-subject"] {
        a.obtain(subject).await.unwrap();
    }
    a.counted("stored", 2).await;
    assert!(eventually(|| redis.names().len() == many + 3).await);
    // What the filter means, of what this node knows.
    let filter = Filter {
        subject: Some(a.tokens.list()[0].subject.clone()),
        ..Filter::default()
    };
    assert_eq!(a.tokens.flush(&filter), 1);
    a.counted("flushed", 1).await;
    assert_eq!(redis.names().len(), many + 2);
    // Everything under the prefix, and nothing else.
    b.tokens.flush(&Filter::default());
    b.counted("flushed", 1).await;
    assert_eq!(redis.names(), ["theirs"]);
}

#[tokio::test]
async fn keys_are_rotated_without_a_miss() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let [old, new] = KEYS;
    let first = Node::keyed(&tenant, &redis, &[old]).await;
    assert_eq!(first.source().await, Source::Exchange);
    first.counted("stored", 1).await;
    // The new one is known everywhere before it seals, then seals, then is alone.
    for keys in [&[old, new][..], &[new, old]] {
        let node = Node::keyed(&tenant, &redis, keys).await;
        assert_eq!(node.source().await, Source::Shared, "{keys:?}");
    }
    redis.ask(&["FLUSHALL"]);
    let sealing = Node::keyed(&tenant, &redis, &[new, old]).await;
    assert_eq!(sealing.source().await, Source::Exchange);
    sealing.counted("stored", 1).await;
    for keys in [&[old, new][..], &[new]] {
        let node = Node::keyed(&tenant, &redis, keys).await;
        assert_eq!(node.source().await, Source::Shared, "{keys:?}");
    }
    let stranger = Node::keyed(&tenant, &redis, &[old]).await;
    assert_eq!(stranger.source().await, Source::Exchange);
    assert_eq!(tenant.exchanges(), 3);
}

#[tokio::test]
async fn redis_sees_nothing_that_means_anything() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let log = redis.dir().join("monitor");
    let monitor = redis.monitor(&log);
    let (a, b) = (
        Node::join(&tenant, &redis).await,
        Node::join(&tenant, &redis).await,
    );
    assert_eq!(
        (a.source().await, b.source().await),
        (Source::Exchange, Source::Shared)
    );
    a.counted("stored", 1).await;
    let obtained = b.obtain(SUBJECT).await.unwrap();
    redis.ask(&["SAVE"]);
    assert!(b.tokens.reject(&obtained));
    b.counted("removed", 1).await;
    a.tokens.flush(&Filter::default());
    a.counted("flushed", 1).await;
    let seen = || std::fs::read(&log).unwrap();
    assert!(eventually(|| contains(&seen(), "UNLINK") || contains(&seen(), "\"SCAN\"")).await);
    drop(monitor);
    let dump = std::fs::read(redis.dir().join("dump.rdb")).unwrap();
    assert!(contains(&dump, "tv:1:"), "the dump holds the entry");
    assert!(contains(&seen(), "\"SET\"") && contains(&seen(), "\"EVAL\""));
    let host = tenant.auth0.addrs()[0].to_string();
    for (what, bytes) in [("dump", dump), ("MONITOR", seen())] {
        for word in ["CANARY", "canary", "client-1", "oauth", "access_token", &host] {
            assert!(!contains(&bytes, word), "{word} in {what}");
        }
    }
}

fn contains(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|part| part == word.as_bytes())
}
