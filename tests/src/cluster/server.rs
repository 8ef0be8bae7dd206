//! A server's process: ended with its value, and with the process that started it, however that one ends.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

use crate::sys;

/// Lines of a server's log that a failure shows.
const SHOWN: usize = 20;

pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    pub fn start(mut command: Command, at: &Path, name: &str) -> Result<Self, String> {
        let log = at.join(name).with_extension("log");
        let failed = |error: io::Error| format!("{name}: {error}");
        let out = File::create(&log).map_err(failed)?;
        command
            .env_clear()
            .current_dir(at)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(out);
        let child = spawn(command).map_err(failed)?;
        Ok(Self { child, log })
    }

    /// Nothing that it has is to be kept.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn must_run(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            ended => Err(format!("{ended:?}\n{}", self.said())),
        }
    }

    /// Its last lines.
    pub fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

type Order = (Command, Sender<io::Result<Child>>);

/// The kernel takes the thread that forked for the parent, and a test's thread ends before its servers may: one thread
/// starts them all, and lives as long as this process.
fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: Mutex<Option<Sender<Order>>> = Mutex::new(None);
    let (answer, started) = channel();
    {
        let mut starter = STARTER.lock().unwrap_or_else(PoisonError::into_inner);
        if starter.is_none() {
            let (sender, orders) = channel::<Order>();
            std::thread::Builder::new()
                .name("starter".into())
                .spawn(move || {
                    for (mut command, answer) in orders {
                        // Who asked waits for it.
                        let _ = answer.send(sys::die_with_parent(&mut command).spawn());
                    }
                })?;
            *starter = Some(sender);
        }
        let sender = starter.as_ref().expect("just made");
        sender.send((command, answer)).map_err(io::Error::other)?;
    }
    started.recv().map_err(io::Error::other)?
}
