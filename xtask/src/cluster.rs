//! `cargo xtask cluster`: etcd, and a kube-apiserver built from Debian's source package, for the layer `cluster`.
//!
//! Both stay in target/tools/cluster; nothing is installed but what the build needs. Debian's later releases have no
//! source of the server any more, so the suite is a fixed one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::apt::{Apt, Index};
use crate::{Failed, Outcome, failed, process, recipe, setup, target};

const ARCHIVE: &str = "debian";
const SUITE: &str = "bookworm";
/// What the server is told that it is: Debian's package says `1.20.5+really1.20.2`.
const VERSION: &str = "1.20.2";
/// etcd itself, and what replaces the server's own copy, which knows no Go later than 1.16 and panics.
const PARTS: [&str; 2] = ["etcd-server", "golang-github-modern-go-reflect2-dev"];
const REFLECT2: &str = "github.com/modern-go/reflect2";
/// Debian's Go that builds it.
const GO: &str = "/usr/lib/go-1.19/bin/go";
/// What the API is described by, and no package brings: made of the sources that say so.
const DESCRIBED: &str = "+k8s:openapi-gen=";
const DESCRIPTION: &str = "pkg/generated/openapi";
const PROGRAMS: [&str; 2] = ["etcd", "kube-apiserver"];

pub fn run(arguments: &[String]) -> Outcome {
    if let Some(unknown) = arguments.first() {
        return Err(Failed(format!("unknown argument {unknown:?}; there are none")));
    }
    if !is_there() {
        make()?;
    }
    for program in PROGRAMS {
        let file = directory().join(program);
        let version = process::output(Command::new(&file).arg("--version")).unwrap_or_default();
        let version = version.lines().next().unwrap_or("does not run");
        eprintln!("{}: {version}", file.display());
    }
    Ok(())
}

/// Both are there, and start.
pub fn is_there() -> bool {
    PROGRAMS.iter().all(|program| {
        process::output(Command::new(directory().join(program)).arg("--version"))
            .is_some_and(|version| *program == "etcd" || version == format!("Kubernetes v{VERSION}"))
    })
}

fn directory() -> PathBuf {
    recipe::tools(&target()).join("cluster")
}

fn make() -> Outcome {
    let began = Instant::now();
    tools()?;
    eprintln!(
        "missing: etcd and kube-apiserver {VERSION}; building takes minutes, and 2 GB until it is done"
    );
    // Beside its place, and renamed when complete.
    let staging = directory().with_extension("new");
    remove(&staging)?;
    let made = build(&staging);
    if made.is_ok() {
        remove(&directory())?;
        fs::rename(staging.join("bin"), directory()).map_err(failed(directory()))?;
    }
    eprintln!("removing {} (sources and Go's caches)", staging.display());
    remove(&staging)?;
    made?;
    eprintln!("made in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Installs what the build needs, or names it.
fn tools() -> Outcome {
    let needed = [
        ("dpkg-deb", "dpkg"),
        ("dpkg-source", "dpkg-dev"),
        ("patch", "patch"),
        ("nice", "coreutils"),
    ];
    let mut missing: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| process::on_path(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if !Path::new(GO).exists() && process::on_path("go").is_none() {
        missing.push("golang-1.19-go");
    }
    if missing.is_empty() {
        return Ok(());
    }
    setup::packages(&missing, "")
}

/// Leaves both programs in `staging`/bin.
fn build(staging: &Path) -> Outcome {
    let (parts, bin) = (staging.join("parts"), staging.join("bin"));
    fs::create_dir_all(&bin).map_err(failed(&bin))?;
    eprintln!(
        "fetching, of Debian's {SUITE}: {}, the source of kubernetes",
        PARTS.join(", ")
    );
    let apt = Apt::new(
        &staging.join("apt"),
        ARCHIVE,
        SUITE,
        &[Index::Packages, Index::Sources],
    )?;
    apt.download(&PARTS.map(str::to_owned))?;
    for package in files(&apt.directory, "deb")? {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(package).arg(&parts);
        process::run(setup::announce(&mut unpack))?;
    }
    fs::copy(parts.join("usr/bin/etcd"), bin.join("etcd")).map_err(failed(&parts))?;
    apt.download_source("kubernetes")?;
    let go = Go::new(staging)?;
    for description in files(&apt.directory, "dsc")? {
        // apt has compared the files with the archive's signed index.
        let mut unpack = Command::new("dpkg-source");
        unpack.args(["--no-check", "-x"]).arg(description);
        process::run(setup::announce(unpack.arg(&go.source)))?;
    }
    replace_reflect2(&parts, &go.source)?;
    let generator = staging.join("openapi-gen");
    go.build(&generator, "./vendor/k8s.io/kube-openapi/cmd/openapi-gen", "")?;
    go.describe(&generator)?;
    let own = "k8s.io/kubernetes/vendor/k8s.io";
    let mut flags = "-s -w".to_owned();
    for package in ["client-go/pkg/version", "component-base/version"] {
        flags += &format!(" -X {own}/{package}.gitVersion=v{VERSION}");
    }
    let mut numbers = VERSION.split('.');
    for name in ["gitMajor", "gitMinor"] {
        let number = numbers.next().unwrap_or_default();
        flags += &format!(" -X {own}/component-base/version.{name}={number}");
    }
    go.build(&bin.join("kube-apiserver"), "./cmd/kube-apiserver", &flags)
}

fn replace_reflect2(parts: &Path, source: &Path) -> Outcome {
    let old = source.join("vendor").join(REFLECT2);
    let new = parts.join("usr/share/gocode/src").join(REFLECT2);
    eprintln!("replacing the sources of vendor/{REFLECT2} by those of Debian");
    for extension in ["go", "s"] {
        for file in files(&old, extension)? {
            fs::remove_file(&file).map_err(failed(&file))?;
        }
        for file in files(&new, extension)? {
            let to = old.join(file.file_name().unwrap_or_default());
            fs::copy(&file, to).map_err(failed(&file))?;
        }
    }
    Ok(())
}

/// Go, with caches below the staging directory, in the layout that this source is made for.
struct Go {
    program: PathBuf,
    staging: PathBuf,
    source: PathBuf,
}

impl Go {
    fn new(staging: &Path) -> Result<Self, Failed> {
        let place = staging.join("go/src/k8s.io");
        fs::create_dir_all(&place).map_err(failed(&place))?;
        Ok(Self {
            program: [PathBuf::from(GO)]
                .into_iter()
                .find(|go| go.exists())
                .unwrap_or_else(|| "go".into()),
            staging: staging.to_owned(),
            source: place.join("kubernetes"),
        })
    }

    fn build(&self, to: &Path, package: &str, linker: &str) -> Outcome {
        let mut go = self.command("nice");
        // Two packages at once: it takes the machine's memory otherwise.
        go.arg("-n10")
            .arg(&self.program)
            .args(["build", "-p", "2", "-trimpath"]);
        go.args(["-ldflags", linker, "-o"]).arg(to).arg(package);
        process::run(setup::announce(&mut go))
    }

    fn describe(&self, generator: &Path) -> Outcome {
        let mut packages = BTreeSet::new();
        for tree in ["staging/src/k8s.io", "pkg", "cmd"] {
            described(&self.source.join(tree), &mut packages)?;
        }
        let inputs: Vec<String> = packages
            .iter()
            .filter_map(|directory| import(&self.source, directory))
            .collect();
        eprintln!("describing the API of {} packages: {DESCRIPTION}", inputs.len());
        let mut make = self.command(generator);
        make.args(["-i", &inputs.join(",")]);
        make.args(["-p", &format!("k8s.io/kubernetes/{DESCRIPTION}")]);
        make.args(["-O", "zz_generated.openapi", "-r", "/dev/null", "-h"]);
        make.arg("hack/boilerplate/boilerplate.generatego.txt");
        make.arg("--output-base").arg(self.staging.join("go/src"));
        process::run(&mut make)
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.source);
        for (name, place) in [("GOPATH", "go"), ("GOCACHE", "go-cache"), ("GOTMPDIR", "go-tmp")] {
            let place = self.staging.join(place);
            // A missing one is told by Go.
            let _ = fs::create_dir_all(&place);
            command.env(name, place);
        }
        let rest = [
            ("GO111MODULE", "off"),
            ("GOTOOLCHAIN", "local"),
            ("GOFLAGS", ""),
            ("CGO_ENABLED", "0"),
        ];
        command
            .envs(rest)
            // It runs `go` to find packages.
            .env("PATH", search_path(&self.program));
        command
    }
}

/// PATH, with the directory of `program` before it.
fn search_path(program: &Path) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = program.parent().filter(|directory| directory.is_absolute());
    let all = own
        .map(Path::to_owned)
        .into_iter()
        .chain(std::env::split_paths(&path));
    std::env::join_paths(all).unwrap_or_default()
}

/// The directories below `tree` with a file that asks for a description, save examples.
fn described(tree: &Path, found: &mut BTreeSet<PathBuf>) -> Outcome {
    for entry in fs::read_dir(tree).map_err(failed(tree))? {
        let entry = entry.map_err(failed(tree))?;
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if !["code-generator", "sample-apiserver", "_examples"]
                .iter()
                .any(|other| name == *other)
            {
                described(&path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "go")
            && fs::read_to_string(&path).is_ok_and(|text| asks_for_description(&text))
        {
            found.insert(tree.to_owned());
        }
    }
    Ok(())
}

fn asks_for_description(text: &str) -> bool {
    text.lines()
        .any(|line| line.starts_with("//") && line.contains(DESCRIBED))
}

/// How Go calls a directory of the source: what lies in `staging` is vendored by a symbolic link.
fn import(source: &Path, directory: &Path) -> Option<String> {
    let path = directory.strip_prefix(source).ok()?.to_str()?;
    let path = path
        .strip_prefix("staging/src/")
        .map_or_else(|| path.to_owned(), |path| format!("vendor/{path}"));
    Some(format!("k8s.io/kubernetes/{path}"))
}

/// The files of a directory that end so.
fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, Failed> {
    let entries = fs::read_dir(directory).map_err(failed(directory))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let found: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    if found.is_empty() {
        return Err(Failed(format!("no .{extension} in {}", directory.display())));
    }
    Ok(found)
}

fn remove(directory: &Path) -> Outcome {
    if directory.exists() {
        fs::remove_dir_all(directory).map_err(failed(directory))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_called_as_go_finds_them() {
        let import = |path: &str| import(Path::new("/src"), &Path::new("/src").join(path));
        assert_eq!(
            import("staging/src/k8s.io/api/core/v1").as_deref(),
            Some("k8s.io/kubernetes/vendor/k8s.io/api/core/v1")
        );
        assert_eq!(
            import("pkg/apis/abac/v1").as_deref(),
            Some("k8s.io/kubernetes/pkg/apis/abac/v1")
        );
    }

    #[test]
    fn only_a_comment_asks_for_a_description() {
        assert!(asks_for_description("package a\n// +k8s:openapi-gen=true\n"));
        assert!(asks_for_description(
            "// +k8s:deepcopy-gen=package\n// +k8s:openapi-gen=false\n"
        ));
        assert!(!asks_for_description("var tag = \"+k8s:openapi-gen=\"\n"));
    }
}
