//! Which stores a running process reads besides the system's: told by its environment, arguments, mapped libraries
//! and open files. Guesses at paths; those that do not exist are passed over later.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::trust::env::{self, java};
use crate::trust::layout::{JAVA_STORES, PYTHON_BUNDLES};

/// Paths inside the process's root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// PEM files.
    pub(super) bundles: BTreeSet<PathBuf>,
    /// JKS and PKCS12 files.
    pub(super) keystores: BTreeSet<PathBuf>,
}

/// What /proc says of one process.
#[derive(Clone, Debug, Default)]
pub(super) struct Traits {
    /// Its program; paths of files are seen from the root of its mount namespace.
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(OsString, OsString)>,
    /// Mapped and open files.
    pub(super) files: BTreeSet<PathBuf>,
    pub(super) directory: PathBuf,
    /// Its root, seen from there.
    pub(super) root: PathBuf,
}

/// Variables that name a PEM file, besides those that [`env`] sets.
const MORE_FILES: [&str; 2] = ["BUNDLE_SSL_CA_CERT", "CERTIFI_CACERT"];
/// A variable with options for a Java runtime that start scripts read, besides those that it reads itself.
const JAVA_OPTS: &str = "JAVA_OPTS";

impl Wanted {
    /// Takes in what `other` wants, up to [`limits::TRUST_EXTRA`]; whether that was anything new.
    pub(super) fn add(&mut self, other: Self) -> bool {
        let before = self.len();
        for path in other.bundles {
            if self.len() < limits::TRUST_EXTRA {
                self.bundles.insert(path);
            }
        }
        for path in other.keystores {
            if self.len() < limits::TRUST_EXTRA {
                self.keystores.insert(path);
            }
        }
        self.len() > before
    }

    pub(super) fn covers(&self, other: &Self) -> bool {
        self.bundles.is_superset(&other.bundles) && self.keystores.is_superset(&other.keystores)
    }

    fn len(&self) -> usize {
        self.bundles.len() + self.keystores.len()
    }
}

/// What a process with these traits reads. Pure.
pub(super) fn wanted(traits: &Traits) -> Wanted {
    let mut wanted = Wanted::default();
    let variable = |name: &str| {
        let found = traits.environment.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value).filter(|value| !value.is_empty())
    };
    for value in env::files().chain(MORE_FILES).filter_map(variable) {
        wanted.bundles.extend(traits.named(value));
    }
    let options = java::ALL_OPTIONS
        .into_iter()
        .chain([JAVA_OPTS])
        .filter_map(variable);
    let options = options.flat_map(|options| java::words_of(&options.to_string_lossy()));
    let options: Vec<OsString> = options.map(OsString::from).collect();
    for store in options
        .iter()
        .chain(&traits.arguments)
        .filter_map(|word| java::named(word))
    {
        wanted.keystores.extend(traits.named(store.as_os_str()));
    }
    let mut homes: BTreeSet<PathBuf> = BTreeSet::new();
    let is_java = traits.program.file_name().is_some_and(|name| name == "java");
    if let Some(home) = variable("JAVA_HOME").filter(|_| is_java) {
        homes.extend(traits.named(home));
    }
    for file in &traits.files {
        let Some(file) = traits.inside(file) else { continue };
        if file.file_name().is_some_and(|name| name == "libjvm.so") {
            // HOME/lib/server/libjvm.so; of JDK 8 HOME/lib/amd64/server/libjvm.so.
            homes.extend(file.ancestors().skip(3).take(2).map(Path::to_owned));
        }
        if let Some(packages) = packages_of(&file) {
            wanted
                .bundles
                .extend(PYTHON_BUNDLES.map(|name| packages.join(name)));
        }
        if file.file_name().is_some_and(|name| name == "cacert.pem") {
            wanted.bundles.insert(file);
        }
    }
    for home in homes {
        wanted.keystores.extend(JAVA_STORES.map(|name| home.join(name)));
    }
    for packages in python_packages(traits, variable("VIRTUAL_ENV")) {
        wanted
            .bundles
            .extend(PYTHON_BUNDLES.map(|name| packages.join(name)));
    }
    wanted
}

/// `…/site-packages` or `…/dist-packages`, which a file lies below.
fn packages_of(file: &Path) -> Option<&Path> {
    file.ancestors().find(|directory| {
        let name = directory.file_name();
        name.is_some_and(|name| name == "site-packages" || name == "dist-packages")
    })
}

/// Where the packages of a Python process lie: beside the command that was typed (a virtual environment's is a link
/// to another place), where VIRTUAL_ENV says, and beside the program.
fn python_packages(traits: &Traits, environment: Option<&OsString>) -> Vec<PathBuf> {
    let version = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let digits = name.strip_prefix("libpython").or(name.strip_prefix("python"))?;
        let digits = digits.trim_end_matches(|c: char| !c.is_ascii_digit() && c != '.');
        let mut parts = digits.split('.');
        let (major, minor) = (parts.next()?, parts.next()?);
        let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (number(major) && number(minor)).then(|| format!("python{major}.{minor}"))
    };
    let from_files = || traits.files.iter().find_map(|file| version(file));
    let Some(version) = version(&traits.program).or_else(from_files) else {
        return Vec::new();
    };
    let typed = traits.arguments.first().and_then(|command| {
        traits
            .named(command)
            .filter(|_| command.as_bytes().contains(&b'/'))
    });
    let prefix = |program: &Path| program.parent().and_then(Path::parent).map(Path::to_owned);
    let prefixes = [
        environment.and_then(|value| traits.named(value)),
        typed.as_deref().and_then(prefix),
        traits.inside(&traits.program).as_deref().and_then(prefix),
    ];
    prefixes
        .into_iter()
        .flatten()
        .map(|prefix| prefix.join("lib").join(&version).join("site-packages"))
        .collect()
}

impl Traits {
    /// What is given here as text, from the process's directory if need be; None when it leaves the root.
    fn named(&self, text: &OsStr) -> Option<PathBuf> {
        let path = Path::new(text);
        let path = if path.is_absolute() {
            path.to_owned()
        } else {
            self.inside(&self.directory)?.join(path)
        };
        let mut plain = PathBuf::from("/");
        for component in path.components() {
            match component {
                Component::Normal(name) => plain.push(name),
                // Symlinks aside, as good a guess as any; the path is opened inside the root in any case.
                Component::ParentDir => drop(plain.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Some(plain)
    }

    /// A path that the kernel gave, as the process sees it.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        Some(Path::new("/").join(path.strip_prefix(&self.root).ok()?))
    }

    /// # Errors
    /// When the process is gone, or may not be looked at.
    pub(super) fn of(process: i32) -> io::Result<Self> {
        let proc = PathBuf::from(format!("/proc/{process}"));
        let link = |name: &str| fs::read_link(proc.join(name));
        let mut files: BTreeSet<PathBuf> = mapped(&read(&proc.join("maps"))?).collect();
        for entry in fs::read_dir(proc.join("fd"))?.take(limits::TRUST_DESCRIPTORS) {
            let target = entry.and_then(|entry| fs::read_link(entry.path()));
            files.extend(target.ok().filter(|path| path.is_absolute()));
        }
        Ok(Self {
            program: link("exe")?,
            arguments: words(&read(&proc.join("cmdline"))?).collect(),
            environment: words(&read(&proc.join("environ"))?)
                .filter_map(|word| variable(&word))
                .collect(),
            files,
            directory: link("cwd")?,
            root: link("root")?,
        })
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(limits::TRUST_PROC_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The files of /proc/PID/maps: the sixth field, which may hold spaces.
fn mapped(maps: &[u8]) -> impl Iterator<Item = PathBuf> {
    maps.split(|byte| *byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b'/')?;
        let path = line.get(at..)?;
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        Some(OsString::from_vec(path.to_owned()).into())
    })
}

/// Each ends with a zero byte.
fn words(text: &[u8]) -> impl Iterator<Item = OsString> {
    text.split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| OsString::from_vec(word.to_owned()))
}

fn variable(word: &OsStr) -> Option<(OsString, OsString)> {
    let bytes = word.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    let part = |bytes: &[u8]| OsString::from_vec(bytes.to_owned());
    Some((part(&bytes[..at]), part(&bytes[at + 1..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(paths: &[&str]) -> BTreeSet<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    fn traits(program: &str, arguments: &[&str], environment: &[(&str, &str)], files: &[&str]) -> Traits {
        Traits {
            program: program.into(),
            arguments: arguments.iter().map(OsString::from).collect(),
            environment: environment.iter().map(|(k, v)| (k.into(), v.into())).collect(),
            files: paths(files),
            directory: "/srv/app".into(),
            root: "/".into(),
        }
    }

    #[test]
    fn variables_name_bundles() {
        let environment = [
            ("SSL_CERT_FILE", "/etc/corp.pem"),
            ("REQUESTS_CA_BUNDLE", "own/../ca.pem"),
            ("PIP_CERT", ""),
            ("HOME", "/root"),
        ];
        let wanted = wanted(&traits("/usr/bin/curl", &["curl"], &environment, &[]));
        assert_eq!(wanted.bundles, paths(&["/etc/corp.pem", "/srv/app/ca.pem"]));
        assert_eq!(wanted.keystores, paths(&[]));
    }

    #[test]
    fn a_java_process_has_a_home_and_may_have_stores_of_its_own() {
        let arguments = ["java", "-Djavax.net.ssl.trustStore=/app/trust.p12", "-jar", "x"];
        let environment = [
            ("JAVA_TOOL_OPTIONS", "-Xmx1g -Djavax.net.ssl.trustStore=tool.jks"),
            ("JAVA_HOME", "/opt/jdk"),
        ];
        let files = ["/opt/jdk-17/lib/server/libjvm.so"];
        let wanted = wanted(&traits("/opt/jdk-17/bin/java", &arguments, &environment, &files));
        for path in [
            "/app/trust.p12",
            "/srv/app/tool.jks",
            "/opt/jdk/lib/security/cacerts",
            "/opt/jdk-17/lib/security/cacerts",
        ] {
            assert!(wanted.keystores.contains(Path::new(path)), "{path}: {wanted:?}");
        }
        assert_eq!(wanted.bundles, paths(&[]));
    }

    #[test]
    fn a_python_process_has_packages_in_several_places() {
        let files = [
            "/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0",
            "/srv/libs/site-packages/yaml/_yaml.so",
            "/somewhere/cacert.pem",
        ];
        let environment = [("VIRTUAL_ENV", "/venv/a")];
        let arguments = ["/venv/b/bin/python", "app.py"];
        let wanted = wanted(&traits("/usr/bin/python3.11", &arguments, &environment, &files));
        for path in [
            "/somewhere/cacert.pem",
            "/srv/libs/site-packages/certifi/cacert.pem",
            "/venv/a/lib/python3.11/site-packages/certifi/cacert.pem",
            "/venv/b/lib/python3.11/site-packages/pip/_vendor/certifi/cacert.pem",
            "/usr/lib/python3.11/site-packages/certifi/cacert.pem",
        ] {
            assert!(wanted.bundles.contains(Path::new(path)), "{path}: {wanted:?}");
        }
        assert_eq!(
            python_packages(&traits("/usr/bin/pythonic", &[], &[], &[]), None),
            [""; 0].map(PathBuf::from)
        );
    }

    #[test]
    fn paths_of_a_process_with_another_root_are_those_that_it_sees() {
        let mut traits = traits(
            "/jail/usr/bin/x",
            &["x"],
            &[],
            &["/jail/a/cacert.pem", "/out/cacert.pem"],
        );
        traits.root = "/jail".into();
        traits.directory = "/jail/home".into();
        traits.environment = vec![("SSL_CERT_FILE".into(), "../../../ca.pem".into())];
        assert_eq!(wanted(&traits).bundles, paths(&["/a/cacert.pem", "/ca.pem"]));
    }

    #[test]
    fn a_process_with_many_stores_has_only_some_of_them_looked_after() {
        let many = |from: usize, count: usize| Wanted {
            bundles: (from..from + count).map(|n| format!("/{n}.pem").into()).collect(),
            ..Wanted::default()
        };
        let mut all = Wanted::default();
        assert!(all.add(many(0, 3)));
        assert!(!all.add(many(0, 3)), "nothing new");
        assert!(all.add(many(3, 2 * limits::TRUST_EXTRA)));
        assert_eq!(all.len(), limits::TRUST_EXTRA);
        assert!(!all.add(many(1000, 1)));
    }

    #[test]
    fn the_files_of_proc_are_understood() {
        let maps = b"7f00-7f01 r-xp 00000000 08:01 42    /usr/lib/my lib.so\n7f01-7f02 rw-p 00000000 00:00 0 [heap]\n\
            7f02-7f03 r--p 00000000 08:01 43    /old/lib.so (deleted)\n";
        assert_eq!(
            mapped(maps).collect::<BTreeSet<_>>(),
            paths(&["/old/lib.so", "/usr/lib/my lib.so"])
        );
        let own = Traits::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.files.contains(&own.program), "{own:?}");
        assert!(!own.arguments.is_empty() && own.directory.is_absolute());
        assert!(Traits::of(i32::MAX).is_err());
    }
}
