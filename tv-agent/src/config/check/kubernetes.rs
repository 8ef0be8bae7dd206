//! `kubernetes:`: which node, where the API server is, who is enrolled.

use std::path::{Path, PathBuf};

use serde_saphyr::Spanned;
use url::Url;

use super::super::Error;
use super::super::raw::kubernetes as raw;
use super::Checker;
use crate::kubernetes::{self, Material, Rules, SIDECARS, Server, Settings};
use crate::workload::DEFAULT_PREFIX;

impl Checker<'_> {
    pub(super) fn kubernetes(&self, at: Spanned<raw::Kubernetes>) -> Result<Settings, Error> {
        let server = self.server(&at)?;
        let raw = at.value;
        let node = match &raw.node.value {
            raw::Name::Literal(name) => Some(name.clone()),
            raw::Name::Env(of) => (self.env)(&of.env),
        };
        let node = node.filter(|node| is_subdomain(node)).ok_or_else(|| {
            let shown = match &raw.node.value {
                raw::Name::Literal(name) => name.clone(),
                raw::Name::Env(of) => format!("{{ env: {} }}", of.env),
            };
            let problem = "gives no node's name; allowed: a name as `kubectl get nodes` shows it, or { env: NAME } \
                           of a variable that holds one (spec.nodeName, by the downward API)";
            self.value("kubernetes.node", &raw.node, shown, problem)
        })?;
        let prefix = match &raw.prefix {
            Some(at) if is_subdomain(&at.value) => at.value.clone(),
            Some(at) => {
                let problem = "cannot begin a label's name; allowed: a DNS name such as tv-agent.io";
                return Err(self.value("kubernetes.prefix", at, &at.value, problem));
            }
            None => DEFAULT_PREFIX.to_owned(),
        };
        let exclude = match raw.exclude_containers {
            Some(list) => {
                let names = list.into_iter().map(|at| {
                    if is_label(&at.value) {
                        return Ok(at.value);
                    }
                    let problem =
                        "is no container's name; allowed: at most 63 lower-case letters, digits and -";
                    Err(self.value("kubernetes.exclude_containers", &at, &at.value, problem))
                });
                names.collect::<Result<_, _>>()?
            }
            None => SIDECARS.map(str::to_owned).into(),
        };
        Ok(Settings {
            node,
            server,
            rules: Rules {
                prefix,
                enrol: raw.enrol,
                exclude,
            },
            unknown: raw.unknown,
            events: raw.events.unwrap_or(true),
            pace: kubernetes::Pace::default(),
        })
    }

    fn server(&self, at: &Spanned<raw::Kubernetes>) -> Result<Server, Error> {
        let raw = &at.value;
        let file = |key: &str, at: &Option<Spanned<PathBuf>>| match at {
            Some(at) if !at.value.is_absolute() => {
                let problem = "is no absolute path; allowed: a file that is there when the agent starts";
                Err(self.value(&format!("kubernetes.{key}"), at, at.value.display(), problem))
            }
            at => Ok(at.as_ref().map(|at| Material::File(at.value.clone()))),
        };
        let (token, ca) = (
            file("token_file", &raw.token_file)?,
            file("ca_file", &raw.ca_file)?,
        );
        file("kubeconfig", &raw.kubeconfig)?;
        match (&raw.kubeconfig, &raw.api_server) {
            (Some(at), Some(_)) => {
                let problem = "stands beside api_server; allowed: one of the two";
                Err(self.value("kubernetes.kubeconfig", at, at.value.display(), problem))
            }
            (Some(at), None) => self.kubeconfig(at),
            (None, Some(at)) => {
                let url = Url::parse(&at.value).ok();
                let url = url.filter(|url| {
                    matches!(url.scheme(), "http" | "https")
                        && url.has_host()
                        && url.username().is_empty()
                        && url.query().is_none()
                });
                let url = url.ok_or_else(|| {
                    let problem = "is no address of an API server; allowed: https://HOST:PORT";
                    self.value("kubernetes.api_server", at, &at.value, problem)
                })?;
                if url.scheme() == "http" && token.is_some() {
                    let problem = "would carry the token in clear text; allowed: https, or no token_file";
                    return Err(self.value("kubernetes.api_server", at, &at.value, problem));
                }
                Ok(Server {
                    url,
                    name: None,
                    token,
                    ca,
                    identity: None,
                })
            }
            (None, None) => {
                let mut server = kubernetes::in_cluster(self.env).ok_or_else(|| {
                    let problem = "names no API server, and KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are \
                                   not set as in a pod; allowed: kubeconfig, or api_server with token_file and ca_file";
                    self.value("kubernetes", at, "", problem)
                })?;
                server.token = token.or(server.token);
                server.ca = ca.or(server.ca);
                Ok(server)
            }
        }
    }

    fn kubeconfig(&self, at: &Spanned<PathBuf>) -> Result<Server, Error> {
        let wrong = |problem: String| self.value("kubernetes.kubeconfig", at, at.value.display(), problem);
        let text = crate::files::read_to_string(&at.value);
        let text = text.map_err(|error| wrong(format!("cannot be read ({error}); allowed: a kubeconfig")))?;
        let directory = at.value.parent().unwrap_or(Path::new("/"));
        kubernetes::server_of(&text, directory).map_err(|error| wrong(error.to_string()))
    }
}

/// RFC 1123, as labels' prefixes and nodes' names are written.
fn is_subdomain(text: &str) -> bool {
    (1..=253).contains(&text.len()) && text.split('.').all(is_label)
}

fn is_label(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(plain)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::kubernetes::{Enrol, Unknown};

    use super::*;

    fn parse(kubernetes: &str) -> Result<Config, String> {
        let text = format!("intercept: {{}}\nkubernetes:\n  {kubernetes}\n");
        let env = |name: &str| (name == "NODE_NAME").then(|| "n1.example".to_owned());
        Config::parse(&text, Path::new("f"), &env).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let config = parse("node: { env: NODE_NAME }\n  api_server: https://10.0.0.1:6443").unwrap();
        let settings = config.kubernetes.unwrap();
        assert_eq!(
            (settings.node.as_str(), settings.rules.prefix.as_str()),
            ("n1.example", "tv-agent.io")
        );
        assert_eq!(
            (settings.rules.enrol, settings.unknown),
            (Enrol::Asked, Unknown::Enrol)
        );
        assert!(settings.events && settings.rules.exclude.contains("istio-proxy"));
        let config = parse(
            "node: n2\n  api_server: https://a\n  token_file: /t\n  ca_file: /c\n  prefix: x.y\n  enrol: all\n  \
             unknown: leave\n  exclude_containers: [a]\n  events: false",
        );
        let settings = config.unwrap().kubernetes.unwrap();
        assert_eq!(
            (settings.rules.enrol, settings.unknown),
            (Enrol::All, Unknown::Leave)
        );
        assert_eq!((settings.rules.exclude.len(), settings.events), (1, false));
        assert!(
            parse("node: n2\n  api_server: http://127.0.0.1:8001").is_ok(),
            "a proxy of kubectl"
        );
    }

    #[test]
    fn an_error_names_line_key_value_and_what_is_allowed() {
        for (text, wanted) in [
            (
                "node: ''\n  api_server: https://a",
                "f:3: kubernetes.node: \"\" gives no node",
            ),
            (
                "node: { env: NONE }\n  api_server: https://a",
                "f:3: kubernetes.node: \"{ env: NONE }\" gives no",
            ),
            ("node: n1", "names no API server"),
            (
                "node: n1\n  api_server: ftp://a",
                "f:4: kubernetes.api_server: \"ftp://a\" is no address",
            ),
            (
                "node: n1\n  api_server: http://a\n  token_file: /t",
                "in clear text",
            ),
            (
                "node: n1\n  api_server: https://a\n  token_file: t",
                "f:5: kubernetes.token_file: \"t\" is no abs",
            ),
            (
                "node: n1\n  api_server: https://a\n  prefix: A/b",
                "f:5: kubernetes.prefix: \"A/b\" cannot begin",
            ),
            (
                "node: n1\n  api_server: https://a\n  exclude_containers: [A]",
                "f:5: kubernetes.exclude_containers",
            ),
            (
                "node: n1\n  api_server: https://a\n  kubeconfig: /k",
                "f:5: kubernetes.kubeconfig: \"/k\" stands",
            ),
            (
                "node: n1\n  kubeconfig: /nonexistent/k",
                "f:4: kubernetes.kubeconfig: \"/nonexistent/k\" cannot be",
            ),
            ("node: n1\n  api_server: https://a\n  enrol: some", "enrol"),
            ("node: n1\n  nod: n2", "nod"),
            ("api_server: https://a", "node"),
        ] {
            let error = parse(text).err().expect(text);
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
