//! The programs' own log: off, the verifier drops it; on, the programs still load, and say why they refuse.

use std::sync::Mutex;
use std::time::Duration;

use nix::errno::Errno;
use tracing::Level;

use crate::world::{ORIGIN4, named, with_world};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Collector;

impl log::Log for Collector {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn a_refusal_is_logged_when_debugging() {
    with_world("log", |world| {
        assert!(world.load().kernel_log().is_none(), "off unless asked for");
        log::set_logger(&Collector).unwrap();
        log::set_max_level(log::LevelFilter::Debug);
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_writer(std::io::sink)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let mut agent = world.agent();
            agent.doors.close();
            let log = agent.redirect.kernel_log().expect("on");
            assert_eq!(world.workload().tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            runtime.block_on(async {
                let _ = tokio::time::timeout(Duration::from_millis(600), log.run()).await;
            });
        });
        let lines = LINES.lock().unwrap();
        let expected = format!(
            "port 443: refused for reason {}",
            tv_ebpf::Reason::AbsentRefused as u32
        );
        assert!(lines.contains(&expected), "{lines:?}");
    });
}
