//! The fakes against real clients (curl, git): a fake that is wrong would make every other test worthless.

mod auth0;
mod dns;
mod origin;
mod sdk;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;
use tv_tests::fakes::pki::Pki;

const LOCAL: [SocketAddr; 1] = [SocketAddr::V4(std::net::SocketAddrV4::new(
    std::net::Ipv4Addr::LOCALHOST,
    0,
))];

/// curl with nothing of this process's environment, trusting one root only.
struct Curl {
    dir: TempDir,
    host: String,
    addr: SocketAddr,
}

impl Curl {
    fn new(pki: &Pki, host: &str, addr: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("root.pem"), pki.root_pem()).unwrap();
        Self {
            dir,
            host: host.to_owned(),
            addr,
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root.pem")
    }

    fn run(&self, path: &str, args: &[&str]) -> Output {
        let port = self.addr.port();
        Command::new("curl")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.dir.path())
            .args(["--silent", "--show-error", "--max-time", "10", "--cacert"])
            .arg(self.root())
            .arg("--resolve")
            .arg(format!("{}:{port}:{}", self.host, self.addr.ip()))
            .args(args)
            .arg(format!("https://{}:{port}{path}", self.host))
            .output()
            .expect("curl is installed")
    }

    /// The status and the body.
    fn get(&self, path: &str, args: &[&str]) -> (u16, String) {
        let output = self.run(path, &[&["--write-out", "\n%{http_code}"], args].concat());
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let (body, status) = stdout
            .rsplit_once('\n')
            .unwrap_or_else(|| panic!("{path}: {stderr}"));
        (
            status.parse().unwrap_or_else(|_| panic!("{path}: {stderr}")),
            body.to_owned(),
        )
    }
}
