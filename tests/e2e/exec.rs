//! `tv-agent exec`: one command, its streams, its exit code, and nothing left behind.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill, killpg};
use tv_tests::fakes::pki::Pki;
use tv_tests::process::{self, Finished};
use tv_tests::world::{CLIENT_ID, CLIENT_SECRET, GITHUB, GOOGLE, TENANT, World};

use crate::leftovers::{Traces, cgroup_of};
use crate::support::{
    GITHUB_TOKEN, GOOGLE_TOKEN, alice, assert_swapped, assert_unseen, bearer, curl, lines, user_url, wait_for,
};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn exit_codes_streams_and_arguments_are_the_commands() {
    World::run(|world| {
        let file = world.dir().join("data.txt");
        std::fs::write(&file, "not a program\n").unwrap();
        let file = file.display().to_string();
        let cases: [(&[&str], i32); 6] = [
            (&["true"], 0),
            (&["sh", "-c", "exit 7"], 7),
            (&["no-such-command-anywhere"], 127),
            (&[&file], 126),
            (&["sh", "-c", "kill -TERM $$"], 128 + 15),
            (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        ];
        let before = Traces::now();
        for (command, code) in cases {
            let running = world.start_exec(&world.config(), command).unwrap();
            let cgroup = cgroup_of(running.pid());
            let finished = running.finish(LIMIT).unwrap();
            assert_eq!(finished.code(), code, "{command:?}: {}", finished.stderr);
            assert!(!cgroup.exists(), "{command:?} leaves {}", cgroup.display());
        }

        let text: String = (0..50_000).map(|n| format!("{n} line\n")).collect();
        let input = world.dir().join("input");
        std::fs::write(&input, &text).unwrap();
        let mut cat = world.exec_command(&world.config()).unwrap();
        cat.arg("cat").stdin(std::fs::File::open(&input).unwrap());
        let finished = process::start(&mut cat)
            .unwrap()
            .sweeping()
            .finish(LIMIT)
            .unwrap();
        assert!(finished.expect_success() == text, "input and output differ");
        let finished = world.exec(&["sh", "-c", "echo out; echo err >&2"]).unwrap();
        assert_eq!(
            (finished.stdout.as_str(), finished.stderr.as_str()),
            ("out\n", "err\n")
        );

        let odd = [
            "",
            "a b",
            "-x",
            "--config",
            "--",
            "$(id) `id` \"'\\",
            "two\nlines",
            "*",
            "é",
        ];
        let mut words: Vec<OsString> = odd.iter().map(Into::into).collect();
        words.push(OsString::from_vec(vec![b'b', 0xff, 0xfe]));
        let mut show = world.exec_command(&world.config()).unwrap();
        let script = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(os.fsencode(a) for a in sys.argv[1:]).hex().encode())";
        show.args(["python3", "-c", script])
            .args(&words)
            .stdin(Stdio::null());
        let finished = process::start(&mut show)
            .unwrap()
            .sweeping()
            .finish(LIMIT)
            .unwrap();
        let bytes: Vec<Vec<u8>> = words.into_iter().map(OsString::into_vec).collect();
        let hex: String = bytes.join(&0).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(finished.expect_success(), hex);
        assert_eq!(before, Traces::now());
    });
}

#[test]
fn a_termination_signal_reaches_the_command() {
    World::run(|world| {
        let ready = world.dir().join("ready");
        for (signal, code) in [(Signal::SIGTERM, 9), (Signal::SIGHUP, 8)] {
            let script = "trap 'echo told to end; exit 9' TERM; trap 'exit 8' HUP; touch \"$0\"; \
                          while :; do sleep 0.05; done";
            let path = ready.display().to_string();
            let running = world
                .start_exec(&world.config(), &["sh", "-c", script, &path])
                .unwrap();
            wait_for("the command runs", LIMIT, || ready.exists());
            std::fs::remove_file(&ready).unwrap();
            // To the agent alone, as an init system sends it, and not to the whole group.
            kill(running.pid(), signal).unwrap();
            let finished = running.finish(LIMIT).unwrap();
            assert_eq!(finished.code(), code, "{}{}", finished.stdout, finished.stderr);
        }
    });
}

#[test]
fn a_command_that_gives_up_root_is_served_as_well() {
    World::run(|world| {
        let user = alice(world);
        let (header, url) = (bearer(&user), user_url());
        let nobody = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
        ];
        let client = curl(&["--header", &header, &url]);
        let finished = world.exec(&[&nobody[..], &client].concat()).unwrap();
        assert!(finished.expect_success().contains("alice"), "{}", finished.stdout);
        // Nor does a strict umask keep it from the certificates.
        let config = world.write_config(&world.config()).unwrap();
        let mut strict = world.command("sh");
        strict
            .args(["-c", r#"umask 077; exec "$@""#, "sh"])
            .arg(world.agent_file());
        strict
            .args(["exec", "--config"])
            .arg(config)
            .arg("--")
            .args(nobody)
            .args(&client)
            .stdin(Stdio::null());
        finish(&mut strict).expect_success();
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
    });
}

/// As Ctrl-C at a terminal: everybody in the group gets it, and the command decides what it means.
#[test]
fn an_interrupt_is_the_commands_to_handle() {
    World::run(|world| {
        let ready = world.dir().join("ready");
        let path = ready.display().to_string();
        let cases = [
            ("trap 'sleep 0.3; echo saved; exit 3' INT;", 3, "saved\n"),
            ("", 128 + 2, ""),
        ];
        for (trap, code, output) in cases {
            let script = format!("{trap} touch \"$0\"; while :; do sleep 0.05; done");
            let running = world
                .start_exec(&world.config(), &["bash", "-c", &script, &path])
                .unwrap();
            wait_for("the command runs", LIMIT, || ready.exists());
            std::fs::remove_file(&ready).unwrap();
            killpg(running.pid(), Signal::SIGINT).unwrap();
            let finished = running.finish(LIMIT).unwrap();
            assert_eq!(
                (finished.code(), finished.stdout.as_str()),
                (code, output),
                "{}",
                finished.stderr
            );
        }
    });
}

#[test]
fn several_run_side_by_side_and_beside_a_daemon() {
    World::run(|world| {
        let user = alice(world);
        let header = bearer(&user);
        let url = user_url();
        let daemon = world.daemon("beside", world.config()).unwrap();
        let client = curl(&["--header", &header, &url]);
        let start = |_| world.start_exec(&world.config(), &client).unwrap();
        let running: Vec<_> = (0..4).map(start).collect();
        let root = world.agent_root().display().to_string();
        let served = daemon.run(&[&client[..], &["--cacert", &root]].concat()).unwrap();
        assert!(served.expect_success().contains("alice"));
        for one in running {
            let finished = one.finish(LIMIT).unwrap();
            assert!(finished.expect_success().contains("alice"), "{}", finished.stderr);
        }
        assert_eq!(world.github.count(), 5);
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        // Each agent has a cache of its own.
        assert_eq!(world.auth0.count(&user), 5);
        // The daemon outlives its neighbours.
        let served = daemon.run(&[&client[..], &["--cacert", &root]].concat()).unwrap();
        served.expect_success();
    });
}

/// `tv-agent exec -- …` with the three variables of the zero-configuration mode, and roots as the system's.
fn zero_config(world: &World, agent: &Path, roots: &Path) -> Command {
    let mut command = world.command(agent);
    command
        .arg("exec")
        .arg("--")
        .env("AUTH0_DOMAIN", TENANT)
        .env("AUTH0_CLIENT_ID", CLIENT_ID)
        .env("AUTH0_CLIENT_SECRET", CLIENT_SECRET)
        .env("SSL_CERT_FILE", roots)
        .stdin(Stdio::null());
    command
}

fn finish(command: &mut Command) -> Finished {
    process::start(command).unwrap().sweeping().finish(LIMIT).unwrap()
}

#[test]
fn without_a_configuration_three_variables_do() {
    World::run(|world| {
        let user = alice(world);
        let header = bearer(&user);
        let github = user_url();
        let google = format!("https://{GOOGLE}/oauth2/v3/userinfo");
        let roots = world.root_file();
        let mut command = zero_config(world, world.agent_file(), &roots);
        let answers = finish(command.args(curl(&["--header", &header, &github, &google])));
        assert!(
            answers.expect_success().contains("alice@example.com"),
            "{}",
            answers.stdout
        );
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        assert_swapped(&world.google, GOOGLE_TOKEN, &user);
        // git asks without credentials first; that request goes through as it is.
        let helper =
            format!("credential.helper=!f() {{ echo username=x-access-token; echo password={user}; }}; f");
        let mut command = zero_config(world, world.agent_file(), &roots);
        let url = format!("https://{GITHUB}/acme/demo.git");
        finish(command.args(["git", "-c", &helper, "ls-remote", &url])).expect_success();
        assert_unseen(world, &user);

        for missing in ["AUTH0_DOMAIN", "AUTH0_CLIENT_ID", "AUTH0_CLIENT_SECRET"] {
            let mut command = zero_config(world, world.agent_file(), &roots);
            let finished = finish(command.env_remove(missing).arg("true"));
            assert_eq!(finished.code(), 2, "{}", finished.stderr);
            assert!(finished.stderr.contains(missing), "{}", finished.stderr);
        }
    });
}

#[test]
fn a_certificate_file_that_the_caller_has_set_is_honoured() {
    World::run(|world| {
        let user = alice(world);
        let header = bearer(&user);
        let corporate = Pki::new("Corporate Root");
        let intranet = world
            .origin("intranet.example.org", &corporate.leaf(&["intranet.example.org"]))
            .unwrap();
        intranet.forbid(&user);
        let file = world.dir().join("corporate.pem");
        std::fs::write(&file, corporate.root_pem()).unwrap();

        let mut command = world.exec_command(&world.config()).unwrap();
        let (github, own) = (user_url(), "https://intranet.example.org/");
        let ask = r#"curl --silent --show-error --fail --header "$0" "$1" && curl --silent --show-error --fail "$2" \
                     && cat "$SSL_CERT_FILE""#;
        command
            .args(["sh", "-c", ask, &header, &github, own])
            .env("SSL_CERT_FILE", &file);
        let finished = finish(command.stdin(Stdio::null()));
        let output = finished.expect_success();
        assert!(
            output.contains(r#""login":"alice""#) && output.contains("an origin"),
            "{output}"
        );
        assert!(output.contains(corporate.root_pem().trim()), "{output}");
        assert!(output.matches("BEGIN CERTIFICATE").count() > 1, "{output}");
        // The file itself stays as it is.
        assert_eq!(std::fs::read_to_string(&file).unwrap(), corporate.root_pem());

        std::fs::write(&file, "no certificate\n").unwrap();
        let mut command = world.exec_command(&world.config()).unwrap();
        let finished = finish(
            command
                .arg("true")
                .env("SSL_CERT_FILE", &file)
                .stdin(Stdio::null()),
        );
        assert_eq!(finished.code(), 125, "{}", finished.stderr);
        assert!(finished.stderr.contains("SSL_CERT_FILE"), "{}", finished.stderr);
    });
}

#[test]
fn the_command_keeps_the_limits_that_the_agent_raises_for_itself() {
    World::run(|world| {
        let config = world.write_config(&world.config()).unwrap();
        let script = r#"ulimit -Sn 300; ulimit -Sc 40; exec "$0" exec --config "$1" -- sh -c 'ulimit -Sn; ulimit -Sc; cat /proc/$PPID/limits'"#;
        let mut command = world.command("sh");
        command
            .args(["-c", script])
            .arg(world.agent_file())
            .arg(config)
            .stdin(Stdio::null());
        let finished = finish(&mut command);
        let (own, agents) = finished.expect_success().split_once('\n').unwrap();
        assert_eq!(own, "300");
        let (own, agents) = agents.split_once('\n').unwrap();
        assert_eq!(own, "40");
        let cores = agents.lines().find(|line| line.starts_with("Max core file size"));
        let soft = cores.and_then(|line| line.split_whitespace().nth(4));
        assert_eq!(soft, Some("0"), "{agents}");
        let line = agents
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .unwrap();
        let limits: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
        assert!(limits[0] == limits[1] && limits[0] != "300", "{line}");
    });
}

#[test]
fn without_privileges_it_says_so_and_runs_nothing() {
    World::run(|world| {
        // A place that others than root can reach.
        let agent = Path::new("/run/tv-agent-program");
        std::fs::write(agent, "").unwrap();
        mount(
            Some(world.agent_file()),
            agent,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        let ran = Path::new("/run/ran");
        let mut command = zero_config(world, agent, &world.root_file());
        command
            .args(["touch", "/run/ran"])
            .uid(65_534)
            .gid(65_534)
            .current_dir("/");
        let finished = finish(&mut command);
        assert_eq!(finished.code(), 125, "{}", finished.stderr);
        let said = lines(&finished.stderr);
        assert!(said.len() == 1 && said[0].contains("root"), "{}", finished.stderr);

        // Root of a container without capabilities.
        let mut bare = world.command("setpriv");
        bare.args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg(agent)
            .args(["exec", "--", "touch", "/run/ran"]);
        bare.env("AUTH0_DOMAIN", TENANT)
            .env("AUTH0_CLIENT_ID", CLIENT_ID)
            .env("AUTH0_CLIENT_SECRET", CLIENT_SECRET);
        let finished = finish(bare.stdin(Stdio::null()));
        assert_eq!(finished.code(), 125, "{}", finished.stderr);
        assert!(
            finished.stderr.contains("CAP_") || finished.stderr.contains("root"),
            "{}",
            finished.stderr
        );
        assert!(!ran.exists());
    });
}
