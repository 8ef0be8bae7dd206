//! Prometheus metrics: every family of the agent, bounded labels only (no path or host; of verified callers the first
//! [`crate::limits::IDENTITIES`]).

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

mod identities;
mod kubernetes;
mod labels;
mod merge;

use identities::Identities;
pub use kubernetes::Kubernetes;
pub use labels::*;
pub use merge::merged;

/// Handles of all families. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    pub connections: Family<ConnectionLabels, Counter>,
    pub open_connections: Gauge,
    pub handshakes: Family<HandshakeLabels, Counter>,
    pub leaves: Counter,
    pub requests: Family<RequestLabels, Counter>,
    identities: Identities,
    pub request_seconds: Histogram,
    pub exchanges: Family<ExchangeLabels, Counter>,
    pub exchange_seconds: Histogram,
    pub exchange_retries: Family<VaultLabels, Counter>,
    pub breakers_open: Family<VaultLabels, Gauge>,
    pub cache: Family<CacheLabels, Counter>,
    pub shared_cache: Family<SharedCacheLabels, Counter>,
    pub shared_cache_connected: Gauge,
    pub upstream_connections: Counter,
    pub config_reloads: Family<ResultLabels, Counter>,
    /// Lines of the audit trail: `written`, `lost`; and `failed` attempts to write.
    pub audit: Family<ResultLabels, Counter>,
    /// Batches of spans: `ok`, `failed`.
    pub trace_exports: Family<ResultLabels, Counter>,
    /// Besides the agent's own.
    pub namespaces: Gauge,
    pub namespace_failures: Family<ReasonLabels, Counter>,
    pub uncaptured: Family<ReasonLabels, Counter>,
    /// With `capture: dns`: addresses, namespaces, and 1 while that holds for all.
    pub candidates: Gauge,
    pub unsure_namespaces: Gauge,
    pub all_unsure: Gauge,
    /// Processes that connected, by what is believed of their trust in the CA.
    trust_processes: Family<StateLabels, Gauge>,
    trust_changes: Family<ChangeLabels, Counter>,
    /// Tries to put the CA into a mount namespace.
    pub trust_installations: Family<ResultLabels, Counter>,
    pub ca_expiry: Family<CertificateLabels, Gauge>,
    pub kubernetes: Kubernetes,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tv_agent");
        let seconds = || {
            Histogram::new([
                0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
            ])
        };
        let mut metrics = Self {
            registry: Arc::new(Registry::default()),
            connections: Family::default(),
            open_connections: Gauge::default(),
            handshakes: Family::default(),
            leaves: Counter::default(),
            requests: Family::default(),
            identities: Identities::default(),
            request_seconds: seconds(),
            exchanges: Family::default(),
            exchange_seconds: seconds(),
            exchange_retries: Family::default(),
            breakers_open: Family::default(),
            cache: Family::default(),
            shared_cache: Family::default(),
            shared_cache_connected: Gauge::default(),
            upstream_connections: Counter::default(),
            config_reloads: Family::default(),
            audit: Family::default(),
            trace_exports: Family::default(),
            namespaces: Gauge::default(),
            namespace_failures: Family::default(),
            uncaptured: Family::default(),
            candidates: Gauge::default(),
            unsure_namespaces: Gauge::default(),
            all_unsure: Gauge::default(),
            trust_processes: Family::default(),
            trust_changes: Family::default(),
            trust_installations: Family::default(),
            ca_expiry: Family::default(),
            kubernetes: Kubernetes::default(),
        };
        metrics.kubernetes.register(&mut registry);
        registry.register(
            "connections",
            "Redirected connections by decision and reason",
            metrics.connections.clone(),
        );
        registry.register(
            "identified_requests",
            "Requests whose caller's token was verified, by the identity in it",
            metrics.identities.family.clone(),
        );
        registry.register(
            "open_connections",
            "Connections served now",
            metrics.open_connections.clone(),
        );
        registry.register(
            "tls_handshakes",
            "TLS handshakes by side and result",
            metrics.handshakes.clone(),
        );
        registry.register(
            "leaf_certificates_issued",
            "Leaf certificates minted",
            metrics.leaves.clone(),
        );
        registry.register(
            "requests",
            "Requests on routed hosts by route, result and status class",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time from a request's header to its response's header",
            Unit::Seconds,
            metrics.request_seconds.clone(),
        );
        registry.register(
            "token_exchanges",
            "Calls of token endpoints by vault and result",
            metrics.exchanges.clone(),
        );
        registry.register_with_unit(
            "token_exchange_duration",
            "Time of a call of a token endpoint",
            Unit::Seconds,
            metrics.exchange_seconds.clone(),
        );
        registry.register(
            "token_exchange_retries",
            "Calls of token endpoints that repeat a failed one",
            metrics.exchange_retries.clone(),
        );
        registry.register(
            "vault_circuit_open",
            "1 while a failing token endpoint is left alone",
            metrics.breakers_open.clone(),
        );
        registry.register("token_cache_events", "Token cache events", metrics.cache.clone());
        registry.register(
            "shared_cache_events",
            "What happened with the fleet's shared token cache",
            metrics.shared_cache.clone(),
        );
        registry.register(
            "shared_cache_connected",
            "1 while the shared token cache answers",
            metrics.shared_cache_connected.clone(),
        );
        registry.register(
            "upstream_connections",
            "Connections opened to providers",
            metrics.upstream_connections.clone(),
        );
        registry.register(
            "config_reloads",
            "Configuration reloads by result",
            metrics.config_reloads.clone(),
        );
        registry.register(
            "audit_records",
            "Lines of the audit trail by result",
            metrics.audit.clone(),
        );
        registry.register(
            "trace_exports",
            "Batches of spans sent to the collector by result",
            metrics.trace_exports.clone(),
        );
        registry.register(
            "network_namespaces",
            "Network namespaces served now, besides the agent's own",
            metrics.namespaces.clone(),
        );
        registry.register(
            "network_namespace_failures",
            "Network namespaces that could not be served, by reason",
            metrics.namespace_failures.clone(),
        );
        registry.register(
            "uncaptured_connections",
            "Connections of enrolled processes that went past the agent, by reason",
            metrics.uncaptured.clone(),
        );
        registry.register(
            "trust_processes",
            "Processes that connected, by what is believed of their trust in the CA",
            metrics.trust_processes.clone(),
        );
        registry.register(
            "trust_changes",
            "Changes of what is believed of a process, by what became of it and its runtime",
            metrics.trust_changes.clone(),
        );
        registry.register(
            "trust_installations",
            "Tries to put the CA into a mount namespace, by result",
            metrics.trust_installations.clone(),
        );
        for (name, help, gauge) in [
            (
                "candidate_addresses",
                "Addresses of routed hosts that `capture: dns` looks at",
                &metrics.candidates,
            ),
            (
                "unsure_network_namespaces",
                "Network namespaces in which `capture: dns` looks at everything",
                &metrics.unsure_namespaces,
            ),
            (
                "all_namespaces_unsure",
                "1 while `capture: dns` looks at everything everywhere",
                &metrics.all_unsure,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register_with_unit(
            "ca_expiry_timestamp",
            "When a certificate of the CA ends, since 1970",
            Unit::Seconds,
            metrics.ca_expiry.clone(),
        );
        metrics.registry = Arc::new(registry);
        metrics
    }

    /// The families in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a String cannot fail");
        text
    }

    pub fn connection(&self, decision: &'static str, reason: &'static str) {
        self.connections
            .get_or_create(&ConnectionLabels { decision, reason })
            .inc();
    }

    pub fn handshake(&self, side: &'static str, result: &'static str) {
        self.handshakes
            .get_or_create(&HandshakeLabels { side, result })
            .inc();
    }

    pub fn exchange(&self, vault: &Arc<str>, result: &'static str, took: Duration) {
        self.exchanges
            .get_or_create(&ExchangeLabels {
                vault: vault.clone(),
                result,
            })
            .inc();
        self.exchange_seconds.observe(took.as_secs_f64());
    }

    pub fn exchange_retry(&self, vault: &Arc<str>) {
        let vault = vault.clone();
        self.exchange_retries.get_or_create(&VaultLabels { vault }).inc();
    }

    /// The circuit breaker of a vault opened or closed.
    pub fn breaker(&self, vault: &Arc<str>, open: bool) {
        let vault = vault.clone();
        self.breakers_open
            .get_or_create(&VaultLabels { vault })
            .set(i64::from(open));
    }

    pub fn cache_event(&self, event: &'static str) {
        self.cache.get_or_create(&CacheLabels { event }).inc();
    }

    /// `event`: a label of [`crate::token::shared::Event`].
    pub fn shared_cache(&self, event: &'static str) {
        self.shared_cache
            .get_or_create(&SharedCacheLabels { event })
            .inc();
    }

    pub fn request(&self, route: &Arc<str>, result: &'static str, status: u16, took: Duration) {
        let code = match status {
            100..200 => "1xx",
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            _ => "5xx",
        };
        self.requests
            .get_or_create(&RequestLabels {
                route: route.clone(),
                result,
                code,
            })
            .inc();
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// What is believed of a process' trust is another now; None: nothing, it is not known (any more).
    pub fn trust_moved(&self, before: Option<&'static str>, after: Option<&'static str>) {
        for (state, by) in [(before, -1), (after, 1)] {
            if let Some(state) = state {
                self.trust_processes
                    .get_or_create(&StateLabels { state })
                    .inc_by(by);
            }
        }
    }

    pub fn trust_change(&self, state: &'static str, runtime: &'static str) {
        self.trust_changes
            .get_or_create(&ChangeLabels { state, runtime })
            .inc();
    }

    /// A request of a caller who was verified.
    pub fn identity(&self, identity: &str) {
        self.identities.count(identity);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_carry_the_prefix_and_their_labels() {
        let metrics = Metrics::new();
        metrics.connection("tunnel", "not_routed");
        metrics.request(&"github".into(), "forwarded", 200, Duration::from_millis(3));
        let text = metrics.render();
        assert!(
            text.contains(r#"tv_agent_connections_total{decision="tunnel",reason="not_routed"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"tv_agent_requests_total{route="github",result="forwarded",code="2xx"} 1"#),
            "{text}"
        );
    }
}
