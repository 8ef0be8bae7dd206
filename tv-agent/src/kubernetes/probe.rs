//! Whether the API server tells what is asked of it: for `check`.

use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use kube::core::Request;
use kube::core::params::ListParams;

use super::client::Gate;
use super::credentials;
use super::settings::Settings;
use crate::dial::Dialer;
use crate::https::causes;
use crate::limits;

/// Asks for one pod of this node and one namespace.
///
/// # Errors
/// In words: what was refused or failed.
pub async fn probe(settings: &Settings, dialer: Dialer) -> Result<String, String> {
    let credentials = credentials::read(&settings.server).map_err(|error| causes(&error))?;
    let gate = Gate::new(&settings.server, dialer, settings.pace.clone());
    gate.put(&credentials).map_err(|error| causes(&error))?;
    let client = gate.client();
    let node = format!("spec.nodeName={}", settings.node);
    for (what, selector) in [("pods", Some(node)), ("namespaces", None)] {
        let parameters = ListParams {
            field_selector: selector,
            limit: Some(1),
            ..ListParams::default()
        };
        let request = Request::new(format!("/api/v1/{what}"));
        let request = match parameters.field_selector {
            Some(_) => request.list(&parameters),
            None => request.list_metadata(&parameters),
        };
        let request = request.map_err(|error| causes(&error))?;
        let answer = client.send(request.map(Body::from)).await;
        let answer = answer.map_err(|error| format!("{what}: {}", causes(&error)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), limits::API_OBJECT_BYTES).collect();
        // Read, so that the connection ends in order.
        let _ = tokio::time::timeout(Duration::from_secs(5), body).await;
        if !status.is_success() {
            return Err(format!(
                "{what} cannot be listed: the API server answers {status}"
            ));
        }
    }
    Ok(format!("{} answers; node {}", settings.server.url, settings.node))
}
