//! The admission webhook: puts trust in the CA into pods as they are created, before their first connection.
//!
//! `asked` and `needs` decide without knowing who asks them: a plugin of the container runtime (NRI) can ask the same.
//! `review` and `patch` speak the API server's language, `server` serves it, `keeper` keeps the ConfigMaps.

pub mod needs;
pub mod patch;
pub mod review;
pub mod content;
pub mod config;
mod certificate;
mod known;
mod keeper;
mod metrics;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::https::causes;
use crate::limits;
use certificate::Certificate;
pub use config::Settings;
use content::Content;
use keeper::Keeper;
use metrics::Metrics;
use server::Server;

/// Why the webhook cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}; choose another address in the configuration")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("the server's certificate cannot be used")]
    Certificate(#[from] certificate::Error),
    #[error("the roots cannot be used")]
    Roots(#[from] content::Error),
    #[error(
        "cannot ask the API server; check kubernetes.kubeconfig, or that a service account's token is mounted"
    )]
    Cluster(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The times of the webhook; other ones in tests.
#[derive(Clone, Debug)]
pub struct Pace {
    /// How often certificate, key and roots are looked at. By contents: mounted secrets are swapped by symlinks.
    pub files: Duration,
    /// How often ConfigMaps that are not as they should be are written again.
    pub sweep: Duration,
    /// After being told to stop: time for the cluster to send reviews elsewhere.
    pub linger: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            files: Duration::from_secs(5),
            sweep: Duration::from_secs(60),
            linger: Duration::from_secs(3),
        }
    }
}

/// A webhook that listens.
pub struct Webhook {
    pub address: SocketAddr,
    /// Metrics and health.
    pub admin: SocketAddr,
    server: Server,
    listener: TcpListener,
    ready: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    settings: Arc<Settings>,
}

impl Webhook {
    /// Reads certificate and roots, listens, and begins to watch the ConfigMaps.
    ///
    /// # Errors
    /// When a file cannot be used, an address is taken, or nobody says where the API server is.
    pub async fn start(settings: Settings) -> Result<Self, Error> {
        let settings = Arc::new(settings);
        let certificate = Arc::new(Certificate::load(&settings.certificate, &settings.key)?);
        let content = Content::read(&settings.roots, settings.public_roots.as_deref())?;
        let client = client(settings.kubeconfig.as_deref()).await?;
        let metrics = Metrics::new();
        metrics.certificate_ends(certificate.ends());
        let listener = bind(settings.listen).await?;
        let admin = bind(settings.metrics).await?;
        let keeper = Arc::new(Keeper::new(client, &settings, content, metrics.clone()));
        let ready = Arc::new(AtomicBool::new(true));
        let (address, admin_address) = (local(&listener), local(&admin));
        let server = Server::new(
            settings.clone(),
            certificate.clone(),
            keeper.clone(),
            metrics.clone(),
        );
        let is_ready = {
            let (ready, keeper) = (ready.clone(), keeper.clone());
            move || ready.load(Ordering::Relaxed) && keeper.listed()
        };
        let tasks = vec![
            tokio::spawn(metrics::serve(admin, metrics.clone(), is_ready)),
            tokio::spawn(keeper.clone().watch()),
            tokio::spawn(keeper.clone().sweep(settings.pace.sweep)),
            tokio::spawn(reload(settings.clone(), certificate, keeper, metrics)),
        ];
        Ok(Self {
            address,
            admin: admin_address,
            server,
            listener,
            ready,
            tasks,
            settings,
        })
    }

    /// Serves until `stop` is true, then for a while what comes all the same, then what is under way.
    pub async fn serve(self, stop: watch::Receiver<bool>) {
        let ready = self.ready.clone();
        let mut told = stop.clone();
        let unready = async move {
            let _ = told.wait_for(|stop| *stop).await;
            ready.store(false, Ordering::Relaxed);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.server.serve(self.listener, stop, self.settings.pace.linger, self.settings.drain) => {}
            () = unready => {}
        }
        for task in self.tasks {
            task.abort();
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })
}

fn local(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("it is bound")
}

async fn client(kubeconfig: Option<&std::path::Path>) -> Result<kube::Client, Error> {
    use kube::config::{KubeConfigOptions, Kubeconfig};
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| Error::Cluster(error.into()))?;
            let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
            config.map_err(|error| Error::Cluster(error.into()))?
        }
        None => kube::Config::incluster().map_err(|error| Error::Cluster(error.into()))?,
    };
    config.connect_timeout = Some(limits::WEBHOOK_API_TIME);
    // A review has no time for a second try.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|error| Error::Cluster(error.into()))
}

/// Takes up what has changed of the files; what cannot be used is told once, and the old one stays.
async fn reload(
    settings: Arc<Settings>,
    certificate: Arc<Certificate>,
    keeper: Arc<Keeper>,
    metrics: Metrics,
) {
    let mut complaint: [Option<String>; 2] = [None, None];
    loop {
        tokio::time::sleep(settings.pace.files).await;
        let read = certificate.renew(&settings.certificate, &settings.key);
        metrics.reload("certificate", read.is_ok());
        match read {
            Ok(false) => complaint[0] = None,
            Ok(true) => {
                complaint[0] = None;
                metrics.certificate_ends(certificate.ends());
                tracing::info!("another certificate is served");
            }
            Err(error) => tell(&mut complaint[0], "certificate", causes(&error)),
        }
        let read = Content::read(&settings.roots, settings.public_roots.as_deref());
        metrics.reload("roots", read.is_ok());
        match read {
            Ok(content) => {
                complaint[1] = None;
                if let Some(roots) = keeper.replace(content) {
                    tracing::info!(roots, "other roots; the ConfigMaps are brought up to date");
                }
            }
            Err(error) => tell(&mut complaint[1], "roots", causes(&error)),
        }
    }
}

fn tell(before: &mut Option<String>, what: &'static str, error: String) {
    if before.as_ref() != Some(&error) {
        tracing::warn!(
            error,
            "the {what} on disk cannot be used; the one that was read before stays"
        );
        *before = Some(error);
    }
}

/// Files of `path`: itself, or those of a directory whose names begin with no dot, as a mounted ConfigMap has them.
fn files_of(path: &std::path::Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
