//! The chapters in which everything goes well.

use serde_json::Value;

use super::story::Story;
use super::{Held, NotHeld, ensure};
use crate::fakes::origin::{Origin, Received};
use crate::process::Finished;
use crate::world::{GITHUB_API, GOOGLE, UNROUTED, World, subject_token};

/// Requests of the chapter on the cache.
const MANY: usize = 20;

pub(super) fn without_agent(world: &World, story: &mut Story) -> Held {
    // A user of this chapter only: every other user's token is forbidden at the providers.
    let token = subject_token("carol");
    story.label(&token, "auth0:carol");
    let url = format!("https://{GITHUB_API}/user");
    let header = format!("Authorization: Bearer {token}");
    story.command(&format!("curl -H '{header}' {url}"));
    let root = world.root_file().display().to_string();
    let args = [
        "curl",
        "--silent",
        "--cacert",
        &root,
        "--header",
        &header,
        "--write-out",
        "\n%{http_code}",
        &url,
    ];
    let finished = world.plain(&args)?;
    let (body, status) = split_status(&finished.stdout);
    story.seen("GitHub", &format!("{status} {body}"));
    ensure(
        status == "401" && body.contains("Bad credentials"),
        "401 Bad credentials",
        story.said(&finished),
    )?;
    story.holds("GitHub refuses an Auth0 token, as the real one does");
    Ok(())
}

pub(super) fn curl_h1(world: &World, story: &mut Story) -> Held {
    let user = alice(world, story);
    let url = format!("https://{GITHUB_API}/user");
    let finished = curl(world, story, "--http1.1", &user, &url)?;
    let (body, status) = split_status(&finished.stdout);
    ensure(
        status == "200 1.1",
        "status 200 over HTTP/1.1",
        story.said(&finished),
    )?;
    story.seen("curl", body);
    ensure(json(body)?["login"] == "alice", "login alice", body)?;
    provider_got(story, &world.github, "GitHub", GITHUB_TOKEN)?;
    exchanged(world, story, &user, 1)
}

pub(super) fn curl_h2(world: &World, story: &mut Story) -> Held {
    let user = alice(world, story);
    let url = format!("https://{GOOGLE}/oauth2/v3/userinfo");
    let finished = curl(world, story, "--http2", &user, &url)?;
    let (body, status) = split_status(&finished.stdout);
    ensure(status == "200 2", "status 200 over HTTP/2", story.said(&finished))?;
    story.seen("curl", body);
    ensure(
        json(body)?["email"] == "alice@example.com",
        "alice's address",
        body,
    )?;
    provider_got(story, &world.google, "Google", GOOGLE_TOKEN)?;
    exchanged(world, story, &user, 1)
}

pub(super) fn cache(world: &World, story: &mut Story) -> Held {
    let user = alice(world, story);
    let config = world.config();
    let metrics = config["admin"]["metrics"].as_str().unwrap_or_default().to_owned();
    let before = world.github.count();
    let script = format!(
        "for n in $(seq {MANY}); do curl --silent --output /dev/null --write-out '%{{http_code}} ' \
         --header 'Authorization: Bearer {user}' https://{GITHUB_API}/user || exit 1; done; echo; \
         curl --silent http://{metrics}/metrics"
    );
    story.command(&format!(
        "tv-agent exec -- sh -c 'for n in $(seq {MANY}); do curl -H \"Authorization: Bearer {user}\" \
         https://{GITHUB_API}/user; done'"
    ));
    let finished = world.exec_with(&config, &["sh", "-c", &script])?;
    let (statuses, metrics) = finished.stdout.split_once('\n').unwrap_or_default();
    story.seen("curl", statuses);
    ensure(
        statuses.split_whitespace().filter(|s| *s == "200").count() == MANY,
        "200 each time",
        story.said(&finished),
    )?;
    let arrived = world.github.count() - before;
    story.seen("GitHub", &format!("{arrived} requests with {GITHUB_TOKEN}"));
    ensure(
        arrived == MANY as u64,
        format!("{MANY} requests at GitHub"),
        arrived.to_string(),
    )?;
    let families = [
        "tv_agent_token_exchanges_total",
        "tv_agent_token_cache_events_total",
    ];
    let interesting = |line: &&str| families.iter().any(|family| line.starts_with(family));
    let lines: Vec<&str> = metrics.lines().filter(interesting).collect();
    story.seen("metrics", &lines.join("\n"));
    let counted = lines
        .iter()
        .any(|line| line.contains(r#"result="ok""#) && line.ends_with(" 1"));
    ensure(counted, "one exchange in the agent's metrics", metrics)?;
    exchanged(world, story, &user, 1)
}

pub(super) fn tunnel(world: &World, story: &mut Story) -> Held {
    let url = format!("https://{UNROUTED}/headers");
    let root = world.root_file().display().to_string();
    story.command(&format!(
        "tv-agent exec -- curl -v -H 'Authorization: Bearer own-token' {url}"
    ));
    let header = "Authorization: Bearer own-token";
    let client = [
        "curl",
        "--silent",
        "--verbose",
        "--cacert",
        &root,
        "--header",
        header,
        &url,
    ];
    let finished = world.exec(&client)?;
    let issuer = issuer(&finished);
    story.seen("curl", &format!("certificate of {UNROUTED} issued by: {issuer}"));
    ensure(
        finished.success() && issuer.contains("World Root"),
        "the origin's own certificate",
        story.said(&finished),
    )?;
    let received = last(&world.unrouted)?;
    ensure(
        received.token().as_deref() == Some("own-token"),
        "the token as it was sent",
        format!("{received:?}"),
    )?;
    story.holds("the host's own certificate and the client's own token: the bytes went through untouched");
    let url = format!("https://{GITHUB_API}/");
    let finished = world.exec(&["curl", "--silent", "--verbose", "--output", "/dev/null", &url])?;
    let issuer = self::issuer(&finished);
    story.seen(
        "curl",
        &format!("certificate of {GITHUB_API} issued by: {issuer}"),
    );
    ensure(
        !issuer.is_empty() && !issuer.contains("World Root"),
        "the agent's certificate",
        story.said(&finished),
    )?;
    story.holds("a routed host shows the agent's certificate, which only the enrolled process trusts");
    Ok(())
}

pub(super) fn nothing_left(world: &World, story: &mut Story) -> Held {
    let calls = world.take_unexpected();
    ensure(
        calls.is_empty(),
        "no call that a provider does not expect",
        calls.join("; "),
    )?;
    story.holds("no provider saw any Auth0 token, in any header or path, in any chapter");
    let finished = world.exec(&["cat", "/proc/self/cgroup"])?;
    let line = finished.stdout.lines().find_map(|line| line.strip_prefix("0::"));
    let path = line.unwrap_or_default().trim_start_matches('/').to_owned();
    ensure(
        !path.is_empty(),
        "the command in a cgroup of its own",
        story.said(&finished),
    )?;
    let directory = tv_agent::redirect::cgroup2_mount()?.join(&path);
    story.seen("command", &format!("ran in cgroup /{path}"));
    ensure(
        !directory.exists(),
        "that cgroup gone",
        directory.display().to_string(),
    )?;
    story.holds("its cgroup is gone with it; namespaces, mounts and programs go with the demo");
    Ok(())
}

/// The provider tokens in Alice's vault.
pub(super) const GITHUB_TOKEN: &str = "gho_aliceQ7xW2v9LkT3nB8mZ5cR1";
pub(super) const GOOGLE_TOKEN: &str = "ya29.aliceH4jK6pD0sF2gY8uI3oP5";

/// Alice with a fresh Auth0 token (as after a new login) and both accounts connected.
pub(super) fn alice(world: &World, story: &mut Story) -> String {
    let user = world.user("alice");
    world.connect_github(&user, GITHUB_TOKEN, "alice");
    world.connect_google(&user, GOOGLE_TOKEN, "alice");
    story.label(&user, "auth0:alice");
    story.label(GITHUB_TOKEN, "gho_alice");
    story.label(GOOGLE_TOKEN, "ya29.alice");
    world.auth0.clear();
    user
}

/// That the newest request at `origin` carries `token`.
pub(super) fn provider_got(story: &Story, origin: &Origin, who: &str, token: &str) -> Held {
    let received = last(origin)?;
    let got = received.token().unwrap_or_default();
    let line = format!(
        "{} {} {:?}, with {got}",
        received.method, received.path, received.version
    );
    story.seen(who, &line);
    ensure(got == token, format!("{token} at {who}"), got)?;
    story.holds(&format!("{who} received {token}"));
    Ok(())
}

/// That Auth0 was asked for `user` so many times.
pub(super) fn exchanged(world: &World, story: &Story, user: &str, times: usize) -> Held {
    let count = world.auth0.count(user);
    story.seen("Auth0", &format!("{count} exchange(s) of {user}"));
    ensure(count == times, format!("{times} exchange(s)"), count.to_string())
}

/// The newest request at `origin`.
pub(super) fn last(origin: &Origin) -> Result<Received, NotHeld> {
    origin.requests().pop().ok_or_else(|| NotHeld::Seen {
        expected: "a request at the provider".to_owned(),
        seen: format!("none; failed handshakes: {:?}", origin.connections().failures()),
    })
}

/// The body and what `--write-out` added in a last line.
pub(super) fn split_status(stdout: &str) -> (&str, &str) {
    stdout.rsplit_once('\n').unwrap_or(("", stdout))
}

pub(super) fn json(text: &str) -> Result<Value, NotHeld> {
    serde_json::from_str(text).map_err(|source| NotHeld::Json {
        seen: text.to_owned(),
        source,
    })
}

fn curl(world: &World, story: &Story, http: &str, user: &str, url: &str) -> Result<Finished, NotHeld> {
    let header = format!("Authorization: Bearer {user}");
    story.command(&format!("tv-agent exec -- curl {http} -H '{header}' {url}"));
    let show = "\n%{http_code} %{http_version}";
    let client = [
        "curl",
        http,
        "--silent",
        "--show-error",
        "--header",
        &header,
        "--write-out",
        show,
        url,
    ];
    Ok(world.exec(&client)?)
}

/// Who issued the certificate that `curl --verbose` saw.
fn issuer(finished: &Finished) -> String {
    let mut issuers = finished
        .stderr
        .lines()
        .filter_map(|line| line.split_once("issuer: "));
    issuers
        .next_back()
        .map_or_else(String::new, |(_, issuer)| issuer.trim().to_owned())
}
