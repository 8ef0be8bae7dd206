//! Stage 10: TLS ended here, with a leaf for the name that the client asked for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::ResolvesServerCert;
use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::addr::HostName;
use crate::limits;
use crate::metrics::Metrics;
use crate::trust::Sign;
use crate::upstream::Protocol;

mod heard;

pub use heard::{Heard, Sent, Word};

/// Why a workload's handshake did not finish.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the workload does not trust our CA (TLS alert {alert}); put the CA into its trust store, see `tv-agent ca show`"
    )]
    Untrusted { alert: &'static str, source: io::Error },
    #[error(
        "the workload closed the connection right after our certificate, as clients do that do not trust our CA; put \
         the CA into its trust store, see `tv-agent ca show`"
    )]
    Closed(#[source] io::Error),
    #[error("the TLS handshake with the workload failed")]
    Handshake(#[source] io::Error),
    #[error("the workload did not finish the TLS handshake within {} s", limit.as_secs())]
    Timeout { limit: Duration },
    #[error("the handshake named another host than the hello that was decided on")]
    OtherName,
}

impl Error {
    /// For metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Untrusted { .. } => "untrusted",
            Self::Closed(_) => "closed_on_certificate",
            Self::Handshake(_) => "handshake_failed",
            Self::Timeout { .. } => "handshake_timeout",
            Self::OtherName => "other_name",
        }
    }

    /// How it showed that the workload does not trust us, if it did.
    pub fn sign(&self) -> Option<Sign> {
        match self {
            Self::Untrusted { alert, .. } => Some(Sign::Alert(alert)),
            Self::Closed(_) => Some(Sign::Closed),
            Self::Handshake(_) | Self::Timeout { .. } | Self::OtherName => None,
        }
    }
}

/// TLS towards the workload; what it says first is told, see [`Terminator::accept`].
pub type Stream<I> = Heard<TlsStream<Sent<I>>>;

/// Ends TLS. One configuration per protocol offered; certificates and session tickets are shared.
#[derive(Clone)]
pub struct Terminator {
    http1: TlsAcceptor,
    http2: TlsAcceptor,
    limit: Duration,
    metrics: Metrics,
}

impl Terminator {
    pub fn new(leaves: Arc<dyn ResolvesServerCert>, limit: Duration, metrics: Metrics) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().expect("the system gives random numbers");
        let acceptor = |alpn: &[u8]| {
            let mut config = ServerConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .expect("the provider supports the default versions")
                .with_no_client_auth()
                .with_cert_resolver(leaves.clone());
            config.alpn_protocols = vec![alpn.to_vec()];
            config.ticketer = ticketer.clone();
            // 0-RTT could be replayed with the caller's credentials in it.
            config.max_early_data_size = 0;
            TlsAcceptor::from(Arc::new(config))
        };
        Self {
            http1: acceptor(b"http/1.1"),
            http2: acceptor(b"h2"),
            limit,
            metrics,
        }
    }

    /// Finishes the handshake as a server of `host` that speaks `protocol`. `told` hears what the workload does then,
    /// unless it resumed an earlier session: then it has not seen a certificate.
    ///
    /// # Errors
    /// When the workload breaks off, or is too slow.
    pub async fn accept<I>(
        &self,
        io: I,
        host: &HostName,
        protocol: Protocol,
        told: impl FnOnce(Word) + Send + 'static,
    ) -> Result<Stream<I>, Error>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = match protocol {
            Protocol::Http1 => &self.http1,
            Protocol::Http2 => &self.http2,
        };
        let handshake = acceptor.accept(Sent::new(io)).into_fallible();
        let finished = match timeout(self.limit, handshake).await {
            Ok(Ok(stream)) => {
                let tls = stream.get_ref().1;
                let named = tls.server_name().and_then(HostName::parse);
                let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
                if named.as_ref() == Some(host) {
                    let mut heard = Heard::new(stream, limits::TRUST_UNUSED);
                    if !resumed {
                        heard.tell(Box::new(told));
                    }
                    Ok(heard)
                } else {
                    Err(Error::OtherName)
                }
            }
            Ok(Err((source, io))) => Err(match distrust(&source) {
                Some(alert) => Error::Untrusted { alert, source },
                None if is_close(&source) && io.has_certificate() => Error::Closed(source),
                None => Error::Handshake(source),
            }),
            Err(_) => Err(Error::Timeout { limit: self.limit }),
        };
        self.metrics
            .handshake("workload", finished.as_ref().err().map_or("ok", Error::reason));
        finished
    }
}

/// The protocol to speak with a client: what the origin would have chosen from the client's offer.
///
/// A client that offers only what the origin does not speak gets `no_application_protocol` from the
/// handshake, as it would have from the origin.
pub fn mirror(offered: &[Vec<u8>], origin: Protocol) -> Protocol {
    let offers_http2 = offered.iter().any(|alpn| alpn == b"h2");
    if origin == Protocol::Http2 && offers_http2 {
        Protocol::Http2
    } else {
        Protocol::Http1
    }
}

/// The client closed, or reset.
fn is_close(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

/// The alert by which a client says that it does not believe our certificate (RFC 8446 §6.2).
fn distrust(error: &io::Error) -> Option<&'static str> {
    use rustls::AlertDescription as Alert;
    let rustls::Error::AlertReceived(alert) = error.get_ref()?.downcast_ref::<rustls::Error>()? else {
        return None;
    };
    match alert {
        Alert::BadCertificate => Some("bad_certificate"),
        Alert::UnknownCA => Some("unknown_ca"),
        Alert::CertificateUnknown => Some("certificate_unknown"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpn_is_what_the_origin_would_have_chosen() {
        let offer = |list: &[&str]| list.iter().map(|a| a.as_bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(
            mirror(&offer(&["h2", "http/1.1"]), Protocol::Http2),
            Protocol::Http2
        );
        assert_eq!(
            mirror(&offer(&["h2", "http/1.1"]), Protocol::Http1),
            Protocol::Http1
        );
        assert_eq!(mirror(&offer(&["http/1.1"]), Protocol::Http2), Protocol::Http1);
        assert_eq!(mirror(&offer(&[]), Protocol::Http2), Protocol::Http1);
        assert_eq!(mirror(&offer(&["h2"]), Protocol::Http1), Protocol::Http1);
    }
}
