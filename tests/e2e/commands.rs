//! The commands beside `run` and `exec`: what they print, as text and as JSON, and their exit codes.

use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tv_tests::cgroup::TestCgroup;
use tv_tests::process::Finished;
use tv_tests::world::{GITHUB_API, GOOGLE, TENANT, UNROUTED, World};

/// Runs `tv-agent` on `config` and gives its end.
fn with_config(world: &World, arguments: &[&str], config: &Value) -> Finished {
    let file = world.write_config(config).unwrap().display().to_string();
    world
        .tv_agent(&[arguments, &["--config", &file]].concat())
        .unwrap()
}

#[track_caller]
fn parsed(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("no JSON ({error}): {}{}", finished.stdout, finished.stderr))
}

/// The finding of that name in what `check -o json` printed.
#[track_caller]
fn finding<'a>(findings: &'a Value, name: &str) -> &'a Value {
    let found = findings
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("no finding {name} in {findings:#}"))
}

#[test]
fn check_finds_what_is_well_and_what_is_not() {
    World::run(|world| {
        let cgroup = TestCgroup::new("check");
        let mut config = world.config();
        config["intercept"]["cgroups"] = json!([cgroup.name()]);
        with_config(world, &["ca", "init"], &config).expect_success();
        let text = with_config(world, &["check"], &config);
        assert!(
            text.expect_success().trim_end().ends_with("all is well"),
            "{}",
            text.stdout
        );
        assert!(!text.stdout.contains("BAD"), "{}", text.stdout);
        let findings = with_config(world, &["check", "-o", "json"], &config);
        let findings = parsed(&findings);
        assert!(
            findings.as_array().unwrap().iter().all(|one| one["ok"] == true),
            "{findings:#}"
        );
        for name in [
            "configuration",
            "enrolled cgroups",
            "certificate authority",
            "vault main",
            "sock_diag",
            "sandbox",
            "helper skc_to_mptcp_sock",
        ] {
            finding(&findings, name);
        }
        assert!(world.auth0.exchanges().is_empty(), "a check presents no token");

        let calls = world.take_unexpected();
        assert!(
            calls
                .iter()
                .all(|call| call.starts_with("Auth0: HEAD /oauth/token")),
            "{calls:?}"
        );
        assert_eq!(calls.len(), 2);

        // Everything that can be wrong at once, each with its remedy.
        world.deserted("nobody.example.org");
        config["intercept"]["cgroups"] = json!(["/tv-none"]);
        config["vaults"]["main"]["domain"] = json!("nobody.example.org");
        config["routes"][0]["hosts"] = json!(["api.elsewhere.example"]);
        let bad = with_config(world, &["check", "-o", "json"], &config);
        assert_eq!(bad.code(), 1, "{}", bad.stderr);
        let findings = parsed(&bad);
        for (name, word) in [
            ("enrolled cgroups", "/tv-none"),
            ("vault main", "nobody.example.org"),
        ] {
            let found = finding(&findings, name);
            assert_eq!(found["ok"], false, "{found}");
            assert!(found["detail"].as_str().unwrap().contains(word), "{found}");
            assert!(!found["remedy"].as_str().unwrap().is_empty(), "{found}");
        }
        let authority = finding(&findings, "certificate authority");
        assert_eq!(
            authority["ok"], false,
            "its CA may not sign for a host of this file: {authority}"
        );
        assert!(
            authority["remedy"].as_str().unwrap().contains("tv-agent ca init"),
            "{authority}"
        );

        // The vault's certificate is not believed without its root.
        config = world.config();
        config["vaults"]["main"]["extra_roots"] = json!([]);
        let findings = parsed(&with_config(world, &["check", "-o", "json"], &config));
        assert_eq!(finding(&findings, "vault main")["ok"], false, "{findings:#}");

        config["routes"][0]["connection"] = json!("");
        let broken = with_config(world, &["check"], &config);
        assert_eq!(broken.code(), 1, "{}", broken.stdout);
        assert!(broken.stdout.contains("BAD  configuration"), "{}", broken.stdout);
        assert!(
            broken.stdout.contains("routes.github.connection"),
            "{}",
            broken.stdout
        );
    });
}

#[test]
fn explain_tells_what_happens_and_why() {
    World::run(|world| {
        let mut config = world.config();
        config["intercept"]["cgroups"] = json!(["/apps"]);
        config["intercept"]["bypass_cidrs"] = json!(["192.0.2.40/32", "2001:db8::28/128"]);
        config["routes"][1]["workloads"] = json!(["/apps/mail"]);
        let explain = |arguments: &[&str]| {
            let finished = with_config(world, &[&["explain", "-o", "json"], arguments].concat(), &config);
            finished.expect_success();
            parsed(&finished)
        };
        let github = explain(&[GITHUB_API, "--workload", "/apps/web"]);
        assert_eq!(
            (&github["decision"], &github["route"]["name"]),
            (&json!("terminate"), &json!("github"))
        );
        assert_eq!(github["route"]["vault"], "main");
        assert_eq!(
            github["route"]["token_endpoint"],
            format!("https://{TENANT}/oauth/token")
        );
        assert_eq!(github["route"]["connection"], "github");
        let addresses = github["addresses"].as_array().unwrap();
        assert!(
            addresses
                .iter()
                .any(|a| a["address"] == "192.0.2.20" && a["redirected"] == true),
            "{github:#}"
        );

        // Routed for one workload, tunnelled for another, native for one that is not enrolled.
        for (workload, decision) in [
            ("/apps/mail", "terminate"),
            ("/apps/web", "tunnel"),
            ("/other", "native"),
        ] {
            let google = explain(&[GOOGLE, "--workload", workload]);
            assert_eq!(google["decision"], decision, "{workload}: {google:#}");
        }
        let other = explain(&[UNROUTED]);
        assert_eq!(
            (&other["decision"], &other["route"]),
            (&json!("tunnel"), &Value::Null)
        );
        let addresses = other["addresses"].as_array().unwrap();
        assert!(
            !addresses.is_empty() && addresses.iter().all(|a| a["redirected"] == false),
            "{other:#}"
        );
        assert!(
            addresses[0]["why"].as_str().unwrap().contains("bypass_cidrs"),
            "{other:#}"
        );

        let text = with_config(world, &["explain", GITHUB_API], &config);
        assert!(
            text.expect_success()
                .starts_with(&format!("{GITHUB_API}: terminate")),
            "{}",
            text.stdout
        );
        let nowhere = with_config(world, &["explain", "nowhere.example"], &config);
        assert!(
            nowhere.expect_success().contains("no address"),
            "{}",
            nowhere.stdout
        );
        let wrong = with_config(world, &["explain", "https://api.github.com/"], &config);
        assert_eq!(wrong.code(), 2, "{}", wrong.stderr);
        assert!(wrong.stderr.contains("is not a host name"), "{}", wrong.stderr);
    });
}

#[test]
fn ca_init_makes_what_is_missing_and_nothing_else() {
    World::run(|world| {
        let mut config = world.config();
        let dir = world.dir().join("ca");
        let none = with_config(world, &["ca", "show"], &config);
        assert_eq!(none.code(), 1, "{}", none.stdout);
        assert!(none.stderr.contains("tv-agent ca init"), "{}", none.stderr);

        let made = with_config(world, &["ca", "init", "-o", "json"], &config);
        made.expect_success();
        let made = parsed(&made);
        assert!(
            made["root"]["made"].is_object() && made["intermediate"]["made"].is_object(),
            "{made:#}"
        );
        let mode = |name: &str| std::fs::metadata(dir.join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode(""), mode("root")), (0o700, 0o700));
        assert_eq!(
            (mode("intermediate-key.pem"), mode("root/root-key.pem")),
            (0o600, 0o600)
        );
        let files = || {
            [
                "root.pem",
                "intermediate.pem",
                "intermediate-key.pem",
                "root/root-key.pem",
            ]
            .map(|name| std::fs::read(dir.join(name)).unwrap())
        };
        let before = files();

        let again = parsed(&with_config(world, &["ca", "init", "-o", "json"], &config));
        assert_eq!(
            (&again["root"], &again["intermediate"]),
            (&json!("kept"), &json!("kept"))
        );
        assert!(files() == before, "a second init changes nothing");
        let text = with_config(world, &["ca", "init"], &config);
        assert!(
            text.expect_success().contains("root: kept\nintermediate: kept\n"),
            "{}",
            text.stdout
        );

        let shown = with_config(world, &["ca", "show", "-o", "json"], &config);
        shown.expect_success();
        let shown = parsed(&shown);
        let permitted = shown["intermediate"]["permitted"].to_string();
        assert!(
            permitted.contains("googleapis.com") && permitted.contains("github.com"),
            "{shown:#}"
        );
        assert_eq!(
            (&shown["problem"], &shown["root_key_on_node"]),
            (&Value::Null, &json!(true))
        );
        let text = with_config(world, &["ca", "show"], &config);
        assert!(
            text.expect_success()
                .contains(shown["root"]["sha256"].as_str().unwrap()),
            "{}",
            text.stdout
        );

        // A route outside what the intermediate may sign for: a new one by the same root.
        config["routes"][0]["hosts"] = json!([GITHUB_API, "api.elsewhere.example"]);
        let reissued = parsed(&with_config(world, &["ca", "init", "-o", "json"], &config));
        assert_eq!(reissued["root"], "kept");
        assert!(
            reissued["intermediate"]["made"]["reason"].is_string(),
            "{reissued:#}"
        );
        let after = files();
        assert!(after[0] == before[0] && after[1] != before[1]);
        let shown = parsed(&with_config(world, &["ca", "show", "-o", "json"], &config));
        assert!(
            shown["intermediate"]["permitted"]
                .to_string()
                .contains("elsewhere.example"),
            "{shown:#}"
        );

        // Without a file: the built-in hosts, in the directory that is named.
        let other = world.dir().join("other-ca").display().to_string();
        world
            .tv_agent(&["ca", "init", "--dir", &other])
            .unwrap()
            .expect_success();
        let shown = parsed(
            &world
                .tv_agent(&["ca", "show", "--dir", &other, "-o", "json"])
                .unwrap(),
        );
        assert!(
            shown["intermediate"]["permitted"]
                .to_string()
                .contains("slack.com"),
            "{shown:#}"
        );
    });
}

#[test]
fn version_tells_the_digest_of_the_kernel_half() {
    World::run(|world| {
        let shown = parsed(&world.tv_agent(&["version", "-o", "json"]).unwrap());
        let digest = shown["bpf_sha256"]
            .as_str()
            .expect("the agent to test carries its kernel half");
        let text = world.tv_agent(&["version"]).unwrap();
        assert!(text.expect_success().contains(digest), "{}", text.stdout);
        assert!(
            text.stdout.contains(shown["version"].as_str().unwrap()),
            "{}",
            text.stdout
        );
        // The object lies in the program as it was built: its digest must be that of the bytes embedded.
        let program = std::fs::read(world.agent_file()).unwrap();
        assert!(
            embedded_objects(&program).any(|object| object == digest),
            "{digest}"
        );
    });
}

/// Digests of the BPF ELF objects in `program`, of the length that their own headers tell.
fn embedded_objects(program: &[u8]) -> impl Iterator<Item = String> {
    // e_ident: ELF, 64 bit, little endian, version 1; e_machine 247 is EM_BPF (elf.h).
    let starts = program
        .windows(7)
        .enumerate()
        .filter(|(_, w)| *w == b"\x7fELF\x02\x01\x01");
    starts.filter_map(|(start, _)| {
        let head = program.get(start..start + 64)?;
        let number = |at: usize, length: usize| {
            head[at..at + length]
                .iter()
                .rev()
                .fold(0usize, |n, byte| n << 8 | usize::from(*byte))
        };
        if number(18, 2) != 247 {
            return None;
        }
        // e_shoff, e_shentsize, e_shnum: the section headers come last.
        let length = number(40, 8) + number(58, 2) * number(60, 2);
        let digest = Sha256::digest(program.get(start..start + length)?);
        Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    })
}

#[test]
fn cleanup_finds_nothing_where_nothing_is() {
    World::run(|world| {
        for _ in 0..2 {
            let finished = world.tv_agent(&["cleanup"]).unwrap();
            assert_eq!(finished.expect_success(), "nothing was left behind\n");
        }
        let finished = world.tv_agent(&["cleanup", "-o", "json"]).unwrap();
        assert_eq!(parsed(&finished), json!([]));
    });
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    World::run(|world| {
        let wrong: [&[&str]; 9] = [
            &[],
            &["no-such-command"],
            &["--no-such-flag"],
            &["run"],
            &["run", "--config"],
            &["exec"],
            &["check", "-o", "xml"],
            &["explain"],
            &["ca"],
        ];
        for arguments in wrong {
            let finished = world.tv_agent(arguments).unwrap();
            assert_eq!(
                finished.code(),
                2,
                "{arguments:?}: {}{}",
                finished.stdout,
                finished.stderr
            );
            assert!(
                finished.stdout.is_empty() && !finished.stderr.is_empty(),
                "{arguments:?}"
            );
        }
        for arguments in [["--help"], ["--version"]] {
            assert!(
                world
                    .tv_agent(&arguments)
                    .unwrap()
                    .expect_success()
                    .contains("tv-agent")
            );
        }
    });
}
