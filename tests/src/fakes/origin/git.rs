//! Git smart HTTP through the real `git http-backend`, streaming both ways.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, channel::Channel};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout};

use super::super::server::{Body, BoxError};
use super::record::Recording;
use super::reply;

/// Where the repository is served.
pub const PREFIX: &str = "/acme/demo.git/";

/// A bare repository with one commit in a temporary directory.
pub struct Repository {
    dir: TempDir,
    head: String,
}

impl Repository {
    /// # Errors
    /// When git is not installed or fails; the error carries what it said.
    pub fn create() -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tv-fake-git-").tempdir()?;
        let bare = dir.path().join("acme/demo.git");
        std::fs::create_dir_all(&bare)?;
        let work = dir.path().join("work");
        std::fs::create_dir(&work)?;
        std::fs::write(work.join("README.md"), "# demo\n\nCloned through the agent.\n")?;
        // Larger than one packet, so that streaming is exercised.
        let filler: String = (0..200_000u32)
            .map(|n| format!("{}\n", n.wrapping_mul(2_654_435_761)))
            .collect();
        std::fs::write(work.join("data.txt"), filler)?;
        git(
            &bare,
            &["init", "--quiet", "--bare", "--initial-branch=main", "."],
        )?;
        git(&bare, &["config", "http.receivepack", "true"])?;
        git(&work, &["init", "--quiet", "--initial-branch=main", "."])?;
        git(&work, &["add", "."])?;
        git(&work, &["commit", "--quiet", "--message", "First"])?;
        let bare = bare.to_str().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
        git(&work, &["push", "--quiet", &bare, "main"])?;
        let head = git(&work, &["rev-parse", "HEAD"])?.trim().to_owned();
        Ok(Self { dir, head })
    }

    /// The commit that a clone must end at.
    pub fn head(&self) -> &str {
        &self.head
    }

    pub(super) fn root(&self) -> &Path {
        self.dir.path()
    }
}

fn git(dir: &Path, args: &[&str]) -> io::Result<String> {
    let output = Command::new("git")
        .args(args)
        .current_dir(dir)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("HOME", dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs([
            ("GIT_AUTHOR_NAME", "Demo"),
            ("GIT_AUTHOR_EMAIL", "demo@example.com"),
        ])
        .envs([
            ("GIT_COMMITTER_NAME", "Demo"),
            ("GIT_COMMITTER_EMAIL", "demo@example.com"),
        ])
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("git {}: {said}", args.join(" "))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs one request through the CGI program (git-http-backend(1)).
pub(super) async fn backend(root: &Path, request: Request<Recording>) -> Response<Body> {
    let answered = match spawn(root, &request) {
        Ok(child) => converse(child, request.into_body()).await,
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(|error| reply(500, "text/plain", format!("git http-backend: {error}\n")))
}

fn spawn(root: &Path, request: &Request<Recording>) -> io::Result<Child> {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or("")
    };
    tokio::process::Command::new("git")
        .arg("http-backend")
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("HOME", root)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "x-access-token")
        .env("REQUEST_METHOD", request.method().as_str())
        .env("PATH_INFO", request.uri().path())
        .env("QUERY_STRING", request.uri().query().unwrap_or(""))
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

async fn converse(mut child: Child, mut body: Recording) -> io::Result<Response<Body>> {
    let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            let Some(data) = frame.data_ref() else { continue };
            // It closes its input when it has read enough.
            if stdin.write_all(data).await.is_err() {
                break;
            }
        }
    });
    let mut stdout = BufReader::new(stdout);
    let mut response = cgi_head(&mut stdout).await?;
    let (mut sender, channel) = Channel::<Bytes, BoxError>::new(4);
    tokio::spawn(async move {
        loop {
            let mut piece = BytesMut::with_capacity(64 * 1024);
            match stdout.read_buf(&mut piece).await {
                Ok(0) => break,
                Ok(_) if sender.send_data(piece.freeze()).await.is_ok() => {}
                Ok(_) => return,
                Err(error) => return sender.abort(error.into()),
            }
        }
        match child.wait().await {
            Ok(status) if status.success() => {}
            other => sender.abort(format!("git http-backend ended with {other:?}").into()),
        }
    });
    *response.body_mut() = channel.boxed_unsync();
    Ok(response)
}

/// The CGI header (RFC 3875 section 6.2): fields, `Status` among them, up to an empty line.
async fn cgi_head(stdout: &mut BufReader<ChildStdout>) -> io::Result<Response<Body>> {
    let mut response = Response::new(super::super::server::full(""));
    loop {
        let mut line = String::new();
        if stdout.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(response);
        }
        let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            let code = value.split(' ').next().unwrap_or_default();
            *response.status_mut() = code.parse::<StatusCode>().map_err(io::Error::other)?;
        } else {
            let name = name.parse::<HeaderName>().map_err(io::Error::other)?;
            let value = HeaderValue::from_str(value).map_err(io::Error::other)?;
            response.headers_mut().append(name, value);
        }
    }
}
