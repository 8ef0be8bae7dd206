//! From the configuration to the fleet's shared cache; one that stays the same keeps its connection.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::Error;
use crate::config::SharedCache;
use crate::dial::Dialer;
use crate::metrics::Metrics;
use crate::token::shared::Shared;
use crate::upstream::roots;

/// `before`: the cache in use.
pub(super) fn shared(
    config: Option<SharedCache>,
    dialer: &Dialer,
    own: &[CertificateDer<'static>],
    metrics: &Metrics,
    before: Option<Arc<Shared>>,
) -> Result<Option<Arc<Shared>>, Error> {
    let Some(SharedCache {
        settings,
        extra_roots,
    }) = config
    else {
        return Ok(None);
    };
    let roots = if settings.tls {
        roots::compose(&extra_roots, own).map_err(Error::SharedRoots)?
    } else {
        rustls::RootCertStore::empty()
    };
    if let Some(same) = before.filter(|before| before.is(&settings, &roots)) {
        return Ok(Some(same));
    }
    Shared::open(settings, Arc::new(roots), dialer.clone(), metrics.clone())
        .map(|shared| Some(Arc::new(shared)))
        .map_err(Error::Shared)
}
