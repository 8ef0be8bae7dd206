//! `tv-agent ca rotate`: asks the daemon whether workloads would break, and makes the next step.

use std::path::{Path, PathBuf};

use http::{Method, StatusCode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Error, config_of, directory, source};
use crate::ca::{self, Advanced, Witness};
use crate::cli::CaRotateArgs;
use crate::commands::print;
use crate::config::{Config, DEFAULT_SOCKET};
use crate::control::{Error as Socket, ask};

/// Others may make steps at the same time, one each.
const TRIES: usize = 5;

pub(super) async fn rotate(args: &CaRotateArgs) -> Result<(), Error> {
    let config = config_of(&args.ca)?;
    let dir = directory(&args.ca, config.as_ref());
    let socket = socket(args, config);
    let next_root = source(&args.import)?;
    let mut tries = 1;
    let advanced = loop {
        let rotation = ca::rotation(&dir)?;
        if let Some(rotation) = rotation.as_ref().filter(|_| !args.force) {
            let witnesses = witnesses(&socket).await?;
            let objections = ca::objections(Some(rotation), witnesses.as_deref());
            if !objections.is_empty() {
                return Err(Error::Refused {
                    from: rotation.step,
                    to: ca::Step::after(Some(rotation.step)),
                    objections,
                });
            }
        }
        match ca::advance(&dir, rotation.as_ref(), next_root.as_ref()) {
            Err(ca::Error::WentOn { .. }) if tries < TRIES => tries += 1,
            advanced => break advanced?,
        }
    };
    print(args.ca.output.output, &advanced, || told(&advanced));
    Ok(())
}

fn socket(args: &CaRotateArgs, config: Option<Config>) -> PathBuf {
    let configured = config.map(|config| config.socket);
    let socket = args.socket.clone().or(configured);
    socket.unwrap_or_else(|| DEFAULT_SOCKET.into())
}

/// What the daemon knows of each process; None where no daemon answers, or one that does not know.
async fn witnesses(socket: &Path) -> Result<Option<Vec<Witness>>, Error> {
    let mut all = Vec::new();
    let each = |row: Witness| {
        all.push(row);
        true
    };
    match ask(socket, Method::GET, "/trust", each).await {
        Ok(()) => Ok(Some(all)),
        Err(
            Socket::Nobody { .. }
            | Socket::Refused {
                status: StatusCode::NOT_FOUND,
                ..
            },
        ) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn told(advanced: &Advanced) -> String {
    let rotation = &advanced.rotation;
    format!(
        "rotation: {}\n  old root sha256 {}\n  new root sha256 {}\nnext: {}\n",
        rotation.step, rotation.old, rotation.new, advanced.advice
    )
}

/// Seconds since 1970 as RFC 3339.
pub(super) fn time(seconds: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok();
    at.and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| seconds.to_string())
}
