//! `tv-agent webhook`: the admission webhook of a cluster.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::chain;
use crate::cli::{WebhookArgs, exit};
use crate::webhook::{Settings, Webhook};

/// Serves until it is told to stop.
pub async fn run(args: &WebhookArgs) -> u8 {
    let settings = match Settings::load(&args.config) {
        Ok(settings) => settings,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            return exit::USAGE;
        }
    };
    let (stopping, stop) = watch::channel(false);
    let signals =
        signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = match signals {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "cannot handle signals");
            return exit::FAILED;
        }
    };
    let webhook = match Webhook::start(settings).await {
        Ok(webhook) => webhook,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            return exit::FAILED;
        }
    };
    tracing::info!(listen = %webhook.address, metrics = %webhook.admin, "the webhook serves");
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop; what is open is finished");
        stopping.send_replace(true);
    });
    webhook.serve(stop).await;
    exit::OK
}
