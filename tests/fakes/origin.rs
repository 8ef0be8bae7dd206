//! The origins speak HTTP as real providers do, and log what they get.

use std::process::Command;

use http::Version;
use serde_json::{Value, json};
use tv_tests::fakes::origin::{Origin, Setup, Site, git, pattern_sha256};
use tv_tests::fakes::pki::{Flaw, Pki};

use super::{Curl, LOCAL};

const HOST: &str = "api.github.com";

fn start(site: Site, alpn: &[&str]) -> (Origin, Curl) {
    let pki = Pki::new("Test Root");
    let origin = Origin::start(&Setup {
        site,
        addrs: &LOCAL,
        identity: &pki.leaf(&[HOST]),
        alpn,
    })
    .unwrap();
    let curl = Curl::new(&pki, HOST, origin.addrs()[0]);
    (origin, curl)
}

#[test]
fn only_provider_tokens_are_taken() {
    let (origin, curl) = start(Site::GitHub, &["h2", "http/1.1"]);
    origin.accept("gho_1", "alice");
    let bearer = ["--header", "authorization: Bearer gho_1"];
    let (status, body) = curl.get("/user", &bearer);
    assert_eq!(
        (status, body.contains(r#""login":"alice""#)),
        (200, true),
        "{body}"
    );
    assert_eq!(
        curl.get("/user", &["--header", "authorization: token gho_1"]).0,
        200
    );
    let (status, body) = curl.get("/user", &[]);
    assert_eq!((status, body.contains("Bad credentials")), (401, true));
    assert_eq!(
        curl.get("/user", &["--header", "authorization: Bearer other"]).0,
        401
    );
    origin.revoke("gho_1");
    assert_eq!(curl.get("/user", &bearer).0, 401);

    let log = origin.requests();
    assert_eq!(log[0].token().as_deref(), Some("gho_1"));
    assert_eq!(
        (log[0].version, log[0].sni.as_deref()),
        (Version::HTTP_2, Some(HOST))
    );
    assert!(log[0].authority.starts_with(HOST), "{}", log[0].authority);
    assert_eq!(origin.connections().established(), 5);
}

#[test]
fn a_forbidden_secret_is_noticed_even_inside_basic() {
    let (origin, curl) = start(Site::Plain, &[]);
    origin.forbid("auth0-secret");
    assert_eq!(curl.get("/?t=auth0-secret", &[]).0, 599);
    assert_eq!(curl.get("/", &["--user", "x-access-token:auth0-secret"]).0, 599);
    assert_eq!(curl.get("/", &["--header", "x-other: auth0-secret"]).0, 599);
    assert_eq!(curl.get("/elsewhere", &[]).0, 599);
    assert_eq!(origin.unexpected().take().len(), 4);
    assert_eq!(curl.get("/", &[]).0, 200);
}

#[test]
fn alpn_is_what_the_setup_says() {
    for (alpn, version) in [
        (&["http/1.1"][..], Version::HTTP_11),
        (&["h2"], Version::HTTP_2),
        (&["h2", "http/1.1"], Version::HTTP_2),
        (&[], Version::HTTP_11),
    ] {
        let (origin, curl) = start(Site::Plain, alpn);
        assert_eq!(curl.get("/", &["--http2"]).0, 200, "{alpn:?}");
        assert_eq!(origin.requests()[0].version, version, "{alpn:?}");
    }
}

#[test]
fn bodies_stream_both_ways() {
    let (origin, curl) = start(Site::Plain, &["h2", "http/1.1"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("body");
    let bytes = 3_000_017u64;
    for http in ["--http1.1", "--http2"] {
        let args = [http, "--output", file.to_str().unwrap()];
        assert!(curl.run(&format!("/bytes/{bytes}"), &args).status.success());
        assert_eq!(std::fs::metadata(&file).unwrap().len(), bytes);
        let data = format!("@{}", file.display());
        let send = ["--data-binary", &data, "--header", "expect: 100-continue", http];
        let (status, body) = curl.get("/upload", &send);
        let expected = json!({ "bytes": bytes, "sha256": pattern_sha256(bytes) });
        assert_eq!(
            (status, serde_json::from_str::<Value>(&body).unwrap()),
            (200, expected)
        );
        let echoed = dir.path().join("echoed");
        let back = [&send[..], &["--output", echoed.to_str().unwrap()]].concat();
        assert!(curl.run("/echo", &back).status.success());
        assert!(std::fs::read(&echoed).unwrap() == std::fs::read(&file).unwrap());
        let seen = origin.requests().last().unwrap().body.clone();
        assert_eq!((seen.bytes, seen.sha256), (bytes, Some(pattern_sha256(bytes))));
    }
}

#[test]
fn trailers_come_after_the_echo() {
    let (_origin, curl) = start(Site::Plain, &["h2"]);
    let output = curl.run("/echo", &["--data", "abc", "--include", "--http2"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert!(text.ends_with(&format!("abcx-body-sha256: {hash}\r\n")), "{text}");
}

#[test]
fn status_head_redirect_and_broken_bodies() {
    let (_origin, curl) = start(Site::Plain, &["h2", "http/1.1"]);
    for http in ["--http1.1", "--http2"] {
        for status in [204, 304, 404, 503] {
            assert_eq!(curl.get(&format!("/status/{status}"), &[http]).0, status);
        }
        let head = curl.run("/bytes/1000", &["--head", http]);
        let head = String::from_utf8_lossy(&head.stdout).into_owned();
        assert!(head.contains("content-length: 1000"), "{head}");
        let redirect = curl.run("/redirect-elsewhere", &["--include", http]);
        let redirect = String::from_utf8_lossy(&redirect.stdout).into_owned();
        assert!(
            redirect.contains("location: https://elsewhere.example/steal"),
            "{redirect}"
        );
        assert!(!curl.run("/cut/1000", &[http]).status.success());
        assert_eq!(
            curl.get("/drip/3/10", &[http]).1,
            "data: 0\n\ndata: 1\n\ndata: 2\n\n"
        );
    }
    // Over HTTP/1.1 only: curl 7.88 drops an answer that comes with RST_STREAM(NO_ERROR) (RFC 9113
    // section 8.1).
    let early = ["--http1.1", "--data", "x", "--header", "expect: 100-continue"];
    assert_eq!(curl.get("/reject-body", &early).0, 413);
}

#[test]
fn a_websocket_opens_and_echoes() {
    let (_origin, curl) = start(Site::Plain, &["http/1.1"]);
    // The key and its answer are the example of RFC 6455 section 1.3.
    let args = [
        "--include",
        "--http1.1",
        "--max-time",
        "1",
        "--header",
        "connection: Upgrade",
        "--header",
        "upgrade: websocket",
        "--header",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let output = curl.run("/ws", &args);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("HTTP/1.1 101"), "{text}");
    assert!(text.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{text}");
    assert_eq!(curl.get("/ws", &[]).0, 426);
}

#[test]
fn grpc_echoes_messages_and_ends_with_a_status() {
    let (origin, curl) = start(Site::Google, &["h2"]);
    origin.accept("ya29.1", "alice");
    let dir = tempfile::tempdir().unwrap();
    let message = dir.path().join("message");
    std::fs::write(&message, b"\0\0\0\0\x02hi").unwrap();
    let data = format!("@{}", message.display());
    let call = |method: &str, token: &str| {
        let token = format!("authorization: Bearer {token}");
        let args = ["--include", "--header", &token, "--data-binary", &data];
        let grpc = [
            "--header",
            "content-type: application/grpc",
            "--header",
            "te: trailers",
        ];
        let output = curl.run(&format!("/tv.Echo/{method}"), &[&args[..], &grpc].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for method in ["Unary", "Stream"] {
        let answer = call(method, "ya29.1");
        assert!(answer.ends_with("\0\0\0\0\x02higrpc-status: 0\r\n"), "{answer:?}");
    }
    assert!(call("Fail", "ya29.1").contains("grpc-status: 5\r\ngrpc-message: no such thing"));
    assert!(call("Unary", "other").contains("grpc-status: 16\r\n"));
    assert!(call("Nothing", "ya29.1").starts_with("HTTP/2 599"));
    assert_eq!(origin.unexpected().take(), ["gRPC method /tv.Echo/Nothing"]);
}

#[test]
fn git_clones_and_pushes_with_the_provider_token_only() {
    let (origin, curl) = start(Site::GitHub, &["h2", "http/1.1"]);
    let repository = git::Repository::create().unwrap();
    let head = repository.head().to_owned();
    origin.serve_repository(repository);
    origin.accept("gho_1", "alice");
    let dir = tempfile::tempdir().unwrap();
    let git = |args: &[&str]| {
        Command::new("git")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", dir.path())
            .envs([
                ("GIT_TERMINAL_PROMPT", "0"),
                ("GIT_SSL_CAINFO", curl.root().to_str().unwrap()),
            ])
            .arg("-c")
            .arg(format!(
                "http.curloptResolve={HOST}:{}:127.0.0.1",
                curl.addr.port()
            ))
            .args(args)
            .output()
            .expect("git is installed")
    };
    let url = |token: &str| {
        format!(
            "https://x-access-token:{token}@{HOST}:{}/acme/demo.git",
            curl.addr.port()
        )
    };
    let work = dir.path().join("work");
    let work = work.to_str().unwrap();
    let output = git(&["clone", &url("gho_1"), work]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let cloned = git(&["-C", work, "rev-parse", "HEAD"]);
    assert_eq!(String::from_utf8_lossy(&cloned.stdout).trim(), head);
    let who = ["-c", "user.name=A", "-c", "user.email=a@example.com"];
    let commit = [
        &["-C", work],
        &who[..],
        &["commit", "--allow-empty", "-m", "Second"],
    ]
    .concat();
    assert!(git(&commit).status.success());
    let output = git(&["-C", work, "push"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let refused = git(&["clone", &url("other"), &format!("{work}2")]);
    assert!(!refused.status.success());
    // git asks without credentials first and is told to use Basic.
    let log = origin.requests();
    assert_eq!((log[0].token(), log[1].token()), (None, Some("gho_1".into())));
}

#[test]
fn flawed_certificates_are_refused_for_their_flaw() {
    let pki = Pki::new("Test Root");
    for flaw in Flaw::ALL {
        let identity = pki.flawed(flaw, &[HOST]);
        let origin = Origin::start(&Setup {
            site: Site::Plain,
            addrs: &LOCAL,
            identity: &identity,
            alpn: &[],
        })
        .unwrap();
        let output = Curl::new(&pki, HOST, origin.addrs()[0]).run("/", &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = match flaw {
            Flaw::Expired => "certificate has expired",
            Flaw::NotYetValid => "certificate is not yet valid",
            Flaw::SelfSigned => "self-signed certificate",
            Flaw::WrongName => "no alternative certificate subject name matches",
            Flaw::UnknownIssuer => "unable to get local issuer certificate",
        };
        assert!(said.contains(expected), "{flaw:?}: {said}");
        assert_eq!(origin.count(), 0);
    }
}
