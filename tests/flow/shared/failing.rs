//! Redis that is away, slow, full or not for us: tokens come all the same, and nobody waits for it for long.

use std::net::TcpListener;

use rustls_pki_types::PrivateKeyDer;

use super::*;

/// A new subject, whom only the vault knows.
fn somebody(tenant: &Tenant, n: usize) -> String {
    let subject = format!("subject-number-{n}");
    tenant
        .auth0
        .connect(&subject, CONNECTION, &format!("token-number-{n}"), 3600);
    subject
}

async fn exchanged(node: &Node, subject: &str) -> Duration {
    let began = Instant::now();
    let obtained = node.obtain(subject).await.unwrap();
    assert_eq!(obtained.source, Source::Exchange);
    began.elapsed()
}

#[tokio::test]
async fn redis_that_dies_and_comes_back() {
    let (tenant, mut redis) = (Tenant::start(), Redis::start(&[]));
    let (a, b) = (
        Node::join(&tenant, &redis).await,
        Node::join(&tenant, &redis).await,
    );
    assert_eq!(
        (a.source().await, b.source().await),
        (Source::Exchange, Source::Shared)
    );
    redis.kill();
    assert!(eventually(|| !a.is_up() && !b.is_up()).await);
    for n in 0..3 {
        let subject = somebody(&tenant, n);
        exchanged(&a, &subject).await;
        exchanged(&b, &subject).await;
    }
    assert_eq!(a.source().await, Source::Cache);
    assert!(a.count("down") > 0);
    redis.restart();
    a.connected().await;
    b.connected().await;
    let subject = somebody(&tenant, 9);
    exchanged(&a, &subject).await;
    a.counted("stored", 2).await;
    assert_eq!(b.obtain(&subject).await.unwrap().source, Source::Shared);
}

#[tokio::test]
async fn redis_that_is_not_there_at_start() {
    let tenant = Tenant::start();
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let node = Node::with(&tenant, settings(free, &KEYS[..1]));
    assert_eq!(node.source().await, Source::Exchange);
    // Nobody answers, but somebody listens.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let node = Node::with(&tenant, settings(port, &KEYS[..1]));
    assert_eq!(node.source().await, Source::Exchange);
    // A name that means nothing.
    let nowhere = Settings {
        host: "redis.invalid".into(),
        ..settings(port, &KEYS[..1])
    };
    assert_eq!(Node::with(&tenant, nowhere).source().await, Source::Exchange);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_hangs_is_asked_three_times_and_then_left_alone() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let short = Settings {
        timeout: Duration::from_millis(50),
        ..settings(redis.port(), &KEYS[..1])
    };
    let node = Node::with(&tenant, short);
    node.connected().await;
    exchanged(&node, &somebody(&tenant, 0)).await;
    node.counted("stored", 1).await;
    redis.hang();
    let mut slowest = Duration::ZERO;
    for n in 1..20 {
        slowest = slowest.max(exchanged(&node, &somebody(&tenant, n)).await);
    }
    // A question, and an exchange on a busy machine; never a second for Redis.
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    let (late, down) = (node.count("late"), node.count("down"));
    // Each flight asks twice at most: before the exchange, and to leave what came of it.
    assert!((3..=12).contains(&late) && down > 0, "{late} late, {down} down");
    assert!(eventually(|| !node.is_up()).await);
    redis.go_on();
    node.connected().await;
    exchanged(&node, &somebody(&tenant, 99)).await;
    node.counted("stored", 2).await;
}

#[tokio::test]
async fn redis_that_is_full_still_gives_what_it_has() {
    let (tenant, redis) = (
        Tenant::start(),
        Redis::start(&["--maxmemory-policy", "noeviction"]),
    );
    let (a, b) = (
        Node::join(&tenant, &redis).await,
        Node::join(&tenant, &redis).await,
    );
    assert_eq!(a.source().await, Source::Exchange);
    a.counted("stored", 1).await;
    redis.ask(&["CONFIG", "SET", "maxmemory", "1mb"]);
    assert_eq!(b.source().await, Source::Shared, "what is there can be read");
    for n in 0..5 {
        exchanged(&b, &somebody(&tenant, n)).await;
    }
    b.counted("full", 5).await;
    assert!(b.is_up(), "a full one is not given up");
}

#[tokio::test]
async fn redis_that_is_not_for_us() {
    let tenant = Tenant::start();
    let guarded = Redis::start(&["--requirepass", "the-password"]);
    let cluster = Redis::start(&["--cluster-enabled", "yes"]);
    let primary = Redis::start(&[]);
    let port = primary.port().to_string();
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &port]);
    let at = |redis: &Redis| settings(redis.port(), &KEYS[..1]);
    let refusing: [&dyn Fn() -> Settings; 6] = [
        &|| at(&guarded),
        &|| Settings {
            password: Some(Secret::new("another".into())),
            ..at(&guarded)
        },
        &|| at(&cluster),
        &|| at(&replica),
        &|| Settings {
            db: 9999,
            ..at(&primary)
        },
        // TLS where none is spoken.
        &|| Settings {
            tls: true,
            ..at(&primary)
        },
    ];
    let said = [
        "NOAUTH",
        "WRONGPASS",
        "mode \"cluster\"",
        "role \"replica\"",
        "database 9999",
        "rediss://",
    ];
    let mut nodes = Vec::new();
    for (refusing, said) in refusing.iter().zip(said) {
        let why = shared::reach(refusing(), tenant.roots()).await.unwrap_err();
        assert!(why.contains(said), "{said}: {why}");
        nodes.push(Node::with(&tenant, refusing()));
    }
    for node in &nodes {
        assert_eq!(node.source().await, Source::Exchange);
        node.tokens.flush(&Filter::default());
    }
    // Long enough for a second attempt of each.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for node in &nodes {
        assert!(!node.is_up());
        assert_eq!(node.source().await, Source::Exchange);
    }
    let right = || Settings {
        password: Some(Secret::new("the-password".into())),
        db: 3,
        ..at(&guarded)
    };
    assert_eq!(shared::reach(right(), tenant.roots()).await, Ok(()));
    let node = Node::with(&tenant, right());
    node.connected().await;
    node.source().await;
    node.counted("stored", 1).await;
    assert!(guarded.names().is_empty() && !guarded.ask(&["-n", "3", "KEYS", "*"]).is_empty());
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_is_left_at_once() {
    let (tenant, redis, other) = (Tenant::start(), Redis::start(&[]), Redis::start(&[]));
    let node = Node::join(&tenant, &redis).await;
    redis.ask(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]);
    exchanged(&node, &somebody(&tenant, 0)).await;
    node.counted("read_only", 1).await;
    assert!(eventually(|| !node.is_up()).await);
    redis.ask(&["REPLICAOF", "NO", "ONE"]);
    node.connected().await;
}

#[tokio::test]
async fn a_user_s_rights_are_enough_if_they_are_those_of_the_manual() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let rights = "SETUSER tv on >the-password ~tv:* +hello +select +eval +mget +get +set +del +scan +unlink";
    let rights: Vec<&str> = std::iter::once("ACL").chain(rights.split(' ')).collect();
    assert_eq!(redis.ask(&rights), "OK");
    let as_user = || Settings {
        user: Some("tv".into()),
        password: Some(Secret::new("the-password".into())),
        ..settings(redis.port(), &KEYS[..1])
    };
    let (a, b) = (Node::with(&tenant, as_user()), Node::with(&tenant, as_user()));
    a.connected().await;
    b.connected().await;
    assert_eq!((a.source().await, a.count("refused")), (Source::Exchange, 0));
    a.counted("stored", 1).await;
    assert_eq!(b.source().await, Source::Shared);
    b.tokens.flush(&Filter::default());
    b.counted("flushed", 1).await;
    assert_eq!((redis.names().len(), b.count("refused")), (0, 0));
}

#[tokio::test]
async fn over_tls_only_a_server_that_its_roots_vouch_for_is_used() {
    let tenant = Tenant::start();
    let directory = tempfile::tempdir().unwrap();
    let identity = tenant.pki.leaf(&["127.0.0.1"]);
    let pem = |kind: &str, der: &[u8]| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
    };
    let PrivateKeyDer::Pkcs8(key) = &identity.key else {
        panic!("another form of key");
    };
    let (chain, key) = (
        identity
            .chain
            .iter()
            .map(|cert| pem("CERTIFICATE", cert))
            .collect::<String>(),
        pem("PRIVATE KEY", key.secret_pkcs8_der()),
    );
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (chain, key) = (file("chain.pem", &chain), file("key.pem", &key));
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let port = free.to_string();
    let options = [
        "--tls-port",
        &port,
        "--tls-cert-file",
        &chain,
        "--tls-key-file",
        &key,
    ];
    let _redis = Redis::start(&[&options[..], &["--tls-auth-clients", "no"]].concat());
    let secured = || Settings {
        tls: true,
        ..settings(free, &KEYS[..1])
    };
    let (a, b) = (Node::with(&tenant, secured()), Node::with(&tenant, secured()));
    a.connected().await;
    b.connected().await;
    a.source().await;
    a.counted("stored", 1).await;
    assert_eq!(b.source().await, Source::Shared);
    // The certificate is not for this name, and these roots do not know it.
    let named = Settings {
        host: "localhost".into(),
        ..secured()
    };
    let stranger = Tenant::start();
    for node in [Node::with(&tenant, named), Node::with(&stranger, secured())] {
        assert_eq!(node.source().await, Source::Exchange);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!node.is_up());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_questions_than_may_be_asked_at_once_make_nobody_wait_longer() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let node = Node::join(&tenant, &redis).await;
    let many = limits::SHARED_QUEUED + limits::SHARED_AT_ONCE + 200;
    let subjects: Vec<String> = (0..many).map(|n| somebody(&tenant, n)).collect();
    redis.hang();
    let mut callers = JoinSet::new();
    let began = Instant::now();
    for subject in subjects {
        let node = node.clone();
        callers.spawn(async move { node.obtain(&subject).await.map(|obtained| obtained.source) });
    }
    let mut served = 0;
    while let Some(outcome) = callers.join_next().await {
        // The vault's own queue has its limits, too; they are not what is asked here.
        served += usize::from(matches!(outcome.unwrap(), Ok(Source::Exchange)));
    }
    let took = began.elapsed();
    assert!(served > many / 2, "{served} of {many} in {took:?}");
    assert!(eventually(|| !node.is_up()).await);
    redis.go_on();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_removals_than_may_be_under_way_are_left_to_time() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let node = Node::join(&tenant, &redis).await;
    let many = limits::SHARED_ERRANDS + 20;
    let mut given = Vec::new();
    for n in 0..many {
        given.push(node.obtain(&somebody(&tenant, n)).await.unwrap());
    }
    node.counted("stored", many as u64).await;
    redis.hang();
    for obtained in &given {
        node.tokens.reject(obtained);
    }
    node.counted("dropped", 20).await;
    redis.go_on();
    node.connected().await;
    // Those under way have ended by themselves, so that there is room again.
    let last = node.obtain(&somebody(&tenant, many)).await.unwrap();
    node.counted("stored", many as u64 + 1).await;
    node.tokens.reject(&last);
    node.counted("removed", 1).await;
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_after_its_time() {
    let tenant = Tenant::start();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let began = Instant::now();
    let why = shared::reach(settings(port, &KEYS[..1]), tenant.roots())
        .await
        .unwrap_err();
    assert!(why.contains("did not answer within 2000 ms"), "{why}");
    assert!(began.elapsed() >= limits::SHARED_CONNECT_TIME);
}
