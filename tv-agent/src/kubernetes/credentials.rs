//! What proves the agent to the API server and the API server to the agent. The only reader of files here.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::settings::{Material, Server};
use crate::files;
use crate::limits;
use crate::secret::Secret;

/// As read; what they are worth, [`super::Gate::put`] says.
#[derive(Clone)]
pub struct Credentials {
    pub token: Option<Arc<Secret>>,
    /// PEM.
    pub ca: Option<Arc<Secret>>,
    pub identity: Option<(Arc<Secret>, Arc<Secret>)>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}; check that the service account's token is mounted, or the paths under kubernetes", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{} is empty or larger than {} bytes", file.display(), limits::API_CREDENTIAL_BYTES)]
    Size { file: PathBuf },
}

/// Reads all that `server` names.
///
/// # Errors
/// When a file cannot be read, is empty or too large.
pub fn read(server: &Server) -> Result<Credentials, Error> {
    let one = |material: &Option<Material>| material.as_ref().map(material_of).transpose();
    Ok(Credentials {
        token: one(&server.token)?,
        ca: one(&server.ca)?,
        identity: match &server.identity {
            Some((chain, key)) => Some((material_of(chain)?, material_of(key)?)),
            None => None,
        },
    })
}

fn material_of(material: &Material) -> Result<Arc<Secret>, Error> {
    match material {
        Material::Inline(text) => Ok(text.clone()),
        Material::File(file) => Ok(Arc::new(Secret::new(text_of(file)?))),
    }
}

fn text_of(file: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let limit = limits::API_CREDENTIAL_BYTES;
    files::open(file)
        .and_then(|opened| opened.take(limit + 1).read_to_string(&mut text))
        .map_err(|source| Error::Read {
            file: file.to_owned(),
            source,
        })?;
    text.truncate(text.trim_end().len());
    if text.is_empty() || text.len() as u64 > limit {
        return Err(Error::Size {
            file: file.to_owned(),
        });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_trimmed_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "abc\n").unwrap();
        assert_eq!(text_of(&file).unwrap(), "abc");
        std::fs::write(&file, "\n").unwrap();
        assert!(matches!(text_of(&file), Err(Error::Size { .. })));
        let long = usize::try_from(limits::API_CREDENTIAL_BYTES).unwrap() + 1;
        std::fs::write(&file, "x".repeat(long)).unwrap();
        assert!(matches!(text_of(&file), Err(Error::Size { .. })));
        assert!(matches!(
            text_of(&dir.path().join("none")),
            Err(Error::Read { .. })
        ));
    }
}
