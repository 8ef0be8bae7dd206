//! The whole agent with a shared cache: from its configuration, over a reload, to a second agent.

use serde_json::{Value, json};
use tv_tests::flow::{Flow, HOST, Setup, routes};

use super::*;

async fn agent(redis: &Redis) -> Flow {
    let flow = Setup::default().start().await;
    flow.agent.reload(configured(&flow, redis, 50)).unwrap();
    assert!(eventually(|| flow.agent.tokens().shared().unwrap().is_up()).await);
    flow
}

fn configured(flow: &Flow, redis: &Redis, timeout: u64) -> tv_agent::config::Config {
    with_vaults(flow, redis, timeout, json!({}))
}

fn with_vaults(flow: &Flow, redis: &Redis, timeout: u64, vaults: Value) -> tv_agent::config::Config {
    let key = flow.dir().join("shared.key");
    std::fs::write(&key, format!("{}\n", KEYS[0])).unwrap();
    let cache = json!({
        "url": format!("redis://127.0.0.1:{}/1", redis.port()),
        "keys": [{ "file": key }],
        "timeout_ms": timeout,
    });
    flow.config_more(json!({ "shared_cache": cache, "vaults": vaults }), routes())
}

fn clients(redis: &Redis) -> Vec<String> {
    let list = redis.ask(&["CLIENT", "LIST"]);
    let ours = list.lines().filter(|line| line.contains("name=tv-agent"));
    ours.map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_keeps_the_connection_unless_it_is_about_it() {
    let redis = Redis::start(&[]);
    let flow = agent(&redis).await;
    let before = clients(&redis);
    assert_eq!(before.len(), 1);
    flow.agent.reload(configured(&flow, &redis, 50)).unwrap();
    let answer = flow.h1(HOST).await.get("/headers").await;
    assert_eq!(answer.status, 200);
    assert_eq!(clients(&redis), before);
    assert!(eventually(|| redis.ask(&["-n", "1", "DBSIZE"]) == "1").await);
    // Another setting, another connection; and none at all.
    flow.agent.reload(configured(&flow, &redis, 60)).unwrap();
    assert!(eventually(|| clients(&redis).len() == 1 && clients(&redis) != before).await);
    // One that is prepared and not taken leaves nothing behind.
    drop(flow.agent.prepare(configured(&flow, &redis, 70)).unwrap());
    flow.agent.reload(flow.config(routes())).unwrap();
    assert!(flow.agent.tokens().shared().is_none());
    assert!(eventually(|| clients(&redis).is_empty()).await);
    assert_eq!(flow.h1(HOST).await.get("/headers").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_agent_got_serves_the_other_s_workloads() {
    let redis = Redis::start(&[]);
    let (first, second) = (agent(&redis).await, Setup::default().start().await);
    // Both ask the same vault.
    let roots = format!("{}{}", second.pki.root_pem(), first.pki.root_pem());
    std::fs::write(second.dir().join("root.pem"), roots).unwrap();
    let vault = json!({
        "kind": "auth0_token_vault",
        "token_endpoint": format!("https://{}/oauth/token", first.auth0.addrs()[0]),
        "client_id": "client-1",
        "client_auth": { "method": "client_secret_post", "secret": { "env": "SECRET" } },
    });
    let config = with_vaults(&second, &redis, 1000, json!({ "main": vault }));
    second.agent.reload(config).unwrap();
    assert!(eventually(|| second.agent.tokens().shared().unwrap().is_up()).await);
    assert_eq!(first.h1(HOST).await.get("/headers").await.status, 200);
    assert!(eventually(|| redis.ask(&["-n", "1", "DBSIZE"]) == "1").await);
    // Swapped on the other agent, without a call of the vault.
    assert_eq!(second.h1(HOST).await.get("/headers").await.status, 200);
    assert_eq!(
        (first.auth0.exchanges().len(), second.auth0.exchanges().len()),
        (1, 0)
    );
    assert!(
        second
            .metrics
            .render()
            .contains("shared_cache_events_total{event=\"hit\"} 1")
    );
}
