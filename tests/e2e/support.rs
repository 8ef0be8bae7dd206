//! What the topics share: users, clients' command lines, and waiting.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tv_tests::fakes::origin::Origin;
use tv_tests::world::{GITHUB_API, World};

pub const GITHUB_TOKEN: &str = "gho_e2eQ7xW2v9LkT3nB8mZ5cR1";
pub const GOOGLE_TOKEN: &str = "ya29.e2eH4jK6pD0sF2gY8uI3oP5";

/// A user with both accounts connected. The token that comes back is forbidden at every fake but Auth0.
pub fn alice(world: &World) -> String {
    let user = world.user("alice");
    world.connect_github(&user, GITHUB_TOKEN, "alice");
    world.connect_google(&user, GOOGLE_TOKEN, "alice");
    user
}

pub fn bearer(user: &str) -> String {
    format!("authorization: Bearer {user}")
}

pub fn user_url() -> String {
    format!("https://{GITHUB_API}/user")
}

/// curl that fails on a status from 400 and says why; `more` are further arguments.
pub fn curl<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let quiet = ["curl", "--silent", "--show-error", "--fail", "--max-time", "20"];
    [&quiet[..], more].concat()
}

/// curl that prints the answer's head and body, whatever its status.
pub fn curl_include<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let quiet = [
        "curl",
        "--silent",
        "--show-error",
        "--include",
        "--max-time",
        "20",
    ];
    [&quiet[..], more].concat()
}

/// That requests came to `origin`, each with `token` and none with `subject` anywhere.
#[track_caller]
pub fn assert_swapped(origin: &Origin, token: &str, subject: &str) {
    let requests = origin.requests();
    assert!(!requests.is_empty(), "no request came");
    for request in requests {
        assert_eq!(request.token().as_deref(), Some(token), "{request:?}");
        assert!(!request.holds(subject), "{request:?}");
    }
}

/// That no fake but Auth0 got `subject` in a request, be it exchanged or tunnelled.
#[track_caller]
pub fn assert_unseen(world: &World, subject: &str) {
    for origin in [&world.github, &world.google, &world.unrouted] {
        for request in origin.requests() {
            assert!(!request.holds(subject), "{request:?}");
        }
    }
    assert!(world.auth0.count(subject) > 0, "the vault was never asked");
}

/// Waits until `holds`; panics with `what` when it does not within `limit`.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A file system of a few pages. Declare it before what writes to it, so that it goes last.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn new(place: PathBuf, size: &str) -> Self {
        std::fs::create_dir(&place).unwrap();
        let disk = Self(place);
        disk.mount(MsFlags::empty(), size);
        disk
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn resize(&self, size: &str) {
        self.mount(MsFlags::MS_REMOUNT, size);
    }

    fn mount(&self, flags: MsFlags, size: &str) {
        let size = format!("size={size}");
        mount(Some("tmpfs"), &self.0, Some("tmpfs"), flags, Some(&*size)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Else the directory around it cannot be removed.
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Numbers that a script printed, one a line.
pub fn lines(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect()
}
