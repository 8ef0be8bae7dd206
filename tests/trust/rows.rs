//! The rows of the table: clients, and what must become of each.

/// How a runtime fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// On first try.
    Works,
    /// Fails, and works with the variables of `tv-agent trust env`.
    Environment,
    /// A running process goes on failing, as the agent foretells; a new one works.
    Restart,
    /// The same, but seen only by its failing handshake.
    RestartFound,
    /// A running process goes on failing, as the agent foretells; a new one works with the variables.
    RestartWithEnvironment,
    Cannot,
}
use Cell::{Environment, Restart, RestartFound, RestartWithEnvironment, Works};

impl Cell {
    pub fn word(self) -> &'static str {
        match self {
            Works => "works",
            Environment => "needs the environment",
            Restart => "needs restart",
            RestartFound => "needs restart (found)",
            RestartWithEnvironment => "needs restart and the environment",
            Self::Cannot => "cannot",
        }
    }
}

/// The columns, as [`Row::expected`] has them.
pub const COLUMNS: [&str; 5] = [
    "new process",
    "new process with `trust env`",
    "running before",
    "read-only root",
    "`exec`",
];

/// What the right answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// GitHub's account.
    Account,
    /// The tip of the repository.
    Commit,
    /// The one version in pip's index.
    Version,
    /// What was sent by gRPC.
    Echo,
}

pub struct Row {
    pub name: &'static str,
    /// Command line; words in braces are what [`crate::runtimes::Runtimes`] found. The host and the token follow.
    pub command: &'static [&'static str],
    pub answer: Answer,
    pub expected: [Cell; COLUMNS.len()],
}

/// Reads the system's store, with each request.
const EACH_TIME: [Cell; 5] = [Works; 5];
/// Reads the system's store once.
const ONCE: [Cell; 5] = [Works, Works, Restart, Works, Works];
/// The same, in a language that does not always do so.
const KEPT: [Cell; 5] = [Works, Works, RestartFound, Works, Works];
/// Its roots are compiled in.
const OWN_ROOTS: [Cell; 5] = [Environment, Works, RestartWithEnvironment, Environment, Works];

const fn row(name: &'static str, command: &'static [&'static str], expected: [Cell; 5]) -> Row {
    Row {
        name,
        command,
        answer: Answer::Account,
        expected,
    }
}

const fn answering(answer: Answer, row: Row) -> Row {
    Row { answer, ..row }
}

/// A program that is started for each request.
const SHELL: &str = "sh";
const COMMANDS: &str = "{clients}/commands.sh";
const PYTHON_CLIENT: &str = "{clients}/client.py";
const NODE_CLIENT: &str = "{js}/client.mjs";

pub const ROWS: &[Row] = &[
    row("curl", &[SHELL, COMMANDS, "curl"], EACH_TIME),
    row("wget (GnuTLS)", &[SHELL, COMMANDS, "wget"], EACH_TIME),
    answering(Answer::Commit, row("git", &[SHELL, COMMANDS, "git"], EACH_TIME)),
    row("gh", &[SHELL, COMMANDS, "gh"], EACH_TIME),
    row("openssl s_client", &[SHELL, COMMANDS, "openssl"], EACH_TIME),
    row("gnutls-cli", &[SHELL, COMMANDS, "gnutls-cli"], EACH_TIME),
    answering(Answer::Version, row("pip", &[SHELL, COMMANDS, "pip"], EACH_TIME)),
    row("Python urllib", &["{python}", PYTHON_CLIENT, "urllib"], EACH_TIME),
    row(
        "Python urllib, one SSLContext kept",
        &["{python}", PYTHON_CLIENT, "urllib, context kept"],
        EACH_TIME,
    ),
    row(
        "Python requests, one Session kept",
        &["{python}", PYTHON_CLIENT, "requests"],
        EACH_TIME,
    ),
    row("Python httpx", &["{python}", PYTHON_CLIENT, "httpx"], EACH_TIME),
    row(
        "Python httpx, one Client kept",
        &["{python}", PYTHON_CLIENT, "httpx, client kept"],
        KEPT,
    ),
    row(
        "Python aiohttp",
        &["{python}", PYTHON_CLIENT, "aiohttp"],
        EACH_TIME,
    ),
    answering(
        Answer::Echo,
        row(
            "Python grpcio (gRPC C-core)",
            &["{python}", PYTHON_CLIENT, "grpcio"],
            KEPT,
        ),
    ),
    row("Node https", &["node", NODE_CLIENT, "https"], OWN_ROOTS),
    row("Node fetch", &["node", NODE_CLIENT, "fetch"], OWN_ROOTS),
    row(
        "Node https, --use-openssl-ca",
        &["node", "--use-openssl-ca", NODE_CLIENT, "https"],
        EACH_TIME,
    ),
    answering(
        Answer::Echo,
        row("gRPC for Node", &["node", NODE_CLIENT, "grpc"], OWN_ROOTS),
    ),
    row(
        "Deno fetch",
        &["{deno}", "run", "--quiet", "--allow-all", NODE_CLIENT, "fetch"],
        OWN_ROOTS,
    ),
    row("Bun fetch", &["{bun}", NODE_CLIENT, "fetch"], EACH_TIME),
    row(
        "Java HttpClient",
        &["java", "{jvm}", "-cp", "{built}", "Client", "new"],
        ONCE,
    ),
    row(
        "Java HttpsURLConnection",
        &["java", "{jvm}", "-cp", "{built}", "Client", "old"],
        ONCE,
    ),
    row("Ruby Net::HTTP", &["ruby", "{clients}/client.rb"], EACH_TIME),
    row(
        "PHP streams",
        &["php", "{clients}/client.php", "streams"],
        EACH_TIME,
    ),
    row("PHP curl", &["php", "{clients}/client.php", "curl"], EACH_TIME),
    row("Go net/http", &["{built}/client-go"], ONCE),
    row("Rust reqwest, one Client kept", &["{rust}", "kept"], KEPT),
    row("Rust reqwest, new Client", &["{rust}", "new"], EACH_TIME),
];
