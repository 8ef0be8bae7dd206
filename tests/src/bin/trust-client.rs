//! What a Rust program does that trusts the system's roots: reqwest with rustls, for the trust layer.
//!
//! For each line of input one request, and a line on how it went. usage: `trust-client kept|new HOST TOKEN`

use std::error::Error;
use std::io::BufRead as _;

use tv_agent::commands::chain;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, host, token] = arguments.as_slice() else {
        return Err("usage: trust-client kept|new HOST TOKEN".into());
    };
    let url = format!("https://{host}/user");
    // A program without another TLS library has it so by default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut client = reqwest::Client::new();
    for line in std::io::stdin().lock().lines() {
        line?;
        if kind == "new" {
            client = reqwest::Client::new();
        }
        let line = match ask(&client, &url, token).await {
            Ok(line) => line,
            Err(error) => format!("error {}", chain(&error)),
        };
        say(&line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "what the tests' own server says is short"
)]
async fn ask(client: &reqwest::Client, url: &str, token: &str) -> Result<String, reqwest::Error> {
    let answer = client.get(url).bearer_auth(token).send().await?;
    let status = answer.status().as_u16();
    Ok(format!("{status} {}", answer.text().await?))
}

#[expect(clippy::print_stdout, reason = "this is how clients answer")]
fn say(line: &str) {
    println!("{line}");
}
