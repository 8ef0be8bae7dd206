//! The webhook's configuration, a file of its own: it knows no vault, no secret and no route.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::Pace;
use super::needs::{Plan, VARIABLES};
use super::patch::Rulebook;
use crate::config::{Error, explain};
use crate::kubernetes::{Enrol, Rules, SIDECARS};
use crate::limits;
use crate::trust::env;

/// What the webhook works by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// HTTPS, for the API server.
    pub listen: SocketAddr,
    /// HTTP: metrics and health.
    pub metrics: SocketAddr,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// PEM files, or directories of such.
    pub roots: Vec<PathBuf>,
    /// Mozilla's when there is none.
    pub public_roots: Option<PathBuf>,
    /// The service account's access when there is none.
    pub kubeconfig: Option<PathBuf>,
    pub book: Rulebook,
    /// Time for open reviews when it is told to stop.
    pub drain: Duration,
    pub pace: Pace,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: Option<Spanned<String>>,
    #[serde(default)]
    admin: Admin,
    tls: Tls,
    roots: Spanned<Vec<PathBuf>>,
    public_roots: Option<PathBuf>,
    #[serde(default)]
    kubernetes: Kubernetes,
    config_map: Option<Spanned<String>>,
    mount_path: Option<Spanned<PathBuf>>,
    variables: Option<Vec<Spanned<String>>>,
    drain_seconds: Option<Spanned<u64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Admin {
    metrics: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Kubernetes {
    kubeconfig: Option<PathBuf>,
    prefix: Option<Spanned<String>>,
    enrol: Enrol,
    exclude_containers: Option<BTreeSet<String>>,
}

impl Settings {
    /// Reads and checks `file`.
    ///
    /// # Errors
    /// With file, line, key, value, and what is allowed.
    pub fn load(file: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(file).map_err(|source| Error::Read {
            file: file.to_owned(),
            source,
        })?;
        Self::parse(&text, file)
    }

    /// Checks `text`; `file` is its name in errors.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, file: &Path) -> Result<Self, Error> {
        let raw: Raw = serde_saphyr::from_str(text).map_err(|error| {
            let (line, message) = explain(text, &error);
            Error::Syntax {
                file: file.to_owned(),
                line,
                message,
            }
        })?;
        Checker { file }.settings(raw)
    }
}

struct Checker<'a> {
    file: &'a Path,
}

impl Checker<'_> {
    fn settings(&self, raw: Raw) -> Result<Settings, Error> {
        if raw.roots.value.is_empty() {
            let problem =
                "names nothing; allowed: PEM files with the roots of the CA, or directories of such";
            return Err(self.value("roots", &raw.roots, "[]", problem));
        }
        let kubernetes = raw.kubernetes;
        let prefix = match &kubernetes.prefix {
            Some(at) if is_domain(&at.value) => at.value.clone(),
            Some(at) => {
                let problem =
                    "is not a prefix of labels; allowed: a DNS name in small letters, such as tv-agent.io";
                return Err(self.value("kubernetes.prefix", at, &at.value, problem));
            }
            None => "tv-agent.io".to_owned(),
        };
        let config_map = match &raw.config_map {
            Some(at) if is_domain(&at.value) => at.value.clone(),
            Some(at) => {
                let problem = "is not the name of a ConfigMap; allowed: small letters, digits, - and .";
                return Err(self.value("config_map", at, &at.value, problem));
            }
            None => "tv-agent-ca".to_owned(),
        };
        let drain = match &raw.drain_seconds {
            Some(at) if at.value <= limits::DRAIN_TIME_MAX.as_secs() => Duration::from_secs(at.value),
            Some(at) => {
                let problem = "is out of range; allowed: 0 to 3600 seconds";
                return Err(self.value("drain_seconds", at, at.value, problem));
            }
            None => limits::WEBHOOK_DRAIN_TIME,
        };
        Ok(Settings {
            listen: self.address("listen", raw.listen.as_ref(), "0.0.0.0:9443")?,
            metrics: self.address("admin.metrics", raw.admin.metrics.as_ref(), "127.0.0.1:15021")?,
            certificate: raw.tls.certificate,
            key: raw.tls.key,
            roots: raw.roots.value,
            public_roots: raw.public_roots,
            kubeconfig: kubernetes.kubeconfig,
            book: Rulebook {
                rules: Rules {
                    prefix,
                    enrol: kubernetes.enrol,
                    exclude: kubernetes
                        .exclude_containers
                        .unwrap_or_else(|| SIDECARS.map(str::to_owned).into()),
                },
                plan: Plan {
                    path: self.mount_path(raw.mount_path.as_ref())?,
                    variables: self.variables(raw.variables)?,
                },
                config_map,
            },
            drain,
            pace: Pace::default(),
        })
    }

    fn address(&self, key: &str, at: Option<&Spanned<String>>, default: &str) -> Result<SocketAddr, Error> {
        let text = at.map_or(default, |at| &at.value);
        text.parse().map_err(|_| {
            let at = at.expect("the default is an address");
            self.value(
                key,
                at,
                text,
                "is not an address; allowed: IP:PORT such as 0.0.0.0:9443",
            )
        })
    }

    fn mount_path(&self, at: Option<&Spanned<PathBuf>>) -> Result<PathBuf, Error> {
        let Some(at) = at else {
            return Ok("/run/tv-agent/ca".into());
        };
        let text = at.value.to_string_lossy();
        let plain = text
            .split('/')
            .skip(1)
            .all(|part| !["", ".", ".."].contains(&part));
        if !text.starts_with('/') || !plain || text.contains(':') || text.chars().any(char::is_control) {
            let problem = "is not a place in a container; allowed: an absolute path such as /run/tv-agent/ca";
            return Err(self.value("mount_path", at, &text, problem));
        }
        Ok(at.value.clone())
    }

    fn variables(&self, raw: Option<Vec<Spanned<String>>>) -> Result<Vec<String>, Error> {
        let Some(raw) = raw else {
            return Ok(VARIABLES.map(str::to_owned).into());
        };
        let known: Vec<&str> = env::files().collect();
        for at in &raw {
            if !known.contains(&at.value.as_str()) {
                let problem = format!(
                    "is not a variable that names roots; allowed: {}",
                    known.join(", ")
                );
                return Err(self.value("variables", at, &at.value, &problem));
            }
        }
        Ok(raw.into_iter().map(|at| at.value).collect())
    }

    fn value<T>(&self, key: &str, at: &Spanned<T>, value: impl ToString, problem: &str) -> Error {
        Error::Value {
            file: self.file.to_owned(),
            line: at.referenced.line(),
            key: key.to_owned(),
            value: value.to_string(),
            problem: problem.to_owned(),
        }
    }
}

/// A DNS subdomain as Kubernetes takes it for names and prefixes (RFC 1123).
fn is_domain(text: &str) -> bool {
    let part = |part: &str| {
        let inner = part
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        !part.is_empty() && inner && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "tls: { certificate: /tls.crt, key: /tls.key }\nroots: [/root.pem]\n";

    fn parse(more: &str) -> Result<Settings, Error> {
        Settings::parse(&format!("{LEAST}{more}"), Path::new("webhook.yaml"))
    }

    #[test]
    fn files_and_roots_are_all_that_has_to_be_said() {
        let settings = parse("").unwrap();
        assert_eq!(settings.listen, "0.0.0.0:9443".parse().unwrap());
        assert!(settings.metrics.ip().is_loopback());
        assert_eq!(settings.book.config_map, "tv-agent-ca");
        assert_eq!(settings.book.plan.path, Path::new("/run/tv-agent/ca"));
        assert_eq!(settings.book.plan.variables, VARIABLES);
        assert!(settings.book.rules.exclude.contains("istio-proxy") && !settings.book.rules.unsaid());
    }

    #[test]
    fn everything_can_be_said_otherwise() {
        let settings = parse(
            "listen: '[::]:1'\nadmin: { metrics: '0.0.0.0:2' }\npublic_roots: /public.pem\nconfig_map: roots\n\
             kubernetes: { kubeconfig: /k, prefix: a.example, enrol: all, exclude_containers: [x] }\n\
             mount_path: /etc/roots\nvariables: [SSL_CERT_FILE]\ndrain_seconds: 0\n",
        )
        .unwrap();
        assert_eq!(settings.listen.port(), 1);
        assert_eq!(settings.metrics.port(), 2);
        assert_eq!(settings.book.rules.prefix, "a.example");
        assert!(settings.book.rules.unsaid());
        assert_eq!(settings.book.rules.exclude, ["x".to_owned()].into());
        assert_eq!(settings.book.plan.variables, ["SSL_CERT_FILE"]);
        assert_eq!(settings.drain, Duration::ZERO);
    }

    #[test]
    fn a_mistake_is_told_with_line_and_remedy() {
        for (more, told) in [
            (
                "listen: nine",
                "webhook.yaml:3: listen: \"nine\" is not an address",
            ),
            ("admin: { metrics: off }", "admin.metrics"),
            ("mount_path: run", "mount_path"),
            ("mount_path: /", "mount_path"),
            ("mount_path: /a/../b", "mount_path"),
            ("mount_path: '/a:b'", "mount_path"),
            ("config_map: Roots", "config_map"),
            ("kubernetes: { prefix: 'a/b' }", "kubernetes.prefix"),
            ("kubernetes: { enrol: none }", "webhook.yaml:3"),
            ("variables: [PATH]", "allowed: SSL_CERT_FILE"),
            ("drain_seconds: 3601", "0 to 3600"),
            ("vaults: {}", "vaults"),
        ] {
            let error = parse(more).unwrap_err().to_string();
            assert!(error.contains(told), "{more}: {error}");
        }
        for text in ["", "roots: [/a]", "tls: { certificate: a, key: b }\nroots: []"] {
            assert!(Settings::parse(text, Path::new("w")).is_err(), "{text}");
        }
    }
}
