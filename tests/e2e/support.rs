//! What the topics share: users, clients' command lines, and waiting.

use std::time::{Duration, Instant};

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

/// Numbers that a script printed, one a line.
pub fn lines(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect()
}
