//! How the demo tells: numbered chapters, what was sent and received, tokens as short labels.
#![expect(clippy::print_stdout, reason = "telling is what it is for")]

use std::error::Error;
use std::io::IsTerminal;
use std::time::Instant;

use super::NotHeld;
use crate::process::Finished;
use crate::world::{GITHUB, GITHUB_API, GOOGLE, GOOGLE_GRPC, TENANT, UNROUTED, World};

/// Longest text that is shown of an answer, characters.
const SHOWN: usize = 300;

/// Lines that are shown of a client that failed: the last ones say why.
const LINES: usize = 8;

/// The narrator. Nothing is printed but through it, so that no token is shown whole.
pub(super) struct Story {
    chapters: usize,
    told: usize,
    skipped: usize,
    start: Instant,
    colours: bool,
    /// Token → label.
    labels: Vec<(String, String)>,
    /// Why pip did not give the Python clients, where it did not.
    no_python_clients: Option<String>,
}

impl Story {
    pub(super) fn new(chapters: usize) -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            chapters,
            told: 0,
            skipped: 0,
            start: Instant::now(),
            colours,
            labels: Vec::new(),
            no_python_clients: None,
        }
    }

    /// From now on `token` is shown as `label`.
    pub(super) fn label(&mut self, token: &str, label: &str) {
        self.labels.push((token.to_owned(), format!("{label}…")));
    }

    /// Something that may take a while before the first chapter.
    pub(super) fn prepares(&self, what: &str) {
        println!("Preparing {what}.");
    }

    pub(super) fn lacks_python_clients(&mut self, why: String) {
        self.no_python_clients = Some(why);
    }

    /// Why the Python clients are not there.
    pub(super) fn why_no_python_clients(&self) -> String {
        self.no_python_clients
            .clone()
            .unwrap_or_else(|| "pip has installed it for another Python".to_owned())
    }

    pub(super) fn open(&self, world: &World) {
        println!("{}\n", self.paint("1", "tv-agent, the whole path once"));
        println!("A network namespace of its own stands in for the internet, with real DNS and TLS:");
        println!("  {TENANT:<24} Auth0 with Token Vault");
        println!("  {GITHUB_API:<24} a GitHub-like API");
        println!("  {GITHUB:<24} git over HTTPS");
        println!("  {GOOGLE:<24} a Google-like API, h1 and h2");
        println!("  {GOOGLE_GRPC:<24} a gRPC service");
        println!("  {UNROUTED:<24} a host that no route names");
        println!("Clients are unmodified; PATH, HOME and PYTHONPATH are their whole environment.");
        if world.repository_head.is_none() {
            println!("git is not installed here: its chapter is left out.");
        }
    }

    /// Begins a chapter and gives its number.
    pub(super) fn chapter(&mut self, title: &str) -> usize {
        self.told += 1;
        let seconds = self.start.elapsed().as_secs_f32();
        let head = format!("[{:>2}/{}] {title}", self.told, self.chapters);
        println!(
            "\n{}  {}",
            self.paint("1", &head),
            self.paint("2", &format!("({seconds:.1} s)"))
        );
        self.told
    }

    /// A command as a user would type it.
    pub(super) fn command(&self, text: &str) {
        println!("   {} {}", self.paint("36", "$"), self.redact(text));
    }

    /// Something that was seen: who, and what.
    pub(super) fn seen(&self, who: &str, what: &str) {
        println!("   {:<10} {}", format!("{who}:"), self.shorten(what));
    }

    /// A claim that was verified just now.
    pub(super) fn holds(&self, claim: &str) {
        println!("   {} {}", self.paint("32", "✓"), self.redact(claim));
    }

    pub(super) fn skipped(&mut self, why: &str) {
        self.skipped += 1;
        println!("   {} left out: {why}", self.paint("33", "-"));
    }

    pub(super) fn failed(&self, error: &NotHeld) {
        println!("   {} {}", self.paint("31", "✗"), self.redact(&error.to_string()));
        let mut source = error.source();
        while let Some(cause) = source {
            println!("     because: {}", self.redact(&cause.to_string()));
            source = cause.source();
        }
    }

    pub(super) fn interrupted(&self) {
        println!("\n{}", self.paint("33", "Interrupted; everything is taken down."));
    }

    /// Why the demo cannot be played at all.
    pub(super) fn refuse(&self, reason: &str) {
        eprintln!("{reason}");
    }

    pub(super) fn close(&self, failed: &[usize]) {
        let seconds = self.start.elapsed().as_secs_f32();
        let left_out = match self.skipped {
            0 => String::new(),
            n => format!(", {n} left out"),
        };
        if failed.is_empty() {
            let held = self.told - self.skipped;
            let text = format!("All {held} chapters held{left_out}; {seconds:.1} s.");
            println!("\n{}", self.paint("1;32", &text));
        } else {
            let numbers: Vec<String> = failed.iter().map(usize::to_string).collect();
            let text = format!(
                "Did not hold: chapter {}{left_out}; {seconds:.1} s.",
                numbers.join(", ")
            );
            println!("\n{}", self.paint("1;31", &text));
        }
    }

    /// What a client said, for an error.
    pub(super) fn said(&self, finished: &Finished) -> String {
        let text = format!("{}\n{}", finished.stdout.trim(), finished.stderr.trim());
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(LINES)..].join("\n     ");
        self.redact(&format!("exit code {}\n     {tail}", finished.code()))
    }

    fn shorten(&self, text: &str) -> String {
        let text = self.redact(text.trim()).replace('\n', "\n              ");
        if text.chars().count() <= SHOWN {
            return text;
        }
        text.chars().take(SHOWN).chain(['…']).collect()
    }

    fn redact(&self, text: &str) -> String {
        let replace = |text: String, (token, label): &(String, String)| text.replace(token, label);
        self.labels.iter().fold(text.to_owned(), replace)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
