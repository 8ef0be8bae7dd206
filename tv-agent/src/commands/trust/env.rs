//! `tv-agent trust env`: the environment of a process that is to trust the CA.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{NoAnchors, anchors};
use crate::cli::{Output, TrustEnvArgs, exit};
use crate::commands::{chain, print, print_line};
use crate::config;
use crate::trust::env::{self, Effect, Paths, java};
use crate::trust::{self, Extra, Root};

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Trust(#[from] trust::Error),
    #[error(transparent)]
    Anchors(#[from] NoAnchors),
    #[error("there is no bundle of certificates below {}; name one with --bundle, or make one with --into", root.display())]
    NoBundle { root: PathBuf },
    #[error(
        "{} has not got the CA; put it there first (tv-agent trust install), or make a copy that has it: --into DIR",
        path.display()
    )]
    Lacking { path: PathBuf },
    #[error("{name} is no text: {}", value.display())]
    NoText { name: String, value: OsString },
}

/// A variable as it is shown.
#[derive(Serialize)]
struct Shown {
    name: String,
    value: String,
    /// What the runtime does with it.
    effect: Effect,
}

pub(super) fn run(args: &TrustEnvArgs) -> u8 {
    let environment = |name: &str| std::env::var_os(name);
    let made = match &args.into {
        Some(dir) => copied(dir, args, &environment),
        None => named(args, &environment),
    };
    match made.and_then(|variables| variables.into_iter().map(shown).collect::<Result<Vec<_>, _>>()) {
        Ok(variables) => {
            tell(args, &variables);
            exit::OK
        }
        Err(error) => {
            tracing::error!("trust env: {}", chain(&error));
            exit::FAILED
        }
    }
}

type Variables = Vec<(OsString, OsString)>;
type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Variables that name what is there.
fn named(args: &TrustEnvArgs, environment: Environment<'_>) -> Result<Variables, Error> {
    let root = Root::open(&args.root)?;
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => trust::system_bundle(&root)?.ok_or_else(|| Error::NoBundle {
            root: args.root.clone(),
        })?,
    };
    let anchors = args.ca_dir.as_deref().map(anchors).transpose()?;
    if let Some(anchors) = &anchors
        && !trust::holds(&root, &bundle, anchors)?
    {
        return Err(Error::Lacking { path: bundle });
    }
    let paths = Paths {
        anchors: args.ca_file.clone().unwrap_or_else(|| bundle.clone()),
        bundle,
        // Its own have got the CA where the bundle has.
        keystore: None,
    };
    let (settings, kept) = env::settings(environment, &paths);
    for name in kept {
        tracing::warn!(
            "trust env: {name} is set and stays; what it names must hold the CA too (--into DIR copies it)"
        );
    }
    Ok(settings
        .into_iter()
        .map(|setting| (setting.name.into(), setting.value))
        .collect())
}

/// Variables that name copies.
fn copied(dir: &Path, args: &TrustEnvArgs, environment: Environment<'_>) -> Result<Variables, Error> {
    let anchors = anchors(&args.ca_dir.clone().unwrap_or_else(config::default_ca_dir))?;
    let root = Root::open(&args.root)?;
    let trust = trust::prepare(dir, &anchors, environment, &root, &Extra::default())?;
    let mut variables = trust.env.clone();
    let own = environment(java::OPTIONS).unwrap_or_default();
    if let Some(keystore) = trust.keystore()
        && let Some(options) = java::with_trust_store(&own.to_string_lossy(), &keystore)
    {
        variables.push((java::OPTIONS.into(), options.into()));
    }
    Ok(variables)
}

fn shown((name, value): (OsString, OsString)) -> Result<Shown, Error> {
    let name = name.to_string_lossy().into_owned();
    match value.into_string() {
        Ok(value) => Ok(Shown {
            effect: env::effect(&name),
            name,
            value,
        }),
        Err(value) => Err(Error::NoText { name, value }),
    }
}

fn tell(args: &TrustEnvArgs, variables: &[Shown]) {
    if args.output.output == Output::Json {
        return print(Output::Json, &variables, String::new);
    }
    for Shown { name, value, .. } in variables {
        if args.export {
            print_line(&format!("export {name}={}", quoted(value)));
        } else {
            print_line(&format!("{name}={value}"));
        }
    }
}

/// One word for every POSIX shell.
fn quoted(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:=".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_one_word() {
        assert_eq!(quoted("/etc/ssl/certs/ca.crt"), "/etc/ssl/certs/ca.crt");
        for odd in ["", "a b", "it's", "$(id)", "`id`\n\"\\", "é*?"] {
            let script = format!("printf %s {}", quoted(odd));
            let said = std::process::Command::new("sh")
                .args(["-c", &script])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), odd, "{script}");
        }
    }
}
