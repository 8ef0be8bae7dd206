//! A configuration as the warden loads it: checked, and what the data path may have for it.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::Error;
use crate::config::{self, Config};
use crate::warden::{self, Named};
use crate::{files, limits};

pub(super) struct Loaded {
    pub(super) config: Config,
    pub(super) named: Named,
    /// The very text, for the data path to read it again.
    pub(super) text: OwnedFd,
}

impl Loaded {
    pub(super) fn from(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file).map_err(|source| config::Error::Read {
            file: file.to_owned(),
            source,
        })?;
        if text.len() as u64 > limits::CONFIG_BYTES {
            return Err(Error::Config(config::Error::Syntax {
                file: file.to_owned(),
                line: None,
                message: format!("is larger than {} bytes", limits::CONFIG_BYTES),
            }));
        }
        let env = |name: &str| std::env::var(name).ok();
        let (config, read) = files::recorded(|| Config::parse(&text, file, &env));
        let config = config?;
        Ok(Self {
            named: Named::of(&config, read),
            text: warden::text_file(&text).map_err(Error::Descriptor)?,
            config,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_large_is_not_taken_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        let most = usize::try_from(limits::CONFIG_BYTES).unwrap();
        let write = |length: usize| std::fs::write(&file, "#".repeat(length)).unwrap();
        write(most + 1);
        let error = Loaded::from(&file).err().unwrap().to_string();
        assert!(error.contains("is larger than"), "{error}");
        write(most);
        let error = Loaded::from(&file).err().map(|error| error.to_string());
        assert!(!error.is_some_and(|error| error.contains("is larger than")));
    }
}
