//! Finds what runtimes and libraries bring along: `cacert.pem` files of Python packages, Java's key stores.

use std::path::{Path, PathBuf};

use super::Error;
use super::layout::{self, JAVA_HOMES, JAVA_STORES, PYTHON_BUNDLES, PYTHON_PACKAGES};
use super::root::Root;
use crate::limits;

/// Looks into the usual places of one root, at no more than [`limits::TRUST_SEARCH`] names in all.
pub(super) struct Search<'a> {
    root: &'a Root,
    left: usize,
}

impl<'a> Search<'a> {
    pub(super) fn new(root: &'a Root) -> Self {
        Self {
            root,
            left: limits::TRUST_SEARCH,
        }
    }

    /// # Errors
    /// [`Error::TooMuchToSearch`].
    pub(super) fn certifi(&mut self) -> Result<Vec<PathBuf>, Error> {
        self.below(&PYTHON_PACKAGES, &PYTHON_BUNDLES)
    }

    /// # Errors
    /// [`Error::TooMuchToSearch`].
    pub(super) fn keystores(&mut self) -> Result<Vec<PathBuf>, Error> {
        self.below(&JAVA_HOMES, &JAVA_STORES)
    }

    /// What of `names` there is in the directories that fit `patterns`.
    ///
    /// # Errors
    /// [`Error::TooMuchToSearch`].
    pub(super) fn below(&mut self, patterns: &[&str], names: &[&str]) -> Result<Vec<PathBuf>, Error> {
        let mut found = Vec::new();
        for pattern in patterns {
            for directory in self.expanded(pattern)? {
                for name in names {
                    let path = directory.join(name);
                    self.spend(1, &path)?;
                    if self.root.exists(&path) {
                        found.push(path);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The directories that fit `pattern`.
    fn expanded(&mut self, pattern: &str) -> Result<Vec<PathBuf>, Error> {
        let mut paths = vec![PathBuf::from("/")];
        for part in pattern.split('/').filter(|part| !part.is_empty()) {
            if !part.contains('*') {
                paths.iter_mut().for_each(|path| path.push(part));
                continue;
            }
            let mut wider = Vec::new();
            for path in paths {
                // What cannot be listed holds nothing that could be found.
                let Ok(Some(found)) = self.root.find(&path) else {
                    continue;
                };
                let entries = found.entries().unwrap_or_default();
                self.spend(entries.len(), &path)?;
                wider.extend(
                    entries
                        .iter()
                        .filter_map(|entry| entry.name.to_str())
                        .filter(|name| layout::fits(part, name))
                        .map(|name| path.join(name)),
                );
            }
            paths = wider;
        }
        paths.retain(|path| self.root.exists(path));
        Ok(paths)
    }

    fn spend(&mut self, names: usize, path: &Path) -> Result<(), Error> {
        self.left = self
            .left
            .checked_sub(names)
            .ok_or_else(|| Error::TooMuchToSearch {
                path: path.to_owned(),
            })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_bring_is_found_until_too_many_names_were_seen() {
        let temp = tempfile::tempdir().unwrap();
        let certifi = "opt/venv/lib/python3.12/site-packages/certifi/cacert.pem";
        let cacerts = "usr/lib/jvm/jdk-21/lib/security/cacerts";
        for file in [certifi, cacerts] {
            let path = temp.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let root = Root::open(temp.path()).unwrap();
        let mut search = Search::new(&root);
        assert_eq!(search.certifi().unwrap(), [Path::new("/").join(certifi)]);
        assert_eq!(search.keystores().unwrap(), [Path::new("/").join(cacerts)]);
        // As if all but two were spent elsewhere.
        assert!(search.left < limits::TRUST_SEARCH);
        search.left = 2;
        let error = search.certifi().unwrap_err();
        assert!(matches!(error, Error::TooMuchToSearch { .. }), "{error}");
    }
}
