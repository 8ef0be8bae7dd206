//! From the file as written to a configuration that can be used.

use std::path::Path;

use serde_saphyr::Spanned;

use super::raw::{self, Raw, SecretSource};
use super::*;

mod inject;
mod keyset;
mod observe;
mod route;
mod shared;
mod target;
mod vault;
mod verifier;

pub struct Checker<'a> {
    pub file: &'a Path,
    pub env: Env<'a>,
}

impl Checker<'_> {
    pub fn config(&self, raw: Raw) -> Result<Config, Error> {
        let port = match &raw.listen.port {
            Some(port) => self.port("listen.port", port)?,
            None => DEFAULT_PORT,
        };
        let mut intercept = self.intercept(&raw.intercept)?;
        if let Some(at) = raw
            .listen
            .port
            .as_ref()
            .filter(|_| intercept.ports.contains(&port))
        {
            return Err(self.value(
                "listen.port",
                at,
                at.value,
                "is also in intercept.ports; allowed: a port that is not captured",
            ));
        }
        let drain = match &raw.listen.drain_seconds {
            Some(at) if at.value <= limits::DRAIN_TIME_MAX.as_secs() => Duration::from_secs(at.value),
            Some(at) => {
                let problem = "is out of range; allowed: 0 to 3600 seconds";
                return Err(self.value("listen.drain_seconds", at, at.value, problem));
            }
            None => limits::DRAIN_TIME,
        };
        let metrics = match &raw.admin.metrics {
            Some(at) if at.value == "off" => None,
            Some(at) => Some(at.value.parse().map_err(|_| {
                self.value(
                    "admin.metrics",
                    at,
                    &at.value,
                    "is not an address; allowed: IP:PORT such as 127.0.0.1:15020, or off",
                )
            })?),
            None => Some(default_metrics()),
        };
        let keysets = self.keysets(raw.keysets)?;
        let issuers = inject::issuers(&raw.vaults);
        let mut verifiers = BTreeMap::new();
        for (name, verifier) in raw.verifiers {
            let name: Arc<str> = name.into();
            verifiers.insert(name.clone(), self.verifier(&name, verifier)?);
        }
        let (vaults, signers) = self.vaults(raw.vaults, &keysets, &verifiers)?;
        let named = route::Named {
            vaults: &vaults,
            signers: &signers,
            verifiers: &verifiers,
            issuers: &issuers,
        };
        let trust = self.trust(&raw.trust)?;
        let mut names = HashSet::new();
        let mut routes = Vec::new();
        for route in raw.routes {
            if !names.insert(route.value.name.value.clone()) {
                let at = &route.value.name;
                return Err(self.value(
                    "routes[].name",
                    at,
                    &at.value,
                    "is used twice; allowed: a name of its own",
                ));
            }
            routes.push(self.route(route.value, &named, trust.on_untrusted)?);
        }
        let shared_cache = raw.shared_cache.map(|raw| self.shared_cache(raw)).transpose()?;
        let ca_dir = raw.ca.dir.unwrap_or_else(default_ca_dir);
        intercept.capture = self.capture(&raw.intercept, &routes)?;
        Ok(Config {
            intercept,
            port,
            drain,
            vaults,
            verifiers,
            signers,
            keysets,
            keysets_dir: raw.keysets_dir.unwrap_or_else(|| keys_beside(&ca_dir)),
            routes,
            shared_cache,
            extra_roots: raw.upstream.extra_roots,
            socket: raw.admin.socket.unwrap_or_else(default_socket),
            metrics,
            metrics_asked: raw.admin.metrics.is_some(),
            page: raw.admin.page,
            audit: self.audit(&raw.audit)?,
            traces: raw.traces.map(|raw| self.traces(raw)).transpose()?,
            ca_dir,
            trust,
        })
    }

    fn intercept(&self, raw: &raw::Intercept) -> Result<Intercept, Error> {
        let default = Intercept::default();
        let mut cgroups = Vec::new();
        for at in &raw.cgroups {
            let path = at.value.trim_end_matches('/');
            let plain = path
                .split('/')
                .skip(1)
                .all(|part| !part.is_empty() && part != ".." && part != ".");
            if !at.value.starts_with('/') || path.is_empty() || !plain {
                return Err(self.value(
                    "intercept.cgroups",
                    at,
                    &at.value,
                    "cannot be enrolled; allowed: a path below the cgroup2 mount such as /system.slice/billing.service, not the root",
                ));
            }
            cgroups.push(path.to_owned());
        }
        let ports = match &raw.ports {
            Some(list) => list
                .iter()
                .map(|at| self.port("intercept.ports", at))
                .collect::<Result<Vec<_>, _>>()?,
            None => default.ports,
        };
        let bypass = match &raw.bypass_cidrs {
            Some(list) => list
                .iter()
                .map(|at| self.network("intercept.bypass_cidrs", at))
                .collect::<Result<Vec<_>, _>>()?,
            None => default.bypass,
        };
        Ok(Intercept {
            cgroups,
            ports,
            bypass,
            // Told by `capture`, which has to know the routes.
            capture: Capture::All,
            quic: raw.quic,
            on_agent_down: raw.on_agent_down,
            on_unknown_name: raw.on_unknown_name,
            pod_facts: self.pod_facts(raw.pod_facts.as_ref())?,
        })
    }

    pub(super) fn network(&self, key: &str, at: &Spanned<String>) -> Result<IpNet, Error> {
        at.value.parse().map_err(|_| {
            self.value(
                key,
                at,
                &at.value,
                "is not a network; allowed: ADDRESS/LENGTH such as 10.0.0.0/8 or fd00::/8",
            )
        })
    }

    fn port(&self, key: &str, at: &Spanned<u64>) -> Result<u16, Error> {
        u16::try_from(at.value)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| self.value(key, at, at.value, "is not a port; allowed: 1 to 65535"))
    }

    pub(super) fn secret(&self, key: &str, at: &Spanned<SecretSource>) -> Result<Secret, Error> {
        let (source, text) = match &at.value {
            SecretSource::Env(variable) => (variable.clone(), (self.env)(variable)),
            SecretSource::File(path) => (
                path.display().to_string(),
                crate::files::read_to_string(path).ok(),
            ),
        };
        // Files commonly end with a newline that is not part of the secret.
        let text = text
            .map(|t| t.trim_end_matches(['\r', '\n']).to_owned())
            .filter(|t| !t.is_empty());
        text.map(Secret::new).ok_or_else(|| {
            let problem = "gives no secret; allowed: { env: NAME } of a variable that is set, or { file: PATH } of a readable file that is not empty";
            self.value(key, at, source, problem)
        })
    }

    pub(super) fn value<T>(
        &self,
        key: &str,
        at: &Spanned<T>,
        value: impl ToString,
        problem: impl Into<String>,
    ) -> Error {
        Error::Value {
            file: self.file.to_owned(),
            line: at.referenced.line(),
            key: key.to_owned(),
            value: value.to_string(),
            problem: problem.into(),
        }
    }
}

/// A parser's error: its line, and what is wrong with which key and value there.
pub fn explain(text: &str, error: &serde_saphyr::Error) -> (Option<u64>, String) {
    let plain = error.without_snippet().to_string();
    let Some(location) = error.location() else {
        return (None, plain);
    };
    let (line, column) = (location.line(), location.column());
    let column = usize::try_from(column).unwrap_or(0);
    let message = plain.split(" at line ").next().unwrap_or(&plain);
    let source = usize::try_from(line)
        .ok()
        .and_then(|n| text.lines().nth(n.saturating_sub(1)))
        .unwrap_or("");
    let message = match key_before(source, column) {
        // The value there may be the secret itself, written where its source belongs.
        Some(key @ ("secret" | "password")) => {
            format!("{key}: must be {{ env: NAME }} or {{ file: PATH }}, never the secret itself")
        }
        Some("keys") => {
            "keys: must be a list of { env: NAME } or { file: PATH }, never a key itself".to_owned()
        }
        Some(key @ "client_auth") => format!("{key}: {message}"),
        Some(key) => match (value_at(source, column), wanted(message)) {
            (Some(value), Some(wanted)) => format!("{key}: {value:?} {wanted}"),
            _ => format!("{key}: {message}"),
        },
        None => message.to_owned(),
    };
    (Some(line), message)
}

/// What the parser wanted where it found a value of another form.
fn wanted(message: &str) -> Option<&'static str> {
    match message {
        "expected sequence start" => Some("is not a list; allowed: a list"),
        "expected mapping start" => Some("is not a mapping; allowed: keys with values"),
        "invalid u64" => Some("is not a number; allowed: a whole number"),
        _ => None,
    }
}

/// The scalar that begins at `column` (counted from 1), as far as it stands on this line.
fn value_at(source: &str, column: usize) -> Option<&str> {
    let start = source.char_indices().nth(column.checked_sub(1)?)?.0;
    let rest = source.get(start..)?;
    let rest = rest.split(" #").next().unwrap_or(rest);
    let end = rest.find([',', ']', '}']).unwrap_or(rest.len());
    Some(rest[..end].trim().trim_matches(['"', '\''])).filter(|value| !value.is_empty())
}

/// The last `key:` on the line before `column` (counted from 1).
fn key_before(line: &str, column: usize) -> Option<&str> {
    let end = line
        .char_indices()
        .nth(column.saturating_sub(1))
        .map_or(line.len(), |(at, _)| at);
    let before = &line[..end];
    let colon = before.rfind(':')?;
    let start = before[..colon]
        .rfind([' ', '{', ',', '-', '"', '\''])
        .map_or(0, |at| at + 1);
    Some(before[start..colon].trim()).filter(|key| !key.is_empty())
}
