//! `exec` and `trust env` where variables and mounts do not go together: clients that drop the one, users without the
//! other, and environments that already say something.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tv_tests::process;
use tv_tests::world::{GITHUB_API, World};

use crate::rows::{ROWS, Row};
use crate::runtimes::Runtimes;

const LIMIT: Duration = Duration::from_secs(90);
const TOKEN: &str = "gho_exec";

/// Runs the client of `row` as `start` says, which gets the command's words; what it says.
fn ask(
    world: &World,
    runtimes: &Runtimes,
    row: &str,
    start: impl FnOnce(&[String]) -> Command,
) -> Option<String> {
    let row: &Row = ROWS
        .iter()
        .find(|other| other.name == row)
        .expect("a row of the table");
    let command = match runtimes.command(row) {
        Ok(command) => command,
        Err(reason) => {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "this must run in CI: {reason}"
            );
            eprintln!("skipped: {reason}");
            return None;
        }
    };
    let user = world.user(row.name);
    world.connect_github(&user, TOKEN, "alice");
    let words = [&command[..], &[GITHUB_API.to_owned(), user]].concat();
    // One line of input.
    let one_line = ["sh", "-c", r#"echo go | "$@""#, "sh"].map(str::to_owned);
    let mut command = start(&[&one_line[..], &words].concat());
    command.env("PATH", runtimes.path()).env_remove("PYTHONPATH");
    command.envs(runtimes.python().map(|python| ("PYTHON", python)));
    let finished = process::run(&mut command, LIMIT).unwrap();
    Some(format!("{}{}", finished.stdout, finished.stderr))
}

#[track_caller]
fn assert_served(world: &World, row: &str, said: Option<String>) {
    let Some(said) = said else { return };
    assert!(said.contains(r#""login":"alice""#), "{row}: {said}");
    let requests = world.github.requests();
    assert!(!requests.is_empty(), "{row}");
    assert!(
        requests
            .iter()
            .all(|request| request.token().as_deref() == Some(TOKEN)),
        "{requests:?}"
    );
    world.github.clear();
}

/// The variables do not reach them: what they read must hold the CA.
#[test]
fn clients_that_drop_the_variables_find_the_ca_in_their_stores() {
    let runtimes = Runtimes::find();
    World::run(|world| {
        for row in [
            "curl",
            "Python requests, one Session kept",
            "Python httpx",
            "Java HttpClient",
            "Ruby Net::HTTP",
            "Go net/http",
        ] {
            let said = ask(world, &runtimes, row, |words| {
                let mut exec = world.exec_command(&world.config()).unwrap();
                let path = format!("PATH={}", runtimes.path());
                let own = format!("HOME={}", world.dir().join("home").display());
                // The interpreter of the virtual environment is on nobody's PATH.
                exec.env("VIRTUAL_ENV", runtimes.python().map_or(Path::new("/none"), home));
                exec.args(["env", "-i", &path, &own]).args(words);
                exec
            });
            assert_served(world, row, said);
        }
    });
}

fn home(python: &str) -> &Path {
    Path::new(python).ancestors().nth(2).expect("bin/python")
}

/// What the caller had set is heeded: its own roots stay trusted, and ours come to them.
#[test]
fn variables_that_name_other_stores_are_heeded() {
    let runtimes = Runtimes::find();
    World::run(|world| {
        // As a company's bundle would be: nothing of this system's is in it.
        let corporate = world.root_file().display().to_string();
        for (row, variable) in [
            ("curl", "CURL_CA_BUNDLE"),
            ("Python requests, one Session kept", "REQUESTS_CA_BUNDLE"),
            ("Ruby Net::HTTP", "SSL_CERT_FILE"),
            ("Go net/http", "SSL_CERT_FILE"),
            ("Node https", "NODE_EXTRA_CA_CERTS"),
            ("Deno fetch", "DENO_CERT"),
        ] {
            let said = ask(world, &runtimes, row, |words| {
                let mut exec = world.exec_command(&world.config()).unwrap();
                exec.env(variable, &corporate).args(words);
                exec
            });
            assert_served(world, row, said);
        }
        let Some(own) = ["/etc/ssl/certs/java/cacerts", "/etc/pki/java/cacerts"]
            .iter()
            .find_map(|path| std::fs::read(path).ok())
        else {
            return eprintln!("skipped: this system has no key store for Java");
        };
        let store = world.dir().join("own-cacerts");
        std::fs::write(&store, &own).unwrap();
        let said = ask(world, &runtimes, "Java HttpClient", |words| {
            let mut exec = world.exec_command(&world.config()).unwrap();
            let options = format!("-Djavax.net.ssl.trustStore={}", store.display());
            exec.env("JAVA_TOOL_OPTIONS", options).args(words);
            exec
        });
        assert_served(world, "Java HttpClient", said);
        assert_eq!(std::fs::read(&store).unwrap(), own, "the original is left");
    });
}

/// Nothing can be mounted, nothing is installed: copies and variables alone.
#[test]
fn copies_that_only_variables_name_are_enough() {
    let runtimes = Runtimes::find();
    World::run(|world| {
        let mut config = world.config();
        config["trust"] = json!({ "install": "none" });
        let daemon = world.daemon("variables", config).unwrap();
        let variables = variables(world, &world.dir().join("copies"));
        for row in [
            "curl",
            "Python requests, one Session kept",
            "Python aiohttp",
            "Node fetch",
            "Deno fetch",
            "Java HttpClient",
            "Ruby Net::HTTP",
            "PHP streams",
            "Go net/http",
            "Rust reqwest, one Client kept",
        ] {
            let said = ask(world, &runtimes, row, |words| {
                let mut command = daemon.command(&words[0]);
                command.args(&words[1..]).envs(variables.iter().cloned());
                command
            });
            assert_served(world, row, said);
        }
    });
}

fn variables(world: &World, into: &Path) -> Vec<(String, String)> {
    let mut command = world.agent();
    command.args(["trust", "env", "-o", "json", "--into"]).arg(into);
    command.arg("--ca-dir").arg(world.agent_root().parent().unwrap());
    let told = process::run(&mut command, LIMIT).unwrap();
    let told: Vec<Value> = serde_json::from_str(told.expect_success()).unwrap();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    told.iter()
        .map(|variable| (text(&variable["name"]), text(&variable["value"])))
        .collect()
}
