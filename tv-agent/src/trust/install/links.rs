//! Hash links: the names under which OpenSSL looks certificates up in a directory.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Work, anchor_file};
use crate::trust::journal::{Change, What};
use crate::trust::layout::{self, DIRECTORIES, Distribution};
use crate::trust::place::State;
use crate::trust::{Error, copies};

impl Work<'_> {
    /// Hash links, and the certificates that they lead to, in directories that have such.
    pub(super) fn links(&mut self, distribution: Option<&Distribution>) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        for path in DIRECTORIES {
            let Some(found) = self
                .root
                .find(Path::new(path))?
                .filter(|found| found.metadata.is_dir())
            else {
                continue;
            };
            if !seen.insert(found.path.clone()) {
                continue;
            }
            let links = distribution.and_then(|distribution| Some((distribution, distribution.links?)));
            let links = links.filter(|(_, (directory, _))| found.path == Path::new(directory));
            let entries = match found.entries() {
                Ok(entries) => entries,
                Err(error) => {
                    self.done.unreached.push(copies::unreached(&error));
                    continue;
                }
            };
            let hashed = entries
                .iter()
                .any(|entry| entry.name.to_str().is_some_and(layout::is_hashed));
            if links.is_none() && !hashed {
                continue;
            }
            for anchor in self.anchors.iter() {
                let prefix = links.map_or("", |(_, (_, prefix))| prefix);
                let name = format!("{prefix}{}.pem", anchor.name());
                match links {
                    Some((distribution, _)) => {
                        let target = anchor_file(distribution, &anchor.name());
                        self.make_link(&found.path.join(&name), &target)?;
                    }
                    None => self.make(&found.path.join(&name), anchor.pem().as_bytes())?,
                }
                let hash = anchor.subject_hash();
                // The tool may have made it, or we before.
                let made = entries
                    .iter()
                    .find(|entry| entry.link.as_deref() == Some(Path::new(&name)));
                let free = match made {
                    Some(entry) => found.path.join(&entry.name),
                    None => (0..)
                        .map(|n| found.path.join(format!("{hash}.{n}")))
                        .find(|path| !self.root.exists(path) && !self.root.is_link(path))
                        .expect("the directory is finite"),
                };
                self.make_link(&free, Path::new(&name))?;
            }
        }
        Ok(())
    }

    fn make_link(&mut self, path: &Path, target: &Path) -> Result<(), Error> {
        let place = self
            .root
            .place(path)?
            .ok_or_else(|| Error::NoPlace { path: path.into() })?;
        let before = place.state()?;
        let after = State::Link {
            target: target.to_owned(),
        };
        if self.journal.has(&place.path) {
            return Ok(());
        }
        // Also when the tool made it: it goes with us.
        let there = before == after;
        let change = Change {
            path: place.path.clone(),
            what: What::Link,
            before: if there { State::Absent } else { before.clone() },
            after: Some(after),
            kept: None,
        };
        (self.step)();
        self.journal.add(change, &[])?;
        if !there {
            (self.step)();
            place.clear()?;
            place.link(target, &before)?;
        }
        self.done.changed.push(place.path);
        Ok(())
    }
}
