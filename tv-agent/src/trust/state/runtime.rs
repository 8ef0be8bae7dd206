//! What runs in a process, and when it reads the roots that it trusts.
//!
//! What each runtime does was measured, with the versions of `docs/trust.md`.

use std::io;

use serde::{Deserialize, Serialize};

use super::elf;
use crate::limits;
use crate::workload::Opened;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    Go,
    Node,
    /// Node with `--use-openssl-ca`: it reads the system's store, at each connection.
    NodeOpenssl,
    Deno,
    Bun,
    Java,
    Dotnet,
    Python,
    Ruby,
    Php,
    Curl,
    /// A program of none of these. Whether it looks roots up (OpenSSL), reads them once (rustls with the system's
    /// roots) or has them compiled in (webpki-roots) cannot be told from outside.
    Native,
    /// It could not be looked at.
    #[default]
    Unknown,
}

impl Runtime {
    /// For metrics and people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Node => "node",
            Self::NodeOpenssl => "node_openssl",
            Self::Deno => "deno",
            Self::Bun => "bun",
            Self::Java => "java",
            Self::Dotnet => "dotnet",
            Self::Python => "python",
            Self::Ruby => "ruby",
            Self::Php => "php",
            Self::Curl => "curl",
            Self::Native => "native",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it keeps the roots of its first use, so that it needs a restart to see another.
    pub fn caches(self) -> bool {
        match self {
            Self::Go | Self::Node | Self::Deno | Self::Java | Self::Dotnet => true,
            Self::NodeOpenssl
            | Self::Bun
            | Self::Python
            | Self::Ruby
            | Self::Php
            | Self::Curl
            | Self::Native
            | Self::Unknown => false,
        }
    }

    /// Whether its default roots are compiled in, so that no store of the system reaches it.
    pub(super) fn brings_roots(self) -> bool {
        matches!(self, Self::Node | Self::Deno)
    }

    /// What brings our CA to a new process of it, where its own store does not.
    pub(super) fn means(self) -> &'static str {
        match self {
            Self::Go | Self::Dotnet | Self::Ruby | Self::NodeOpenssl => "SSL_CERT_FILE",
            Self::Node | Self::Bun => "NODE_EXTRA_CA_CERTS",
            Self::Deno => "DENO_CERT",
            Self::Java => "-Djavax.net.ssl.trustStore in JAVA_TOOL_OPTIONS",
            Self::Python => "SSL_CERT_FILE and REQUESTS_CA_BUNDLE",
            Self::Php => "SSL_CERT_FILE and CURL_CA_BUNDLE",
            Self::Curl => "CURL_CA_BUNDLE",
            Self::Native | Self::Unknown => "the variables of `tv-agent trust env`",
        }
    }

    /// By the name of a program's file, or of a process. Pure.
    pub fn of_name(name: &str) -> Option<Self> {
        let name = name.trim_end_matches(" (deleted)");
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
        Some(match stem {
            "node" | "nodejs" => Self::Node,
            "deno" => Self::Deno,
            "bun" => Self::Bun,
            "java" => Self::Java,
            "dotnet" => Self::Dotnet,
            "python" | "pypy" => Self::Python,
            "ruby" => Self::Ruby,
            "php" | "php-fpm" | "php-cgi" => Self::Php,
            "curl" => Self::Curl,
            _ => return None,
        })
    }

    /// Looks at a process: its program's name, then for Go's marks in the program, then for a Java machine or
    /// .NET in its memory (programs that embed them). Reads no more than the limits say.
    ///
    /// # Errors
    /// When the process is gone, or may not be looked at.
    pub(super) fn of_process(process: &Opened) -> io::Result<Self> {
        let path = process.link("exe")?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(runtime) = Self::of_name(&name) {
            return Ok(runtime);
        }
        if elf::is_go(&process.open("exe")?).unwrap_or(false) {
            return Ok(Self::Go);
        }
        let maps = process.read("maps", limits::MAPS_BYTES)?;
        Ok(Self::of_maps(&String::from_utf8_lossy(&maps)).unwrap_or(Self::Native))
    }

    /// What `process` makes of its program by the options that it was started with.
    ///
    /// # Errors
    /// When the process is gone, or may not be looked at.
    pub(super) fn as_started(self, process: &Opened) -> io::Result<Self> {
        let openssl = self == Self::Node && asks_for_openssl(process)?;
        Ok(if openssl { Self::NodeOpenssl } else { self })
    }

    /// By the libraries in proc_pid_maps(5). Pure.
    fn of_maps(maps: &str) -> Option<Self> {
        let loaded = |library: &str| maps.lines().any(|line| line.ends_with(library));
        if loaded("/libjvm.so") {
            Some(Self::Java)
        } else if loaded("/libcoreclr.so") {
            Some(Self::Dotnet)
        } else {
            None
        }
    }
}

/// Whether Node was started with the option, on the command line or by NODE_OPTIONS.
fn asks_for_openssl(process: &Opened) -> io::Result<bool> {
    let arguments = process.read("cmdline", limits::MAPS_BYTES)?;
    let environment = process.read("environ", limits::MAPS_BYTES)?;
    Ok(names_openssl(&arguments, &environment))
}

/// By proc_pid_cmdline(5) and proc_pid_environ(5). Pure.
fn names_openssl(arguments: &[u8], environment: &[u8]) -> bool {
    const OPTION: &[u8] = b"--use-openssl-ca";
    let options = environment
        .split(|byte| *byte == 0)
        .filter_map(|variable| variable.strip_prefix(b"NODE_OPTIONS="))
        .flat_map(|options| options.split(u8::is_ascii_whitespace));
    arguments
        .split(|byte| *byte == 0)
        .chain(options)
        .any(|word| word == OPTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_version_is_a_name() {
        for (name, runtime) in [
            ("python3.13", Some(Runtime::Python)),
            ("node", Some(Runtime::Node)),
            ("ruby3.3", Some(Runtime::Ruby)),
            ("php-fpm8.4", Some(Runtime::Php)),
            ("php8.4", Some(Runtime::Php)),
            ("java (deleted)", Some(Runtime::Java)),
            ("nodemon", None),
            ("", None),
        ] {
            assert_eq!(Runtime::of_name(name), runtime, "{name}");
        }
    }

    #[test]
    fn libraries_tell_what_is_embedded() {
        let line = "7f00-7f01 r-xp 00000000 08:01 12 /usr/lib/jvm/x/lib/server/libjvm.so\n";
        assert_eq!(Runtime::of_maps(line), Some(Runtime::Java));
        assert_eq!(
            Runtime::of_maps("7f00 r-xp /app/libcoreclr.so\n"),
            Some(Runtime::Dotnet)
        );
        assert_eq!(Runtime::of_maps("7f00 r-xp /app/xlibjvm.so\n"), None);
    }

    #[test]
    fn node_says_when_it_reads_the_systems_store() {
        let none = b"node\0/app.js\0";
        assert!(!names_openssl(
            none,
            b"PATH=/bin\0NODE_OPTIONS=--max-old-space-size=64\0"
        ));
        assert!(names_openssl(b"node\0--use-openssl-ca\0/app.js\0", b""));
        assert!(names_openssl(
            none,
            b"A=b\0NODE_OPTIONS=--inspect --use-openssl-ca\0"
        ));
        assert!(!names_openssl(none, b"X_NODE_OPTIONS=--use-openssl-ca\0"));
    }

    #[test]
    fn this_test_is_native() {
        let own = Opened::new(std::process::id()).unwrap();
        assert_eq!(Runtime::of_process(&own).unwrap(), Runtime::Native);
    }
}
