//! The demo: real clients under `tv-agent exec` against a small internet, each claim verified before it
//! is printed.

mod chapters;
mod clients;
mod failures;
mod story;

use std::io;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::process;
use crate::sandbox;
use crate::tools;
use crate::world::{self, World};
use story::Story;

/// Why a chapter did not hold.
#[derive(Debug, thiserror::Error)]
enum NotHeld {
    /// The chapter could not even be played.
    #[error("running a command")]
    Run(#[from] io::Error),
    /// Something else was seen than was told.
    #[error("expected {expected}, but saw: {seen}")]
    Seen { expected: String, seen: String },
    /// A client answered no JSON where it must.
    #[error("expected JSON, but saw: {seen}")]
    Json {
        seen: String,
        #[source]
        source: serde_json::Error,
    },
}

type Held = Result<(), NotHeld>;

/// `Ok` when `holds`, else what was seen instead.
fn ensure(holds: bool, expected: impl Into<String>, seen: impl Into<String>) -> Held {
    if holds {
        Ok(())
    } else {
        Err(NotHeld::Seen {
            expected: expected.into(),
            seen: seen.into(),
        })
    }
}

/// One chapter: its title and what is played and verified.
type Chapter = (&'static str, fn(&World, &mut Story) -> Held);

const CHAPTERS: [Chapter; 12] = [
    (
        "Without tv-agent: the provider does not know Auth0's tokens",
        chapters::without_agent,
    ),
    ("curl over HTTP/1.1 to GitHub", chapters::curl_h1),
    ("curl over HTTP/2 to Google", chapters::curl_h2),
    ("git clone over HTTPS", clients::git_clone),
    ("Python, urllib", clients::python),
    ("Node.js, https", clients::node),
    ("gRPC, Python grpcio", clients::grpc),
    ("Twenty requests, one exchange", chapters::cache),
    ("The vault refuses", failures::vault_refuses),
    ("A host that no route names", chapters::tunnel),
    ("The agent dies", failures::agent_dies),
    ("Nothing leaked, nothing left", chapters::nothing_left),
];

/// Plays every chapter. Exit code 0: all held; 1: not; 2: it cannot be played here; 130: interrupted.
pub fn run() -> ExitCode {
    let mut story = Story::new(CHAPTERS.len());
    if let Err(reason) = sandbox::available() {
        story.refuse(&format!(
            "{reason}\nThe demo needs root on Linux: sudo -E env \"PATH=$PATH\" cargo xtask demo"
        ));
        return ExitCode::from(2);
    }
    let agent = match world::agent_binary() {
        Ok(agent) => agent,
        Err(reason) => {
            story.refuse(&reason);
            return ExitCode::from(2);
        }
    };
    watch_signals();
    // Before the world: it has no way out to where packages come from.
    story.prepares("the Python clients of the gRPC chapter (once, with pip)");
    if let Err(reason) = tools::install_python_clients() {
        story.lacks_python_clients(reason);
    }
    let world = match World::enter(&agent) {
        Ok(world) => world,
        Err(error) => {
            story.refuse(&format!("building the demo's network: {error}"));
            return ExitCode::from(2);
        }
    };
    story.open(&world);
    let mut failed = Vec::new();
    for (title, play) in CHAPTERS {
        let number = story.chapter(title);
        let played = play(&world, &mut story);
        if process::interrupted() {
            story.interrupted();
            // A client that was stopped in the middle is no failure of the agent's.
            world.take_unexpected();
            return ExitCode::from(130);
        }
        if let Err(error) = played {
            story.failed(&error);
            failed.push(number);
        }
    }
    // Named in the last chapter; dropping the world must not panic about them again.
    world.take_unexpected();
    drop(world);
    story.close(&failed);
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// SIGINT, SIGTERM and SIGHUP end the running command; the story then ends as after a failure, cleaning up.
fn watch_signals() {
    let watch = || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let mut hangup = signal(SignalKind::hangup())?;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            process::interrupt();
            Ok(())
        })
    };
    std::thread::spawn(move || {
        if let Err(error) = watch() {
            eprintln!("signals are not watched ({error}); do not interrupt the demo");
        }
    });
}
