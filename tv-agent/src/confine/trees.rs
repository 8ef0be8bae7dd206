//! The trees of the file system that stay readable (Landlock, Linux 5.13). Nothing is writable.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, LandlockStatus, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What name resolution and the system's roots are read from, wherever distributions keep them. /etc as a whole, since
/// its files are replaced by renaming, and a rule for a file ends with that file. Its secrets are kept by their modes.
const TREES: [&str; 14] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/pki",
    "/var/lib/ca-certificates",
    // Modules of the name service, and what they are linked to.
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    // A static binary does not find getrandom(2) by its name, and reads these instead (the crate getrandom).
    "/dev/random",
    "/dev/urandom",
];
/// They replace the system's roots (rustls-native-certs).
const ROOTS: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// What any process that resolves names and verifies certificates has to read.
pub fn default_trees() -> Vec<PathBuf> {
    let named = ROOTS.iter().filter_map(std::env::var_os);
    trees(named, std::fs::canonicalize(RESOLV_CONF).ok().as_deref())
}

fn trees(roots: impl Iterator<Item = OsString>, resolv_conf: Option<&Path>) -> Vec<PathBuf> {
    let mut trees: Vec<PathBuf> = TREES.iter().map(PathBuf::from).collect();
    for value in roots {
        trees.extend(std::env::split_paths(&value).filter(|path| path.is_absolute()));
    }
    if let Some(file) = resolv_conf {
        // Its directory, for the same reason as /etc, unless that is as much as /run.
        let directory = file.parent().filter(|dir| dir.components().count() > 2);
        trees.push(directory.unwrap_or(file).to_owned());
    }
    trees
}

/// Whether Landlock is in force now. Trees that do not exist are left out.
pub(super) fn restrict(read: &[PathBuf], missing: &mut Vec<&'static str>) -> Result<bool, RulesetError> {
    let status = landlock::Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V10))?
        .scope(Scope::from_all(ABI::V10))?
        .create()?
        .add_rules(path_beneath_rules(read, AccessFs::ReadFile | AccessFs::ReadDir))?
        .restrict_self()?;
    missing.extend(lacking(&status.landlock));
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// What older kernels cannot forbid. Truncating, and ioctl(2) on devices, are left to the filter of system calls there.
fn lacking(status: &LandlockStatus) -> Option<&'static str> {
    match status {
        LandlockStatus::NotEnabled => Some("Landlock (the kernel's parameter lsm= does not name it)"),
        LandlockStatus::NotImplemented => Some("Landlock (CONFIG_SECURITY_LANDLOCK)"),
        LandlockStatus::Available { effective_abi, .. } if *effective_abi < ABI::V6 => {
            Some("Landlock's scopes for signals and abstract sockets (Linux 6.12)")
        }
        LandlockStatus::Available { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolvers_file_is_followed_and_roots_that_are_named_are_added() {
        let roots = ["/opt/roots.pem", "relative:/srv/roots"].map(OsString::from);
        let with = |file: &str| trees(roots.iter().cloned(), Some(Path::new(file)));
        let added = |file: &str| with(file)[TREES.len()..].to_vec();
        assert_eq!(
            added("/run/connman/resolv.conf"),
            ["/opt/roots.pem", "/srv/roots", "/run/connman"].map(PathBuf::from)
        );
        assert_eq!(added("/run/resolv.conf")[2], Path::new("/run/resolv.conf"));
        assert_eq!(trees(std::iter::empty(), None).len(), TREES.len());
    }

    #[test]
    fn what_an_older_kernel_lacks_is_said() {
        let with = |effective_abi| LandlockStatus::Available {
            effective_abi,
            kernel_abi: None,
        };
        assert!(lacking(&LandlockStatus::NotImplemented).is_some());
        assert!(lacking(&LandlockStatus::NotEnabled).is_some());
        assert!(lacking(&with(ABI::V1)).unwrap().contains("6.12"));
        assert_eq!(lacking(&with(ABI::V6)), None);
    }
}
