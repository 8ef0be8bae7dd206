//! The settings of the watch: plain data.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::asked::Rules;
use crate::limits;
use crate::secret::Secret;

pub struct Settings {
    /// This node's name, as its pods name it (`spec.nodeName`).
    pub node: String,
    pub server: Server,
    pub rules: Rules,
    pub unknown: Unknown,
    pub events: bool,
    pub pace: Pace,
}

impl Settings {
    /// All but credentials, to tell whether something has changed.
    pub fn summary(&self) -> String {
        let Self {
            node,
            server,
            rules,
            unknown,
            events,
            ..
        } = self;
        format!("{node} {} {rules:?} {unknown:?} {events}", server.url)
    }
}

/// What becomes of a pod of which nothing is known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    #[default]
    Enrol,
    Leave,
}

/// Where the API server is, and by what it is trusted and asked.
#[derive(Clone)]
pub struct Server {
    pub url: Url,
    /// The name that its certificate has to have, where that is not the address's.
    pub name: Option<String>,
    pub token: Option<Material>,
    /// PEM.
    pub ca: Option<Material>,
    /// A client's certificate and its key, PEM.
    pub identity: Option<(Material, Material)>,
}

impl Server {
    /// The files that are read for it.
    pub fn files(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|(chain, key)| [chain, key]);
        let all = self.token.iter().chain(&self.ca).chain(identity);
        let files = all.filter_map(|material| match material {
            Material::File(path) => Some(path.clone()),
            Material::Inline(_) => None,
        });
        files.collect()
    }
}

/// Something that a file holds, or the configuration itself.
#[derive(Clone)]
pub enum Material {
    File(PathBuf),
    Inline(Arc<Secret>),
}

/// The times of the watch; other ones in tests.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Address, connection, TLS, and the answer's header.
    pub answer: Duration,
    /// One page of a list.
    pub page: Duration,
    /// How long a watch is asked for. Whole seconds, below 295.
    pub watch: Duration,
    /// How much longer than that it may be silent.
    pub grace: Duration,
    /// The first pause after a failure, and the longest.
    pub first: Duration,
    pub most: Duration,
    /// How often credentials are read again.
    pub credentials: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            answer: limits::API_ANSWER_TIME,
            page: limits::API_PAGE_TIME,
            watch: limits::API_WATCH_TIME,
            grace: Duration::from_secs(10),
            first: Duration::from_millis(500),
            most: limits::API_PAUSE_MAX,
            credentials: limits::API_CREDENTIALS_TIME,
        }
    }
}

/// Where a pod finds its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The API server as a pod is told of it; None outside of a cluster.
pub fn in_cluster(env: &dyn Fn(&str) -> Option<String>) -> Option<Server> {
    let host = env("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty())?;
    let port = env("KUBERNETES_SERVICE_PORT").filter(|port| !port.is_empty())?;
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host
    };
    let url = Url::parse(&format!("https://{host}:{port}")).ok()?;
    let file = |name: &str| Material::File(PathBuf::from(ACCOUNT).join(name));
    Some(Server {
        url,
        name: None,
        token: Some(file("token")),
        ca: Some(file("ca.crt")),
        identity: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_where_the_api_server_is() {
        let env = |host: &'static str| {
            move |name: &str| match name {
                "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
                "KUBERNETES_SERVICE_PORT" => Some("6443".to_owned()),
                _ => None,
            }
        };
        assert_eq!(
            in_cluster(&env("10.0.0.1")).unwrap().url.as_str(),
            "https://10.0.0.1:6443/"
        );
        assert_eq!(
            in_cluster(&env("fd00::1")).unwrap().url.as_str(),
            "https://[fd00::1]:6443/"
        );
        assert!(in_cluster(&env("")).is_none());
        assert!(in_cluster(&|_| None).is_none());
    }
}
