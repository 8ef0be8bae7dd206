//! The runtimes of this machine: what the system brings, and what is installed or compiled below cargo's target
//! directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tv_tests::{js, process, tools};

use crate::rows::Row;

/// Debian's first: other directories of the machine's PATH may have shims that want an environment.
const PATH: &str = "/usr/bin:/bin:/usr/sbin:/sbin";
/// For compilers on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Programs on PATH, and the Debian packages that bring them.
const PROGRAMS: [(&str, &str); 9] = [
    ("curl", "curl"),
    ("wget", "wget"),
    ("git", "git"),
    ("gh", "gh"),
    ("openssl", "openssl"),
    ("gnutls-cli", "gnutls-bin"),
    ("ruby", "ruby"),
    ("php", "php-cli php-curl"),
    ("node", "nodejs"),
];

/// What the words in braces of a row's command stand for, or why there is nothing to stand for it.
pub struct Runtimes {
    words: BTreeMap<&'static str, Result<String, String>>,
    path: String,
}

impl Runtimes {
    /// Installs and compiles what can be.
    pub fn find() -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("trust/clients");
        let path = std::env::var("PATH").map_or_else(|_| PATH.to_owned(), |path| format!("{PATH}:{path}"));
        let js = js::install_from("trust/js", "js-trust");
        let file = |file: &str| {
            let directory = js.clone()?;
            let file = directory.join("node_modules").join(file);
            if file.is_file() {
                Ok(text(&file))
            } else {
                Err(format!("npm has no {} for this machine", file.display()))
            }
        };
        let platform = if cfg!(target_arch = "aarch64") {
            ("arm64", "aarch64")
        } else {
            ("x64", "x64")
        };
        let mut words = BTreeMap::from([
            ("clients", Ok(text(&source))),
            ("rust", Ok(env!("CARGO_BIN_EXE_trust-client").to_owned())),
            (
                "python",
                tools::install_python_environment().map(|environment| text(&environment.join("bin/python"))),
            ),
            ("deno", file(&format!("@deno/linux-{}-glibc/deno", platform.0))),
            ("bun", file(&format!("@oven/bun-linux-{}/bin/bun", platform.1))),
            ("js", js.map(|directory| text(&directory))),
            // Each starts faster so, and several at once have room.
            ("jvm", Ok("-XX:+UseSerialGC".to_owned())),
        ]);
        for (program, packages) in PROGRAMS {
            words.insert(program, found(&path, program, packages));
        }
        words.insert(
            "java",
            compiled(&path, &source, "javac", "Client.java", "default-jdk-headless"),
        );
        words.insert("go", compiled(&path, &source, "go", "client.go", "golang-go"));
        words.insert("built", built().map(|directory| text(&directory)));
        Self { words, path }
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// The interpreter of the virtual environment, if there is one.
    pub fn python(&self) -> Option<&str> {
        self.words["python"].as_deref().ok()
    }

    /// The command line of a row.
    ///
    /// # Errors
    /// What this machine lacks for it, and what installs it.
    pub fn command(&self, row: &Row) -> Result<Vec<String>, String> {
        // The word after the script is the program that it runs.
        if let ["sh", _, program] = row.command {
            let word = if *program == "pip" { "python" } else { program };
            self.words[word].clone()?;
        }
        if row.command[0] == "{built}/client-go" {
            self.words["go"].clone()?;
        }
        if let Some(Err(missing)) = self.words.get(row.command[0]) {
            return Err(missing.clone());
        }
        row.command.iter().map(|word| self.filled(word)).collect()
    }

    fn filled(&self, word: &str) -> Result<String, String> {
        let Some((name, rest)) = word.strip_prefix('{').and_then(|word| word.split_once('}')) else {
            return Ok(word.to_owned());
        };
        Ok(format!("{}{rest}", self.words[name].clone()?))
    }
}

fn found(path: &str, program: &str, packages: &str) -> Result<String, String> {
    let files = std::env::split_paths(path).map(|directory| directory.join(program));
    let file = { files }.find(|file| file.is_file());
    file.map(|file| text(&file))
        .ok_or_else(|| lacks(program, packages))
}

fn lacks(program: &str, packages: &str) -> String {
    format!("{program} is not installed: apt-get install -y {packages}   (or: cargo xtask setup)")
}

/// Compiles a client, unless its source was compiled before.
fn compiled(path: &str, source: &Path, compiler: &str, name: &str, packages: &str) -> Result<String, String> {
    found(path, compiler, packages)?;
    let directory = built()?;
    let source = source.join(name);
    let kept = directory.join(name);
    if std::fs::read(&kept).ok() == std::fs::read(&source).ok() {
        return Ok(text(&directory));
    }
    let to = text(&directory);
    let mut command = Command::new(compiler);
    command
        .env_clear()
        .env("PATH", path)
        .env("HOME", &directory)
        .current_dir(&directory);
    if compiler == "go" {
        // No C compiler, and nothing from elsewhere.
        command.envs([
            ("CGO_ENABLED", "0"),
            ("GOFLAGS", "-mod=mod"),
            ("GOPROXY", "off"),
            ("GO111MODULE", "off"),
        ]);
        command.args(["build", "-o", "client-go"]).arg(&source);
    } else {
        command.args(["-d", &to]).arg(&source);
    }
    let finished = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
    if !finished.success() {
        return Err(format!("{compiler} {}: {}", source.display(), finished.stderr));
    }
    std::fs::copy(&source, &kept).map_err(|error| error.to_string())?;
    Ok(to)
}

fn built() -> Result<PathBuf, String> {
    let directory = tools::target_directory()?.join("tools/trust-clients");
    std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    Ok(directory)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
