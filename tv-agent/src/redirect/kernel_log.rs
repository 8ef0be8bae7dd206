//! What the programs themselves say, for those who debug them.

use std::time::Duration;

use aya::Ebpf;

/// `aya_log_common::Level` as numbers: 0 is below the most urgent one.
const LOG_OFF: u8 = 0;
const LOG_DEBUG: u8 = 4;

/// Forwards what the programs say to the `log` facade, which tracing-subscriber listens to.
pub struct KernelLog {
    logger: aya_log::EbpfLogger<&'static dyn log::Log>,
}

impl KernelLog {
    pub(super) fn of(ebpf: &mut Ebpf) -> Option<Self> {
        if !log_enabled() {
            return None;
        }
        let logger = aya_log::EbpfLogger::init(ebpf).ok()?;
        Some(Self { logger })
    }

    /// Looks for new lines four times a second, until it is dropped.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            tick.tick().await;
            self.logger.flush();
        }
    }
}

/// For the programs' read-only `AYA_LOG_LEVEL`.
pub(super) fn level() -> u8 {
    if log_enabled() { LOG_DEBUG } else { LOG_OFF }
}

fn log_enabled() -> bool {
    tracing::enabled!(target: "tv_agent::kernel", tracing::Level::DEBUG)
}
