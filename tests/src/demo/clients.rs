//! The chapters of other clients than curl: each left out, saying so, where it is not installed.

use super::chapters::{GITHUB_TOKEN, GOOGLE_TOKEN, alice, exchanged, json, last, provider_got};
use super::story::Story;
use super::{Held, ensure};
use crate::world::{GITHUB, GITHUB_API, GOOGLE_GRPC, World};

const PYTHON: &str = r#"
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]})
print(urllib.request.urlopen(request, timeout=10).read().decode())
"#;

const NODE: &str = r#"
const [url, token] = process.argv.slice(-2);
require("https").get(url, { headers: { authorization: "Bearer " + token } }, (response) => {
  if (response.statusCode !== 200) process.exitCode = 1;
  response.pipe(process.stdout);
});
"#;

const GRPC: &str = r#"
import sys, grpc
channel = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials())
echo = channel.unary_unary("/tv.Echo/Unary")
print(echo(b"hello", metadata=[("authorization", "Bearer " + sys.argv[2])], timeout=10).decode())
"#;

pub(super) fn git_clone(world: &World, story: &mut Story) -> Held {
    let Some(head) = &world.repository_head else {
        story.skipped("git is not installed");
        return Ok(());
    };
    let user = alice(world, story);
    let before = world.github.count();
    let helper =
        format!("credential.helper=!f() {{ echo username=x-access-token; echo password={user}; }}; f");
    let url = format!("https://{GITHUB}/acme/demo.git");
    story.command(&format!(
        "tv-agent exec -- git clone {url}   # credential helper: password {user}"
    ));
    let target = world.dir().join("clone").display().to_string();
    let finished = world.exec(&["git", "-c", &helper, "clone", "--quiet", &url, &target])?;
    ensure(finished.success(), "a clone", story.said(&finished))?;
    let tip = world.plain(&["git", "-C", &target, "rev-parse", "HEAD"])?;
    ensure(
        tip.stdout.trim() == head,
        format!("commit {head}"),
        story.said(&tip),
    )?;
    let arrived = world.github.count() - before;
    let received = last(&world.github)?;
    let scheme = received
        .header("authorization")
        .and_then(|v| v.split(' ').next())
        .unwrap_or("no credentials");
    story.seen(
        "GitHub",
        &format!("{arrived} requests, the last one {} with {scheme}", received.path),
    );
    ensure(
        scheme.eq_ignore_ascii_case("basic"),
        "Basic, as GitHub wants it for git",
        scheme,
    )?;
    provider_got(story, &world.github, "GitHub", GITHUB_TOKEN)?;
    story.holds(&format!(
        "the clone ends at commit {}",
        &head[..12.min(head.len())]
    ));
    exchanged(world, story, &user, 1)
}

pub(super) fn python(world: &World, story: &mut Story) -> Held {
    if !installed(world, &["python3", "--version"])? {
        story.skipped("python3 is not installed");
        return Ok(());
    }
    json_client(world, story, "python3", "client.py", PYTHON)
}

pub(super) fn node(world: &World, story: &mut Story) -> Held {
    if !installed(world, &["node", "--version"])? {
        story.skipped("node is not installed");
        return Ok(());
    }
    json_client(world, story, "node", "client.js", NODE)
}

pub(super) fn grpc(world: &World, story: &mut Story) -> Held {
    if !installed(world, &["python3", "-c", "import grpc"])? {
        let why = story.why_no_python_clients();
        story.skipped(&format!("python3 cannot import grpc: {why}"));
        return Ok(());
    }
    let user = alice(world, story);
    let target = format!("{GOOGLE_GRPC}:443");
    let script = world.dir().join("grpc_client.py");
    std::fs::write(&script, GRPC)?;
    story.command(&format!(
        "tv-agent exec -- python3 grpc_client.py {target} {user}"
    ));
    let script = script.display().to_string();
    let finished = world.exec(&["python3", &script, &target, &user])?;
    ensure(
        finished.stdout.trim() == "hello",
        "the message back",
        story.said(&finished),
    )?;
    provider_got(story, &world.google, "Google", GOOGLE_TOKEN)?;
    exchanged(world, story, &user, 1)
}

/// A script that takes a URL and a token and prints GitHub's answer.
fn json_client(world: &World, story: &mut Story, program: &str, name: &str, source: &str) -> Held {
    let user = alice(world, story);
    let script = world.dir().join(name);
    std::fs::write(&script, source)?;
    let url = format!("https://{GITHUB_API}/user");
    story.command(&format!("tv-agent exec -- {program} {name} {url} {user}"));
    let finished = world.exec(&[program, &script.display().to_string(), &url, &user])?;
    ensure(finished.success(), "an answer", story.said(&finished))?;
    story.seen(program, &finished.stdout);
    ensure(
        json(&finished.stdout)?["login"] == "alice",
        "login alice",
        &finished.stdout,
    )?;
    provider_got(story, &world.github, "GitHub", GITHUB_TOKEN)?;
    exchanged(world, story, &user, 1)
}

fn installed(world: &World, probe: &[&str]) -> std::io::Result<bool> {
    match world.plain(probe) {
        Ok(finished) => Ok(finished.success()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
