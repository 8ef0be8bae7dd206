//! The shared cache under the real binary: what a restart costs the vault, with Redis and without.

use std::time::Duration;

use serde_json::json;
use tv_tests::redis::Redis;
use tv_tests::world::World;

use crate::absence::ask;
use crate::support::{alice, wait_for};

const LIMIT: Duration = Duration::from_secs(30);
/// 32 bytes.
const KEY: &str = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=";

#[test]
fn a_restarted_daemon_finds_its_tokens_in_redis_and_does_without_it() {
    World::run(|world| {
        let redis = Redis::start(&[]);
        let key = world.dir().join("seal.key");
        std::fs::write(&key, KEY).unwrap();
        let mut config = world.config();
        config["shared_cache"] = json!({
            "url": format!("redis://127.0.0.1:{}", redis.port()),
            "keys": [{ "file": key }],
            // A loaded machine is slow.
            "timeout_ms": 1000,
        });
        let user = alice(world);
        let mut daemon = world.daemon("shared", config).unwrap();
        let event = |name: &str| format!("tv_agent_shared_cache_events_total{{event=\"{name}\"}}");
        wait_for("a connection", LIMIT, || {
            daemon.metric("tv_agent_shared_cache_connected").unwrap() == 1
        });
        ask(world, &daemon, &user, &[]).expect_success();
        wait_for("the token in Redis", LIMIT, || {
            daemon.metric(&event("stored")).unwrap() == 1
        });

        daemon.stop().expect_success();
        daemon.restart().unwrap();
        wait_for("a connection", LIMIT, || {
            daemon.metric("tv_agent_shared_cache_connected").unwrap() == 1
        });
        ask(world, &daemon, &user, &[]).expect_success();
        assert_eq!(daemon.metric(&event("hit")).unwrap(), 1);
        assert_eq!(world.auth0.count(&user), 1);

        drop(redis);
        daemon.stop().expect_success();
        daemon.restart().unwrap();
        ask(world, &daemon, &user, &[]).expect_success();
        assert_eq!(world.auth0.count(&user), 2);
    });
}
