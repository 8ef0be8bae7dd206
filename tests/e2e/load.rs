//! Many at once, and much at once: one exchange per token, and constant memory.

use std::fs::File;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tv_tests::fakes::auth0::Mode;
use tv_tests::fakes::origin::pattern_sha256;
use tv_tests::process;
use tv_tests::world::{Daemon, GITHUB_API, World};

use crate::support::{alice, assert_unseen, bearer, lines};

/// What the agent may hold at its worst, whatever passes through it.
const MEMORY: u64 = 96 << 20;
const MIB: u64 = 1 << 20;

#[test]
fn large_bodies_pass_in_constant_memory() {
    World::run(|world| bulk(world, 128 * MIB));
}

/// The figures of the acceptance: half a minute and more without optimisation.
#[test]
#[ignore = "long; run it with -- --ignored"]
fn a_gibibyte_passes_in_constant_memory() {
    World::run(|world| bulk(world, 1024 * MIB));
}

/// Up and down over both protocols.
fn bulk(world: &World, size: u64) {
    let user = alice(world);
    let daemon = world.daemon("bulk", world.config()).unwrap();
    let root = world.agent_root().display().to_string();
    let header = bearer(&user);
    // Sparse: it takes no room.
    let source = world.dir().join("zeros");
    File::create(&source).unwrap().set_len(size).unwrap();
    let zeros = zeros_sha256(size);
    for http in ["--http1.1", "--http2"] {
        let common = format!("curl --silent --show-error --fail {http} --cacert {root} --header '{header}'");
        let started = Instant::now();
        let down = format!("{common} https://{GITHUB_API}/bytes/{size} | sha256sum");
        let finished = daemon
            .run_for(&["sh", "-c", &down], Duration::from_secs(180))
            .unwrap();
        assert!(
            finished.expect_success().starts_with(&pattern_sha256(size)),
            "{}",
            finished.stderr
        );
        report(&daemon, "download", http, size, started);

        let started = Instant::now();
        let up = format!(
            "{common} --upload-file {} https://{GITHUB_API}/upload",
            source.display()
        );
        let finished = daemon
            .run_for(&["sh", "-c", &up], Duration::from_secs(180))
            .unwrap();
        let seen: serde_json::Value = serde_json::from_str(finished.expect_success()).unwrap();
        assert_eq!(
            (seen["bytes"].as_u64(), seen["sha256"].as_str()),
            (Some(size), Some(zeros.as_str()))
        );
        report(&daemon, "upload", http, size, started);
    }
    assert_unseen(world, &user);
}

fn report(daemon: &Daemon<'_>, what: &str, http: &str, size: u64, started: Instant) {
    let (peak, took) = (daemon.peak_memory().unwrap(), started.elapsed());
    let rate = (size / MIB) as f64 / took.as_secs_f64();
    eprintln!(
        "{what} of {} MiB with curl {http}: {:.1} s, {rate:.0} MiB/s; peak memory of the agent {:.1} MiB",
        size / MIB,
        took.as_secs_f64(),
        peak as f64 / MIB as f64
    );
    assert!(peak < MEMORY, "{peak} bytes");
}

fn zeros_sha256(size: u64) -> String {
    use sha2::{Digest, Sha256};
    let (piece, mut hash) = (vec![0u8; 1 << 20], Sha256::new());
    (0..size / MIB).for_each(|_| hash.update(&piece));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens every connection first, one request each, then sends all the requests at once. Tokens come from the
/// standard input, one a line; prints how often each status came.
const CROWD: &str = r#"
import asyncio, collections, ssl, sys
root, count = sys.argv[1], int(sys.argv[2])
tokens = sys.stdin.read().split()
context = ssl.create_default_context(cafile=root)
async def main():
    limit = asyncio.Semaphore(100)
    async def connect():
        async with limit:
            return await asyncio.open_connection("192.0.2.20", 443, ssl=context, server_hostname="api.github.com")
    connections = await asyncio.gather(*(connect() for _ in range(count)))
    async def ask(number, reader, writer):
        token = tokens[number % len(tokens)]
        writer.write(f"GET /user HTTP/1.1\r\nHost: api.github.com\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        status = (await reader.readline()).split()[1].decode()
        writer.close()
        return status
    statuses = await asyncio.gather(*(ask(number, *pair) for number, pair in enumerate(connections)))
    for status, times in sorted(collections.Counter(statuses).items()):
        print(status, times)
asyncio.run(main())
"#;

#[test]
fn a_thousand_first_requests_with_one_token_cause_one_exchange() {
    World::run(|world| crowd(world, 1));
}

#[test]
fn a_thousand_first_requests_with_fifty_tokens_cause_fifty() {
    World::run(|world| crowd(world, 50));
}

fn crowd(world: &World, tokens: usize) {
    const REQUESTS: usize = 1000;
    let users: Vec<String> = (0..tokens)
        .map(|number| {
            let user = world.user(&format!("user{number}"));
            world.connect_github(&user, &format!("gho_user{number}"), &format!("user{number}"));
            user
        })
        .collect();
    // Long enough for every request to arrive before the first answer of the vault.
    world.auth0.set_mode(Mode::Slow(Duration::from_secs(2)));
    let daemon = world.daemon("crowd", world.config()).unwrap();
    let (script, input) = (world.dir().join("crowd.py"), world.dir().join("tokens"));
    std::fs::write(&script, CROWD).unwrap();
    std::fs::write(&input, users.join("\n")).unwrap();
    let mut client = daemon.command("python3");
    client
        .arg(&script)
        .arg(world.agent_root())
        .arg(REQUESTS.to_string());
    let started = Instant::now();
    let running = process::start(client.stdin(Stdio::from(File::open(&input).unwrap()))).unwrap();
    let finished = running.finish(Duration::from_secs(90)).unwrap();
    assert_eq!(
        lines(finished.expect_success()),
        [format!("200 {REQUESTS}")],
        "{}",
        finished.stderr
    );
    eprintln!(
        "{REQUESTS} concurrent first requests with {tokens} token(s): {} exchange(s), {:.1} s with the connections' \
         set-up; peak memory of the agent {:.1} MiB",
        world.auth0.exchanges().len(),
        started.elapsed().as_secs_f64(),
        daemon.peak_memory().unwrap() as f64 / MIB as f64
    );
    assert_eq!(world.auth0.exchanges().len(), tokens);
    assert!(users.iter().all(|user| world.auth0.count(user) == 1));
    // Each request got its own user's token.
    assert_eq!(world.github.count(), REQUESTS as u64);
    let mut seen = std::collections::HashMap::new();
    for request in world.github.requests() {
        *seen.entry(request.token().unwrap()).or_insert(0usize) += 1;
    }
    assert_eq!(seen.len(), tokens);
    assert!(seen.values().all(|times| *times == REQUESTS / tokens), "{seen:?}");
}
