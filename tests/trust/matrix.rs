//! The table: every runtime, in each of the ways in which it can meet the CA.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tv_tests::fakes::origin::Origin;
use tv_tests::world::{Daemon, GITHUB, GITHUB_API, GOOGLE_GRPC, World};

use crate::container::{Client, Container};
use crate::rows::{Answer, COLUMNS, Cell, ROWS, Row};
use crate::runtimes::Runtimes;

/// Set it to have the table in the document replaced by what the test found.
const WRITE: &str = "TV_WRITE_TABLE";
/// How many clients run at once.
const AT_ONCE: usize = 6;

/// A row whose runtime is there, as it is run in one column.
struct Subject {
    row: &'static Row,
    command: Vec<String>,
    column: &'static str,
    /// The user's own token, which no provider may see.
    token: String,
    /// The provider's token for that user.
    provider: String,
    account: String,
}

impl Subject {
    fn new(world: &World, row: &'static Row, command: &[String], column: &'static str) -> Self {
        let account = format!("{} / {column}", row.name);
        let token = world.user(&account);
        let digest: String = account.bytes().map(|byte| format!("{byte:02x}")).collect();
        let provider = format!("gho_{digest}");
        world.connect_github(&token, &provider, &account);
        world.connect_google(&token, &provider, &account);
        Self {
            row,
            command: command.to_vec(),
            column,
            token,
            provider,
            account,
        }
    }

    fn at(&self) -> String {
        format!("{}, {}", self.row.name, self.column)
    }

    fn words(&self) -> Vec<String> {
        let host = match self.row.answer {
            Answer::Account | Answer::Version => GITHUB_API,
            Answer::Commit => GITHUB,
            Answer::Echo => GOOGLE_GRPC,
        };
        [&self.command[..], &[host.to_owned(), self.token.clone()]].concat()
    }

    /// Whether the client got its answer, and the provider its token; otherwise nothing must have got anywhere.
    fn served(&self, world: &World, line: &str) -> bool {
        let origin = if self.row.answer == Answer::Echo {
            &world.google
        } else {
            &world.github
        };
        let came = came(origin, &self.provider);
        let Some(body) = line.strip_prefix("200 ") else {
            let lower = line.to_ascii_lowercase();
            // Who tries again by itself meets the refusal that follows the proof.
            let refused = lower.contains("connection reset") || lower.contains("econnreset");
            let told = refused || DISTRUST.iter().any(|word| lower.contains(word));
            assert!(
                line.starts_with("error ") && told,
                "{}: not for want of trust: {line}",
                self.at()
            );
            assert_eq!(came, 0, "{}: refused, and yet came: {line}", self.at());
            return false;
        };
        let right = match self.row.answer {
            Answer::Account => &self.account,
            Answer::Commit => world.repository_head.as_ref().expect("git is there"),
            Answer::Version => "1.0",
            Answer::Echo => "echo",
        };
        assert!(body.contains(right), "{}: a wrong answer: {line}", self.at());
        assert!(came > 0, "{}: answered by somebody else: {line}", self.at());
        true
    }
}

/// A process that ran before the installation.
#[derive(Clone, Copy)]
struct Afterwards {
    served: bool,
    /// The agent said that it needs a restart.
    foretold: bool,
}

/// What clients say of a certificate that they do not trust.
const DISTRUST: [&str; 6] = [
    "certificate",
    "pkix",
    "issuer",
    "certification path",
    "self-signed",
    "self signed",
];

/// How many requests with that token came; none may have come with a user's own.
fn came(origin: &Origin, token: &str) -> usize {
    let requests = origin.requests();
    requests
        .iter()
        .filter(|request| request.token().as_deref() == Some(token))
        .count()
}

struct Matrix<'w> {
    world: &'w World,
    runtimes: &'w Runtimes,
    rows: Vec<(&'static Row, Vec<String>)>,
}

impl Matrix<'_> {
    fn subjects(&self, column: &'static str) -> Vec<Subject> {
        let make =
            |(row, command): &(&'static Row, Vec<String>)| Subject::new(self.world, row, command, column);
        self.rows.iter().map(make).collect()
    }

    /// Runs each to its end, a few at once; whether it was served.
    fn each(&self, column: &'static str, command: impl Fn(&[String]) -> Command) -> Vec<bool> {
        let subjects = self.subjects(column);
        let mut served = Vec::new();
        for some in subjects.chunks(AT_ONCE) {
            let mut clients: Vec<Client> = some.iter().map(|subject| self.start(subject, &command)).collect();
            clients.iter_mut().for_each(Client::ask);
            for (subject, mut client) in some.iter().zip(clients) {
                let line = client.answer();
                served.push(subject.served(self.world, &line));
                let finished = client.end();
                // An unmodified client's streams are its own.
                assert!(!finished.stderr.contains("Picked up"), "{}", finished.stderr);
            }
        }
        served
    }

    fn start(&self, subject: &Subject, command: &impl Fn(&[String]) -> Command) -> Client {
        let home = Path::new("/run/tv-trust").join(subject.account.replace(['/', ' ', '`', ','], "-"));
        std::fs::create_dir_all(&home).unwrap();
        let mut command = command(&subject.words());
        command.env_remove("PYTHONPATH").env("PATH", self.runtimes.path());
        command.env("HOME", &home).env("TMPDIR", &home).current_dir("/");
        command.envs(self.runtimes.python().map(|python| ("PYTHON", python)));
        Client::start(&mut command)
    }

    /// Processes that have failed before there was an agent, and are asked again when their namespace has got its CA.
    fn running(&self, column: &'static str, container: &Container, arrive: impl FnOnce()) -> Vec<Afterwards> {
        let subjects = self.subjects(column);
        let start = |subject| self.start(subject, &|words: &[String]| container.command(words));
        let mut clients: Vec<Client> = subjects.iter().map(start).collect();
        clients.iter_mut().for_each(Client::ask);
        for (subject, client) in subjects.iter().zip(&mut clients) {
            let line = client.answer();
            assert!(
                !subject.served(self.world, &line),
                "{}: trusted before: {line}",
                subject.at()
            );
        }
        arrive();
        let processes: Vec<_> = clients.iter().map(Client::pid).collect();
        let foretold = container.installed(self.world, &processes);
        let mut afterwards = Vec::new();
        for (subject, mut client) in subjects.iter().zip(clients) {
            client.ask();
            let line = client.answer();
            afterwards.push(Afterwards {
                served: subject.served(self.world, &line),
                foretold: foretold.get(&client.pid()) == Some(&true),
            });
            client.end();
        }
        afterwards
    }
}

#[test]
fn the_table_of_runtimes_is_what_happens() {
    let runtimes = Runtimes::find();
    let mut missing = Vec::new();
    let mut rows = Vec::new();
    for row in ROWS {
        match runtimes.command(row) {
            Ok(command) => rows.push((row, command)),
            Err(reason) => missing.push(format!("{}: {reason}", row.name)),
        }
    }
    let missing = missing.join("\n");
    let ci = std::env::var("CI").as_deref() == Ok("true");
    assert!(!ci || missing.is_empty(), "these must run in CI:\n{missing}");
    missing.lines().for_each(|line| eprintln!("skipped: {line}"));
    World::run(move |world| {
        // Makes the CA, too.
        let mut config = world.config();
        config["admin"]["socket"] = world.dir().join("trust.sock").display().to_string().into();
        let mut daemon = world.daemon("trust", config).unwrap();
        daemon.stop();
        world.tv_agent(&["cleanup"]).unwrap().expect_success();
        let matrix = Matrix {
            world,
            runtimes: &runtimes,
            rows,
        };
        let found = matrix.found(&mut daemon);
        for origin in [&world.github, &world.google] {
            for request in origin.requests() {
                let token = request.token().unwrap_or_default();
                assert!(token.is_empty() || token.starts_with("gho_"), "{request:?}");
            }
        }
        compare(&table(&found));
        for (row, cells) in &found {
            assert_eq!(*cells, row.expected, "{}", row.name);
        }
    });
}

impl Matrix<'_> {
    fn found(&self, daemon: &mut Daemon<'_>) -> Vec<(&'static Row, [Cell; COLUMNS.len()])> {
        let [new, environment, running, read_only, exec] = COLUMNS;
        let container = Container::start(daemon.cgroup(), false);
        let went_on = self.running(running, &container, || daemon.restart().unwrap());
        let fresh = self.each(new, |words| container.command(words));
        let variables = variables(self.world);
        let helped = self.each(environment, |words| {
            let mut command = container.command(words);
            command.envs(variables.iter().map(|(name, value)| (name, value)));
            command
        });
        drop(container);
        let container = Container::start(daemon.cgroup(), true);
        container.installed(self.world, &[]);
        if let Some(python) = self.runtimes.python() {
            container.lead_to_packages(self.world, python);
        }
        let unwritable = self.each(read_only, |words| container.command(words));
        drop(container);
        let config = self.world.config();
        let under = self.each(exec, |words| {
            let mut command = self.world.exec_command(&config).unwrap();
            command.args(words);
            command
        });
        let served = |served: bool, helped: bool| match (served, helped) {
            (true, _) => Cell::Works,
            (false, true) => Cell::Environment,
            (false, false) => Cell::Cannot,
        };
        let cells = |n: usize| {
            [
                served(fresh[n], helped[n]),
                served(helped[n], false),
                restarted(self.rows[n].0.name, went_on[n], fresh[n], helped[n]),
                served(unwritable[n], helped[n]),
                served(under[n], false),
            ]
        };
        self.rows
            .iter()
            .enumerate()
            .map(|(n, (row, _))| (*row, cells(n)))
            .collect()
    }
}

/// Of a process that ran before, and new ones without and with the variables.
fn restarted(name: &str, before: Afterwards, fresh: bool, helped: bool) -> Cell {
    match before {
        Afterwards {
            served: true,
            foretold,
        } => {
            assert!(!foretold, "{name}: a restart was foretold in vain");
            Cell::Works
        }
        Afterwards { foretold: false, .. } if fresh => Cell::RestartFound,
        _ if fresh => Cell::Restart,
        Afterwards { foretold: true, .. } if helped => Cell::RestartWithEnvironment,
        _ => Cell::Cannot,
    }
}

/// What `tv-agent trust env` says.
fn variables(world: &World) -> Vec<(String, String)> {
    let told = world.tv_agent(&["trust", "env", "-o", "json"]).unwrap();
    let told: Vec<Value> = serde_json::from_str(told.expect_success()).unwrap();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    told.iter()
        .map(|variable| (text(&variable["name"]), text(&variable["value"])))
        .collect()
}

fn table(found: &[(&Row, [Cell; COLUMNS.len()])]) -> String {
    let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&[&["runtime"], &COLUMNS[..]].concat());
    text += &line(&["---"; COLUMNS.len() + 1]);
    for (row, cells) in found {
        let words: Vec<&str> = cells.iter().map(|cell| cell.word()).collect();
        text += &line(&[&[row.name], &words[..]].concat());
    }
    text
}

/// That the document shows `table` between its marks, save for what this machine lacks.
fn compare(table: &str) {
    const MARKS: [&str; 2] = ["<!-- made by tests/trust/matrix.rs -->\n", "<!-- end -->\n"];
    std::io::stdout().write_all(table.as_bytes()).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/trust.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).expect("the first mark");
    let (shown, after) = rest.split_once(MARKS[1]).expect("the second mark");
    if std::env::var_os(WRITE).is_some() {
        let whole = [before, MARKS[0], table, MARKS[1], after].concat();
        std::fs::write(&path, whole).unwrap();
        return;
    }
    let name = |line: &str| line.split(" |").next().unwrap_or_default().to_owned();
    let here: Vec<String> = table.lines().map(name).collect();
    let shown: String = shown
        .split_inclusive('\n')
        .filter(|line| here.contains(&name(line)))
        .collect();
    assert_eq!(
        shown, table,
        "docs/trust.md shows something else; run this test with {WRITE}=1"
    );
}
