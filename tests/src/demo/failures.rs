//! The chapters in which something is refused: the workload is told why, and no provider is asked.

use super::chapters::{GITHUB_TOKEN, alice, exchanged, json};
use super::story::Story;
use super::{Held, NotHeld, ensure};
use crate::fakes::auth0::Mode;
use crate::world::{Answer, GITHUB_API, World};

pub(super) fn vault_refuses(world: &World, story: &mut Story) -> Held {
    let bob = world.user("bob");
    story.label(&bob, "auth0:bob");
    let before = world.github.count();

    let answer = ask(world, story, &bob)?;
    story.seen("curl", &format!("{} {}", answer.status, answer.body));
    let body = json(&answer.body)?;
    ensure(
        answer.status == 401 && body["error"] == "connection_required",
        "connection_required",
        &answer.body,
    )?;
    ensure(
        body["connection"] == "github",
        "the connection's name",
        &answer.body,
    )?;
    ensure(
        answer
            .header("proxy-status")
            .is_some_and(|v| v.starts_with("tv-agent")),
        "Proxy-Status of tv-agent",
        &answer.head,
    )?;
    ensure(
        answer.header("www-authenticate").is_some(),
        "a WWW-Authenticate challenge",
        &answer.head,
    )?;
    story.holds("Bob never connected GitHub: he is told so, by tv-agent and not by GitHub");
    exchanged(world, story, &bob, 1)?;

    world.auth0.set_mode(Mode::RateLimited { retry_after: Some(7) });
    let answer = ask(world, story, &bob);
    world.auth0.set_mode(Mode::Normal);
    let answer = answer?;
    story.seen("curl", &format!("{} {}", answer.status, answer.body));
    ensure(
        answer.status == 503 && answer.header("retry-after").is_some(),
        "503 with Retry-After",
        &answer.head,
    )?;
    story.holds("Auth0 answers 429: the workload gets 503 and when to come back");

    let arrived = world.github.count() - before;
    ensure(arrived == 0, "no request at GitHub", arrived.to_string())?;
    story.holds("GitHub was not asked at all");
    Ok(())
}

pub(super) fn agent_dies(world: &World, story: &mut Story) -> Held {
    let user = alice(world, story);
    let header = format!("Authorization: Bearer {user}");
    let url = format!("https://{GITHUB_API}/user");
    let client = [
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "10",
        "--header",
        &header,
        &url,
    ];
    let mut daemon = world.daemon("demo", world.config())?;
    // `run` does not touch the trust of processes that it did not start.
    let root = world.agent_root().display().to_string();
    let trusting = [&client[..], &["--cacert", &root]].concat();
    let cgroup = daemon.cgroup().name();
    story.command(&format!(
        "tv-agent run --config tv-agent.yaml   # enrolled: cgroup {cgroup}"
    ));
    let finished = daemon.run(&trusting)?;
    ensure(
        finished.success() && finished.stdout.contains("alice"),
        "an answer of GitHub",
        story.said(&finished),
    )?;
    story.holds(&format!(
        "a process in that cgroup reaches GitHub, which gets {GITHUB_TOKEN}"
    ));

    let (requests, accepted) = (world.github.count(), world.github.connections().accepted());
    daemon.kill();
    story.command("kill -9 $(pidof tv-agent)");
    let finished = daemon.run(&trusting)?;
    story.seen("curl", &finished.stderr);
    ensure(!finished.success(), "a refusal", story.said(&finished))?;
    let now = (world.github.count(), world.github.connections().accepted());
    ensure(
        now == (requests, accepted),
        "no new connection at GitHub",
        format!("{now:?}"),
    )?;
    story.holds("refused, not bypassed: no connection reached GitHub without the agent");
    Ok(())
}

fn ask(world: &World, story: &Story, user: &str) -> Result<Answer, NotHeld> {
    let header = format!("Authorization: Bearer {user}");
    let url = format!("https://{GITHUB_API}/user");
    story.command(&format!("tv-agent exec -- curl -H '{header}' {url}"));
    let client = [
        "curl",
        "--http1.1",
        "--silent",
        "--show-error",
        "--include",
        "--header",
        &header,
        &url,
    ];
    let finished = world.exec(&client)?;
    Answer::parse(&finished).ok_or_else(|| NotHeld::Seen {
        expected: "an answer".to_owned(),
        seen: story.said(&finished),
    })
}
