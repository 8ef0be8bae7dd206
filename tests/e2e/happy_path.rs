//! Each client gets its answer, the provider gets its own token, and nobody else gets anything.

use serde_json::Value;
use tv_tests::world::{GITHUB, GITHUB_API, GOOGLE, UNROUTED, World};

const GITHUB_TOKEN: &str = "gho_happy1";
const GOOGLE_TOKEN: &str = "ya29.happy1";

fn alice(world: &World) -> String {
    let user = world.user("alice");
    world.connect_github(&user, GITHUB_TOKEN, "alice");
    world.connect_google(&user, GOOGLE_TOKEN, "alice");
    user
}

#[test]
fn curl_reaches_github_and_google_over_both_protocols_and_families() {
    World::run(|world| {
        let user = alice(world);
        let header = format!("authorization: Bearer {user}");
        let urls = [
            format!("https://{GITHUB_API}/user"),
            format!("https://{GOOGLE}/oauth2/v3/userinfo"),
        ];
        let mut runs = 0;
        for http in ["--http1.1", "--http2"] {
            for family in ["--ipv4", "--ipv6"] {
                let args = [
                    "curl",
                    "--silent",
                    "--show-error",
                    "--fail",
                    http,
                    family,
                    "--header",
                    &header,
                ];
                let client = [&args[..], &[urls[0].as_str(), urls[1].as_str()]].concat();
                let finished = world.exec(&client).unwrap();
                let answers = finished.expect_success();
                assert!(answers.contains(r#""login":"alice""#), "{answers}");
                assert!(answers.contains(r#""email":"alice@example.com""#), "{answers}");
                runs += 1;
            }
        }
        assert_eq!((world.github.count(), world.google.count()), (runs, runs));
        for (origin, token) in [(&world.github, GITHUB_TOKEN), (&world.google, GOOGLE_TOKEN)] {
            for request in origin.requests() {
                assert_eq!(request.token().as_deref(), Some(token), "{request:?}");
            }
        }
    });
}

#[test]
fn one_exchange_serves_many_requests() {
    World::run(|world| {
        let user = alice(world);
        let header = format!("authorization: Bearer {user}");
        let url = format!("https://{GITHUB_API}/user");
        let mut client = vec![
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--parallel",
            "--header",
            &header,
        ];
        client.extend([url.as_str(); 30]);
        world.exec(&client).unwrap().expect_success();
        assert_eq!(world.github.count(), 30);
        assert_eq!(world.auth0.count(&user), 1);
        let exchange = world.auth0.exchanges().remove(0);
        assert_eq!(
            (exchange.connection.as_str(), exchange.status),
            ("github", Some(200))
        );
    });
}

#[test]
fn git_clones_with_a_credential_helper() {
    World::run(|world| {
        let head = world.repository_head.as_ref().expect("git is installed");
        let user = alice(world);
        let helper =
            format!("credential.helper=!f() {{ echo username=x-access-token; echo password={user}; }}; f");
        let target = world.dir().join("clone").display().to_string();
        let url = format!("https://{GITHUB}/acme/demo.git");
        world
            .exec(&["git", "-c", &helper, "clone", "--quiet", &url, &target])
            .unwrap()
            .expect_success();
        let tip = world.plain(&["git", "-C", &target, "rev-parse", "HEAD"]).unwrap();
        assert_eq!(tip.expect_success().trim(), head);
        for request in world.github.requests() {
            assert_eq!(request.token().as_deref(), Some(GITHUB_TOKEN), "{request:?}");
        }
    });
}

#[test]
fn an_unrouted_host_is_tunnelled_and_sees_what_was_sent() {
    World::run(|world| {
        let root = world.root_file().display().to_string();
        let url = format!("https://{UNROUTED}/headers");
        let header = "authorization: Bearer own-token";
        let client = [
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--cacert",
            &root,
            "--header",
            header,
            &url,
        ];
        let finished = world.exec(&client).unwrap();
        let headers: Value = serde_json::from_str(finished.expect_success()).unwrap();
        assert_eq!(headers["authorization"], "Bearer own-token");
        assert_eq!(world.auth0.exchanges().len(), 0);
    });
}

#[test]
fn the_exit_code_is_the_commands() {
    World::run(|world| {
        for code in [0, 3, 127] {
            let finished = world.exec(&["sh", "-c", &format!("exit {code}")]).unwrap();
            assert_eq!(finished.code(), code, "{}", finished.stderr);
        }
        assert_eq!(world.exec(&["sh", "-c", "kill -TERM $$"]).unwrap().code(), 143);
    });
}

#[test]
fn a_killed_daemon_means_refusal() {
    World::run(|world| {
        let user = alice(world);
        let header = format!("authorization: Bearer {user}");
        let url = format!("https://{GITHUB_API}/user");
        let mut daemon = world.daemon("killed", world.config()).unwrap();
        let root = world.agent_root().display().to_string();
        let client = [
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--cacert",
            &root,
            "--header",
            &header,
            &url,
        ];
        daemon.run(&client).unwrap().expect_success();
        let before = world.github.connections().accepted();
        daemon.kill();
        let finished = daemon.run(&client).unwrap();
        assert_ne!(finished.code(), 0, "{}", finished.stdout);
        assert_eq!(world.github.connections().accepted(), before);
    });
}
