//! A new configuration takes effect on the next request of open connections, or not at all.

use serde_json::json;
use tv_agent::agent::Error;
use tv_tests::flow::{Dial, HOST, PROVIDER, SUBJECT, Setup, routes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_request_on_an_open_connection_goes_by_the_new_routes() {
    let flow = Setup::default().start().await;
    flow.auth0
        .connect(SUBJECT, "other", "provider-token-of-other-0001", 3600);
    for h2 in [false, true] {
        let mut caller = if h2 {
            flow.h2(HOST).await
        } else {
            flow.h1(HOST).await
        };
        assert_eq!(caller.get("/headers").await.status, 200);
        assert_eq!(
            flow.origin.requests().pop().unwrap().token().as_deref(),
            Some(PROVIDER)
        );

        let other = json!([{ "name": "renamed", "hosts": ["*.example.test"], "vault": "main", "connection": "other" }]);
        flow.agent.reload(flow.config(other)).unwrap();
        assert_eq!(caller.get("/headers").await.status, 200);
        let token = flow.origin.requests().pop().unwrap().token();
        assert_eq!(token.as_deref(), Some("provider-token-of-other-0001"));

        let before = flow.origin.count();
        let gone =
            json!([{ "name": "later", "hosts": ["*.later.test"], "vault": "main", "connection": "other" }]);
        flow.agent.reload(flow.config(gone)).unwrap();
        let answer = caller.get("/headers").await;
        assert_eq!(
            answer.refusal(),
            (421, "misdirected_request".to_owned()),
            "nobody's token goes out"
        );
        assert_eq!(flow.origin.count(), before);
        flow.agent.reload(flow.config(routes())).unwrap();
        assert_eq!(caller.get("/headers").await.status, 200);
    }
    // Two users of two connections, however often the routes changed.
    assert_eq!(flow.auth0.count(SUBJECT), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_connections_go_by_the_new_routes() {
    let flow = Setup::default().start().await;
    let host = "api.later.test";
    let dial = Dial {
        host,
        ..flow.dial(host, &["http/1.1"])
    };
    // Not routed: the origin's own certificate, which is not for that name.
    assert!(flow.tls(dial).await.is_err());
    flow.ended("tunnel", "not_routed").await;
    let later =
        json!([{ "name": "later", "hosts": ["*.later.test"], "vault": "main", "connection": "example" }]);
    flow.agent.reload(flow.config(later)).unwrap();
    let mut caller = flow.call(dial).await;
    assert_eq!(
        caller.get("/").await.refusal(),
        (502, "upstream_tls_error".to_owned())
    );
    // And what is routed no longer is tunnelled.
    let stream = flow
        .tls_trusting(flow.dial(HOST, &["http/1.1"]), flow.pki.root())
        .await;
    assert!(stream.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_configuration_changes_nothing() {
    let flow = Setup::default().start().await;
    let mut caller = flow.h2(HOST).await;
    assert_eq!(caller.get("/headers").await.status, 200);

    let beyond =
        json!([{ "name": "x", "hosts": ["*.not-permitted.test"], "vault": "main", "connection": "example" }]);
    let error = flow.agent.reload(flow.config(beyond)).unwrap_err();
    assert!(
        matches!(&error, Error::NotPermitted { subtree } if subtree == "not-permitted.test"),
        "{error}"
    );
    let mut config = flow.config(json!([]));
    config.extra_roots.push("/nonexistent/roots.pem".into());
    assert!(matches!(flow.agent.reload(config).unwrap_err(), Error::Roots(_)));
    let mut config = flow.config(json!([]));
    config
        .vaults
        .get_mut("main")
        .unwrap()
        .extra_roots
        .push("/nonexistent/roots.pem".into());
    assert!(matches!(
        flow.agent.reload(config).unwrap_err(),
        Error::VaultRoots { .. }
    ));
    let mut config = flow.config(json!([]));
    config.vaults.get_mut("main").unwrap().settings.client_id.clear();
    assert!(matches!(flow.agent.reload(config).unwrap_err(), Error::Vault(_)));

    assert_eq!(caller.get("/headers").await.status, 200);
    assert_eq!(flow.origin.connections().accepted(), 1, "not even the pools");
    assert_eq!(flow.auth0.count(SUBJECT), 1);
}
