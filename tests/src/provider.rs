//! The certified OpenID provider of `tests/js` (npm `oidc-provider`), run as a process over https.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tempfile::TempDir;

use crate::fakes::pki::Pki;
use crate::js;

/// The client that it knows; authenticated by client_secret_basic.
pub const CLIENT: &str = "agent";
pub const SECRET: &str = "secret-of-the-provider-client-01";
/// Node needs seconds to start on a machine under load.
const START: Duration = Duration::from_secs(60);

/// A running provider; dropped, it ends.
pub struct Provider {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    issuer: String,
    kid: String,
    _files: TempDir,
}

impl Provider {
    /// Starts one whose certificate is of `pki`.
    ///
    /// # Panics
    /// When it does not start; the text says what is missing.
    pub fn start(pki: &Pki) -> Self {
        let directory = js::install().unwrap_or_else(|reason| panic!("{reason}"));
        let files = tempfile::tempdir().expect("a directory");
        let identity = pki.leaf(&["127.0.0.1"]);
        let file = |name: &str, label: &str, der: &[u8]| {
            let path = files.path().join(name);
            std::fs::write(&path, pem(label, der)).expect("a file");
            path
        };
        let certificate = file("certificate.pem", "CERTIFICATE", &identity.chain[0]);
        let key = file("key.pem", "PRIVATE KEY", identity.key.secret_der());
        let mut child = Command::new("node")
            .arg(directory.join("provider.mjs"))
            .args([certificate, key])
            .env("CLIENT_SECRET", SECRET)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("node cannot be run ({error}); install Node.js 20 or later"));
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // It also says what it thinks of its configuration.
                if line.starts_with('{') && send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut provider = Self {
            child,
            stdin,
            lines,
            issuer: String::new(),
            kid: String::new(),
            _files: files,
        };
        provider.listen();
        provider
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The key that it signs by.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Signs by a new key from now on; the old ones are still published.
    pub fn rotate(&mut self) {
        self.tell("rotate");
    }

    /// Publishes no key but the one that it signs by.
    pub fn retire(&mut self) {
        self.tell("retire");
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.stdin, "{what}").expect("a provider that listens");
        self.listen();
    }

    fn listen(&mut self) {
        let line = self.lines.recv_timeout(START).expect("a line of the provider");
        let said: Value = serde_json::from_str(&line).expect("JSON");
        let text = |name: &str| said[name].as_str().expect("a string").to_owned();
        (self.issuer, self.kid) = (text("issuer"), text("kid"));
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("ASCII"))
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
