//! The labels of the families: each has few values, or as many as the configuration has names.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;

/// A connection's end: what was decided and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    pub decision: &'static str,
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Name of the route (bounded by the configuration).
    pub route: Arc<str>,
    /// `forwarded`, or the label of the refusal's class.
    pub result: &'static str,
    /// `2xx`…`5xx` as the workload saw it.
    pub code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ExchangeLabels {
    pub vault: Arc<str>,
    /// `ok`, or the label of the failure's class.
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct VaultLabels {
    pub vault: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CacheLabels {
    /// `hit`, `miss`, `negative_hit`, `refresh`, `evicted`.
    pub event: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SharedCacheLabels {
    pub event: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HandshakeLabels {
    /// `workload` or `upstream`.
    pub side: &'static str,
    /// `ok`, `alert_<name>`, `timeout`, `error`.
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabels {
    pub state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ChangeLabels {
    pub state: &'static str,
    pub runtime: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CertificateLabels {
    /// `root`, `issuing`, `intermediate`, `next_root` or `old_root`.
    pub certificate: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabels {
    pub result: &'static str,
}
