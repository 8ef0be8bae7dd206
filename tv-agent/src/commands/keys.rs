//! `tv-agent keys list` and `keys rotate`: by the daemon, or on files where none runs.

use std::path::Path;

use http::{Method, StatusCode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{chain, control, load, print};
use crate::cli::{KeysArgs, KeysCommand, exit};
use crate::clock;
use crate::config;
use crate::control::{Error as Socket, Rotated, ask};
use crate::sign::{KeySet, SetError, Shown};

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Socket(#[from] Socket),
    #[error(
        "no agent answers at {socket}; start the daemon, or name the configuration by --config to work on its files"
    )]
    NoDaemon { socket: String },
    #[error(transparent)]
    Set(#[from] SetError),
    #[error("there is no key set {name:?}; there are: {known}")]
    Unknown { name: String, known: String },
    #[error("{0}")]
    Refused(String),
}

pub async fn run(command: &KeysCommand) -> u8 {
    let done = match command {
        KeysCommand::List(args) => list(args).await,
        KeysCommand::Rotate(args) => rotate(&args.name, &args.keys).await,
    };
    match done {
        Ok(()) => exit::OK,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            if matches!(error, Error::Config(_)) {
                exit::USAGE
            } else {
                exit::FAILED
            }
        }
    }
}

async fn list(args: &KeysArgs) -> Result<(), Error> {
    let mut rows: Vec<Shown> = Vec::new();
    let asked = ask(&args.control.socket, Method::GET, "/keys", |row| {
        rows.push(row);
        true
    });
    let asked = asked.await;
    match (asked, &args.config) {
        (Err(Socket::Nobody { .. }), Some(file)) => {
            for set in sets(file)? {
                set.look()?;
                rows.extend(set.list());
            }
        }
        (asked, _) => asked.map_err(|error| without_daemon(error, args))?,
    }
    print(args.control.output.output, &rows, || drawn(&rows));
    Ok(())
}

async fn rotate(name: &str, args: &KeysArgs) -> Result<(), Error> {
    let unknown = |known: Vec<String>| Error::Unknown {
        name: name.to_owned(),
        known: known.join(", "),
    };
    // A name that is none would be another address.
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if name.is_empty() || !plain {
        return Err(unknown(Vec::new()));
    }
    let target = format!("/keys/rotate/{name}");
    let asked = control::one(&args.control.socket, Method::POST, &target).await;
    let rows = match (asked, &args.config) {
        (Ok(Rotated::Keys(rows)), _) => rows,
        (Ok(Rotated::Failed(problem)), _) => return Err(Error::Refused(problem)),
        (
            Err(Socket::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            }),
            _,
        ) => {
            let mut known: Vec<String> = Vec::new();
            let each = |row: Shown| {
                known.push(row.set);
                true
            };
            ask(&args.control.socket, Method::GET, "/keys", each).await?;
            known.dedup();
            return Err(unknown(known));
        }
        (Err(Socket::Nobody { .. }), Some(file)) => {
            let sets = sets(file)?;
            let Some(set) = sets.iter().find(|set| *set.settings().name == *name) else {
                return Err(unknown(
                    sets.iter().map(|set| set.settings().name.to_string()).collect(),
                ));
            };
            let now = clock::unix_now();
            set.rotate(now.as_secs())?;
            set.list()
        }
        (Err(error), _) => return Err(without_daemon(error, args)),
    };
    print(args.control.output.output, &rows, || drawn(&rows));
    Ok(())
}

fn sets(file: &Path) -> Result<Vec<KeySet>, Error> {
    let config = load(Some(file))?;
    let dir = config.keysets_dir;
    Ok(config
        .keysets
        .into_iter()
        .map(|set| KeySet::unread(set, &dir))
        .collect())
}

fn without_daemon(error: Socket, args: &KeysArgs) -> Error {
    match error {
        Socket::Nobody { .. } => Error::NoDaemon {
            socket: args.control.socket.display().to_string(),
        },
        other => Error::Socket(other),
    }
}

fn drawn(rows: &[Shown]) -> String {
    if rows.is_empty() {
        return "there are no keys".to_owned();
    }
    let row = |row: &Shown| {
        let made = i64::try_from(row.created).ok().filter(|made| *made != 0);
        let made = made.and_then(|made| OffsetDateTime::from_unix_timestamp(made).ok());
        let made = made.and_then(|made| made.format(&Rfc3339).ok());
        let made = made.map(|made| format!(", made {made}")).unwrap_or_default();
        format!(
            "{} ({}) {} {} {}{made}\n",
            row.set, row.source, row.algorithm, row.kid, row.state
        )
    };
    rows.iter().map(row).collect()
}
