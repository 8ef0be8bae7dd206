//! Each client, unmodified, gets its answer; the provider gets its own token, and nobody else gets anything.

use std::path::Path;

use sha2::{Digest, Sha256};
use tv_tests::fakes::origin::pattern_sha256;
use tv_tests::process::Finished;
use tv_tests::tools;
use tv_tests::world::{GITHUB, GITHUB_API, GOOGLE, GOOGLE_GRPC, UNROUTED, World};

use crate::support::{
    GITHUB_TOKEN, GOOGLE_TOKEN, alice, assert_swapped, assert_unseen, bearer, curl, lines, user_url,
};

#[test]
fn curl_over_both_protocols_and_families() {
    World::run(|world| {
        let user = alice(world);
        let header = bearer(&user);
        let urls = [user_url(), format!("https://{GOOGLE}/oauth2/v3/userinfo")];
        let mut runs = 0;
        for (http, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            for family in ["--ipv4", "--ipv6"] {
                let show = ["--write-out", " over %{http_version}\n", "--header", &header];
                let client = curl(&[&[http, family], &show[..], &[&urls[0], &urls[1]]].concat());
                let finished = world.exec(&client).unwrap();
                let answers = finished.expect_success();
                assert!(answers.contains(r#""login":"alice""#), "{answers}");
                assert!(answers.contains(r#""email":"alice@example.com""#), "{answers}");
                let spoke = format!("over {version}\n");
                assert_eq!(answers.matches(&spoke).count(), 2, "{answers}");
                runs += 1;
            }
        }
        assert_eq!((world.github.count(), world.google.count()), (runs, runs));
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        assert_swapped(&world.google, GOOGLE_TOKEN, &user);
        assert_unseen(world, &user);
    });
}

#[test]
fn no_token_in_the_most_detailed_log() {
    World::run(|world| {
        let user = alice(world);
        let config = world.write_config(&world.config()).unwrap();
        let config = config.display().to_string();
        let header = bearer(&user);
        for http in ["--http1.1", "--http2"] {
            let agent = ["--log", "trace", "exec", "--config", &config, "--"];
            let url = user_url();
            let client = curl(&[http, "--header", &header, &url]);
            let finished = world.tv_agent(&[&agent[..], &client].concat()).unwrap();
            finished.expect_success();
            let log = &finished.stderr;
            assert!(log.contains("TRACE"), "{log}");
            for secret in [&user, GITHUB_TOKEN, tv_tests::world::CLIENT_SECRET] {
                let line = log.lines().find(|line| line.contains(secret));
                assert_eq!(line, None, "a secret in the log");
            }
        }
    });
}

#[test]
fn git_clones_and_pushes_with_a_credential_helper() {
    World::run(|world| {
        let head = world.repository_head.as_ref().expect("git is installed");
        let user = alice(world);
        let helper =
            format!("credential.helper=!f() {{ echo username=x-access-token; echo password={user}; }}; f");
        let target = world.dir().join("clone");
        let clone = target.display().to_string();
        let url = format!("https://{GITHUB}/acme/demo.git");
        world
            .exec(&["git", "-c", &helper, "clone", "--quiet", &url, &clone])
            .unwrap()
            .expect_success();
        assert_eq!(&tip(world, &clone), head);

        // Larger than http.postBuffer as it is set here, so that git sends it in chunks, after a probe.
        let noise: Vec<u8> = (0..30_000u32)
            .flat_map(|n| Sha256::digest(n.to_le_bytes()))
            .collect();
        std::fs::write(target.join("noise.bin"), noise).unwrap();
        let me = [
            "-c",
            "http.postBuffer=65536",
            "-c",
            "user.name=Alice",
            "-c",
            "user.email=alice@example.com",
        ];
        let git = [&["git", "-C", &clone, "-c", &helper], &me[..]].concat();
        for step in [&["add", "."][..], &["commit", "--quiet", "--message", "Second"]] {
            world.plain(&[&git[..], step].concat()).unwrap().expect_success();
        }
        let pushed = world.exec(&[&git[..], &["push", "--quiet", "origin", "main"]].concat());
        pushed.unwrap().expect_success();
        let second = tip(world, &clone);
        assert_ne!(&second, head);
        let listed = world
            .exec(&[&git[..], &["ls-remote", &url, "main"]].concat())
            .unwrap();
        assert!(listed.expect_success().starts_with(&second), "{}", listed.stdout);

        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        let requests = world.github.requests();
        let pushed = requests.iter().filter(|r| r.path.ends_with("/git-receive-pack"));
        assert!(pushed.map(|r| r.body.bytes).max() > Some(900_000), "{requests:?}");
        assert_unseen(world, &user);
    });
}

const PYTHON: &str = r#"
import sys, json, urllib.request
url, token = sys.argv[1:]
headers = {"Authorization": "Bearer " + token}
def ask(url, **more):
    return json.load(urllib.request.urlopen(urllib.request.Request(url, headers=headers, **more), timeout=10))
print("urllib", ask(url)["login"])

import requests
with requests.Session() as session:
    session.headers.update(headers)
    print("requests", session.get(url, timeout=10).json()["login"])
    upload = url.replace("/user", "/upload")
    print("requests stream", session.post(upload, data=iter([b"x" * 70000] * 3), timeout=10).json()["bytes"])

import httpx
with httpx.Client(headers=headers) as client:
    print("httpx", client.get(url).json()["login"])
"#;

const GRPC: &str = r#"
import queue, sys, grpc
host, token = sys.argv[1:]
metadata = [("authorization", "Bearer " + token)]
with grpc.secure_channel(host, grpc.ssl_channel_credentials()) as channel:
    unary = channel.unary_unary("/tv.Echo/Unary")
    print("unary", unary(b"hello", metadata=metadata, timeout=10).decode())
    print("large", len(unary(b"x" * 3000000, metadata=metadata, timeout=10)))
    outgoing = queue.Queue()
    answers = channel.stream_stream("/tv.Echo/Stream")(iter(outgoing.get, None), metadata=metadata, timeout=10)
    for word in (b"one", b"two", b"three"):
        outgoing.put(word)
        print("bidi", next(answers).decode())  # before the next one is sent
    outgoing.put(None)
    print("rest", len(list(answers)))
    for name, call, with_token in (("fail", "/tv.Echo/Fail", metadata), ("refused", "/tv.Echo/Unary", None)):
        try:
            channel.unary_unary(call)(b"x", metadata=with_token, timeout=10)
            print(name, "answered")
        except grpc.RpcError as error:
            print(name, error.code().name, error.details())
"#;

#[test]
fn python_with_urllib_requests_and_httpx() {
    with_python_clients(|world| {
        let user = alice(world);
        let finished = script(world, "python3", "client.py", PYTHON, &[&user_url(), &user]);
        let expected = [
            "urllib alice",
            "requests alice",
            "requests stream 210000",
            "httpx alice",
        ];
        assert_eq!(lines(finished.expect_success()), expected);
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        assert_unseen(world, &user);
    });
}

#[test]
fn python_with_grpcio_unary_bidirectional_and_errors() {
    with_python_clients(|world| {
        let user = alice(world);
        let target = format!("{GOOGLE_GRPC}:443");
        let finished = script(world, "python3", "client.py", GRPC, &[&target, &user]);
        let lines = lines(finished.expect_success());
        let expected = [
            "unary hello",
            "large 3000000",
            "bidi one",
            "bidi two",
            "bidi three",
            "rest 0",
            "fail NOT_FOUND no such thing",
        ];
        assert_eq!(lines[..7], expected, "{}", finished.stderr);
        assert!(
            lines[7].starts_with("refused UNAUTHENTICATED unauthorized: "),
            "{}",
            lines[7]
        );
        // The call without a token never came.
        assert_eq!(world.google.count(), 4);
        assert_swapped(&world.google, GOOGLE_TOKEN, &user);
        assert_unseen(world, &user);
    });
}

const NODE: &str = r#"
const https = require("https");
const [base, token] = process.argv.slice(-2);
const headers = { authorization: "Bearer " + token };
function get(path) {
  return new Promise((resolve, reject) => {
    https.get(base + path, { headers }, (response) => {
      let text = "";
      response.on("data", (piece) => (text += piece));
      response.on("end", () => resolve(JSON.parse(text)));
    }).on("error", reject);
  });
}
async function main() {
  console.log("https", (await get("/user")).login);
  if (globalThis.fetch) {
    console.log("fetch", (await (await fetch(base + "/user", { headers })).json()).login);
    const body = new Uint8Array(200000);
    console.log("fetch post", (await (await fetch(base + "/upload", { method: "POST", headers, body })).json()).bytes);
  }
}
main().catch((error) => { console.error(error); process.exitCode = 1; });
"#;

#[test]
fn node_with_https_and_fetch() {
    World::run(|world| {
        if world.plain(&["node", "--version"]).is_err() {
            skipped("node is not installed");
            return;
        }
        let user = alice(world);
        let base = format!("https://{GITHUB_API}");
        let finished = script(world, "node", "client.js", NODE, &[&base, &user]);
        assert_eq!(
            lines(finished.expect_success()),
            ["https alice", "fetch alice", "fetch post 200000"],
            "{}",
            finished.stderr
        );
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        assert_unseen(world, &user);
    });
}

#[test]
fn a_tunnelled_host_sees_what_was_sent_and_a_download_arrives_whole() {
    World::run(|world| {
        let user = alice(world);
        let root = world.root_file().display().to_string();
        // The client's own credential for another host, and its own trust: the agent's certificate would fail.
        let tunnelled = format!("https://{UNROUTED}/headers");
        let client = curl(&[
            "--cacert",
            &root,
            "--header",
            "authorization: Bearer own-token",
            &tunnelled,
        ]);
        let finished = world.exec(&client).unwrap();
        let headers: serde_json::Value = serde_json::from_str(finished.expect_success()).unwrap();
        assert_eq!(headers["authorization"], "Bearer own-token");
        assert_eq!(world.auth0.exchanges().len(), 0);

        let (header, size) = (bearer(&user), 20_000_003);
        for http in ["--http1.1", "--http2"] {
            let fetch = format!(
                "curl --silent --show-error --fail {http} --header '{header}' https://{GITHUB_API}/bytes/{size} \
                 | sha256sum"
            );
            let finished = world.exec(&["sh", "-c", &fetch]).unwrap();
            let sum = finished.expect_success();
            assert!(
                sum.starts_with(&pattern_sha256(size)),
                "{http}: {sum}{}",
                finished.stderr
            );
        }
        assert_unseen(world, &user);
    });
}

fn tip(world: &World, clone: &str) -> String {
    let tip = world.plain(&["git", "-C", clone, "rev-parse", "HEAD"]).unwrap();
    tip.expect_success().trim().to_owned()
}

/// Runs a program file of `source` under the agent.
fn script(world: &World, program: &str, name: &str, source: &str, arguments: &[&str]) -> Finished {
    let path: &Path = &world.dir().join(name);
    std::fs::write(path, source).unwrap();
    let file = path.display().to_string();
    world.exec(&[&[program, &file], arguments].concat()).unwrap()
}

fn with_python_clients(test: impl FnOnce(&World) + Send) {
    // Before the world, which has no way out.
    match tools::install_python_clients() {
        Ok(_) => World::run(test),
        Err(reason) => skipped(&reason),
    }
}

fn skipped(reason: &str) {
    let ci = std::env::var("CI").as_deref() == Ok("true");
    assert!(!ci, "this test must run in CI: {reason}");
    eprintln!("skipped: {reason}");
}
