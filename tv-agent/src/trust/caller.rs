//! Stores that only a command's own words and variables lead to: virtual environments, a JAVA_HOME, a trust store that
//! Java's options name.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::env::java;
use super::layout::{JAVA_STORES, PYTHON_BUNDLES};
use super::root::Root;
use super::search::Search;
use super::{Error, Extra};

/// Directories in which Python has its `lib`.
const PYTHON_HOMES: [&str; 4] = ["VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME", "PYTHONUSERBASE"];
const JAVA_HOMES: [&str; 2] = ["JAVA_HOME", "JRE_HOME"];
const PYTHONS: [&str; 2] = ["python3", "python"];

/// What `command` would use with this environment, besides what lies in the usual places of `root`.
///
/// # Errors
/// When there is too much to look through.
pub fn extra(
    environment: &dyn Fn(&str) -> Option<OsString>,
    command: &[OsString],
    root: &Root,
) -> Result<Extra, Error> {
    let mut search = Search::new(root);
    let homes = Homes::of(environment, command, root);
    let python: Vec<String> = homes.python.iter().flat_map(|home| packages(home)).collect();
    let python: Vec<&str> = python.iter().map(String::as_str).collect();
    let java: Vec<&str> = homes.java.iter().filter_map(|home| home.to_str()).collect();
    let mut certifi = search.below(&python, &PYTHON_BUNDLES)?;
    for directory in lists(environment, "PYTHONPATH") {
        certifi.extend(PYTHON_BUNDLES.map(|bundle| directory.join(bundle)));
    }
    let mut keystores = search.below(&java, &JAVA_STORES)?;
    keystores.extend(trust_stores(environment, command));
    for paths in [&mut certifi, &mut keystores] {
        paths.retain(|path| path.is_absolute() && root.exists(path));
    }
    Ok(Extra { certifi, keystores })
}

/// Where the runtimes of a command live.
#[derive(Default)]
struct Homes {
    python: Vec<PathBuf>,
    java: Vec<PathBuf>,
}

impl Homes {
    fn of(environment: &dyn Fn(&str) -> Option<OsString>, command: &[OsString], root: &Root) -> Self {
        let named = |names: &[&str]| -> Vec<PathBuf> {
            let values = names.iter().filter_map(|name| environment(name));
            values
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
                .collect()
        };
        let mut homes = Self {
            python: named(&PYTHON_HOMES),
            java: named(&JAVA_HOMES),
        };
        homes
            .python
            .extend(named(&["HOME"]).iter().map(|home| home.join(".local")));
        let program = command
            .first()
            .map(Path::new)
            .filter(|program| program.is_absolute());
        let own = program.and_then(Path::parent).map(Path::to_owned);
        for bin in own.into_iter().chain(lists(environment, "PATH")) {
            homes.of_programs(&bin, root);
        }
        homes.java.extend(program.and_then(|program| home(program, root)));
        for homes in [&mut homes.python, &mut homes.java] {
            homes.sort();
            homes.dedup();
        }
        homes
    }

    /// `bin` may be that of a virtual environment, whose scripts do not say so by their name; its interpreter is a link
    /// to the one that it was made by.
    fn of_programs(&mut self, bin: &Path, root: &Root) {
        if bin.ends_with("shims") {
            // pyenv's: any of its versions.
            self.python
                .extend(bin.parent().map(|pyenv| pyenv.join("versions/*")));
        }
        let above = bin.parent().unwrap_or(bin);
        if root.exists(&above.join("pyvenv.cfg")) {
            self.python.push(above.to_owned());
        }
        for python in PYTHONS {
            self.python.extend(home(&bin.join(python), root));
        }
        self.java.extend(home(&bin.join("java"), root));
    }
}

/// The directory above the `bin` in which a program really lies.
fn home(program: &Path, root: &Root) -> Option<PathBuf> {
    let found = root.find(program).ok().flatten()?;
    found.path.parent()?.parent().map(Path::to_owned)
}

fn packages(home: &Path) -> Vec<String> {
    let home = home.to_str().map(|home| home.trim_end_matches('/'));
    let home = home.into_iter();
    home.flat_map(|home| ["lib", "lib64"].map(|lib| format!("{home}/{lib}/python3*/site-packages")))
        .collect()
}

fn lists(environment: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Vec<PathBuf> {
    let list = environment(name).unwrap_or_default();
    std::env::split_paths(&list)
        .filter(|path| path.is_absolute())
        .collect()
}

fn trust_stores(environment: &dyn Fn(&str) -> Option<OsString>, command: &[OsString]) -> Vec<PathBuf> {
    let text = |value: &OsStr| value.to_string_lossy().into_owned();
    let variables = java::ALL_OPTIONS.iter().filter_map(|name| environment(name));
    let variables = variables.filter_map(|options| java::trust_store(&text(&options)));
    let words = command.iter().filter_map(|word| java::named(word));
    variables.chain(words).collect()
}

#[cfg(test)]
mod tests;
