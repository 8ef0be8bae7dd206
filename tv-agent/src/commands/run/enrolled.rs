//! The enrolled cgroups of a configuration, and the agent's own.

use std::path::{Path, PathBuf};

use super::Error;
use super::pods::is_pods_tree;
use crate::commands::own_cgroup;
use crate::config::{Config, Intercept};
use crate::redirect;

/// Id of the agent's own cgroup, when that lies below an enrolled one: the sockets that libraries open carry no
/// flag, and must get past the kernel half.
pub(super) fn agent_cgroup(mount: &Path, enrolled: &[PathBuf]) -> Result<Option<u64>, Error> {
    let own = own_cgroup(mount).map_err(Error::Cgroup)?;
    if enrolled.contains(&own) {
        return Err(Error::OwnCgroup {
            path: own.display().to_string(),
        });
    }
    if enrolled.iter().any(|directory| own.starts_with(directory)) {
        return redirect::cgroup_id(&own).map(Some).map_err(Error::Cgroup);
    }
    Ok(None)
}

/// The enrolled directories.
pub(super) struct Enrolled {
    /// Covered whole.
    pub fixed: Vec<PathBuf>,
    /// Those below which pods are covered one by one.
    pub trees: Vec<PathBuf>,
}

/// `pods`: whether it is known which pods are enrolled.
pub(super) fn directories(
    file: &Path,
    intercept: &Intercept,
    mount: &Path,
    pods: bool,
) -> Result<Enrolled, Error> {
    if intercept.cgroups.is_empty() {
        return Err(Error::NoCgroups {
            file: file.to_owned(),
        });
    }
    let directory = |path: &String| {
        let directory = mount.join(path.trim_start_matches('/'));
        if directory.is_dir() {
            Ok(directory)
        } else {
            Err(Error::NoSuchCgroup {
                file: file.to_owned(),
                path: path.clone(),
                mount: mount.to_owned(),
            })
        }
    };
    let (mut fixed, mut trees) = (Vec::new(), Vec::new());
    for path in &intercept.cgroups {
        let kind = if pods && is_pods_tree(path) {
            &mut trees
        } else {
            &mut fixed
        };
        kind.push(directory(path)?);
    }
    Ok(Enrolled { fixed, trees })
}

/// Exposed for `check`: whether every enrolled cgroup is there.
pub fn missing_cgroups(config: &Config, mount: &Path) -> Vec<String> {
    let gone = |path: &&String| !mount.join(path.trim_start_matches('/')).is_dir();
    config.intercept.cgroups.iter().filter(gone).cloned().collect()
}
