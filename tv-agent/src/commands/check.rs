//! `tv-agent check`: whether this machine, the configuration, the CA and the vaults are ready.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use serde::Serialize;

use super::{chain, load, print, run::missing_cgroups};
use crate::agent;
use crate::ca::{self, Authority};
use crate::cli::{CheckArgs, exit};
use crate::config::{Config, SharedCache, VaultConfig, VerifierConfig};
use crate::data_path;
use crate::redirect;
use crate::strays;
use crate::token::{Vault, shared};
use crate::upstream::roots;
use crate::verify::Verifier;

mod resolvers;
mod trust;

/// One thing that was looked at.
#[derive(Serialize)]
pub(super) struct Finding {
    pub(super) name: String,
    pub(super) ok: bool,
    pub(super) detail: String,
    /// How to mend it, or what to know; empty when there is nothing to say.
    remedy: String,
}

impl Finding {
    fn good(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ok: true,
            detail: detail.into(),
            remedy: String::new(),
        }
    }

    fn bad(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ok: false,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }
}

/// Looks at everything, with the configuration of `config` or of the environment.
pub(super) async fn findings(config: Option<&Path>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = redirect::probe()
        .into_iter()
        .map(|f| Finding {
            name: f.name.to_string(),
            ok: f.ok,
            detail: f.detail,
            remedy: f.remedy.unwrap_or_default(),
        })
        .collect();
    findings.push(match data_path::probe() {
        Ok(detail) => Finding::good("privilege split", detail),
        Err((detail, remedy)) => Finding::bad("privilege split", detail, remedy),
    });
    findings.push(match strays::probe() {
        Ok(detail) => Finding::good("sock_diag", detail),
        Err((detail, remedy)) => Finding::bad("sock_diag", detail, remedy),
    });
    let given = config.is_some();
    match load(config) {
        Ok(config) => {
            findings.push(Finding::good(
                "configuration",
                format!("{} routes", config.routes.len()),
            ));
            findings.extend(cgroups(&config, given));
            if let Ok(mount) = redirect::cgroup2_mount() {
                findings.extend(resolvers::findings(&config, &mount));
            }
            findings.push(authority(&config));
            findings.extend(trust::findings(&config));
            findings.extend(verifiers(config.verifiers).await);
            findings.extend(vaults(config.vaults).await);
            if let Some(cache) = config.shared_cache {
                findings.push(shared_cache(cache).await);
            }
        }
        Err(error) => {
            findings.push(Finding::bad(
                "configuration",
                chain(&error),
                "correct it as the message says",
            ));
        }
    }
    findings
}

pub async fn run(args: &CheckArgs) -> u8 {
    let findings = findings(args.config.as_deref()).await;
    let bad = findings.iter().filter(|f| !f.ok).count();
    print(args.output.output, &findings, || {
        let mut text: String = findings
            .iter()
            .map(|f| {
                let mark = if f.ok { "ok  " } else { "BAD " };
                let remedy = if f.remedy.is_empty() {
                    String::new()
                } else {
                    format!("\n       → {}", f.remedy)
                };
                format!("{mark} {}: {}{remedy}\n", f.name, f.detail)
            })
            .collect();
        text += &if bad == 0 {
            "all is well".to_owned()
        } else {
            format!("{bad} to mend")
        };
        text
    });
    if bad == 0 { exit::OK } else { exit::FAILED }
}

fn cgroups(config: &Config, daemon: bool) -> Vec<Finding> {
    if config.intercept.cgroups.is_empty() {
        // `exec` needs none.
        return if daemon && config.routes.is_empty() {
            vec![Finding::bad(
                "enrolled cgroups",
                "none",
                "name the workloads' cgroups in intercept.cgroups",
            )]
        } else {
            vec![Finding::good(
                "enrolled cgroups",
                "none: `exec` makes its own, `run` needs intercept.cgroups",
            )]
        };
    }
    let Ok(mount) = redirect::cgroup2_mount() else {
        return Vec::new();
    };
    let missing = missing_cgroups(config, &mount);
    if missing.is_empty() {
        return vec![Finding::good(
            "enrolled cgroups",
            config.intercept.cgroups.join(", "),
        )];
    }
    let detail = format!("{} not below {}", missing.join(", "), mount.display());
    vec![Finding::bad(
        "enrolled cgroups",
        detail,
        "create them, or correct intercept.cgroups",
    )]
}

fn authority(config: &Config) -> Finding {
    const NAME: &str = "certificate authority";
    let bad =
        |detail: String| Finding::bad(NAME, detail, "run `tv-agent ca init` with the same configuration");
    let shown = match ca::show(&config.ca_dir) {
        Ok(shown) => shown,
        Err(ca::Error::Missing { .. }) => {
            return Finding::good(
                NAME,
                "none yet: `exec` makes one for each run; `run` needs `tv-agent ca init`",
            );
        }
        Err(error) => return bad(chain(&error)),
    };
    if let Some(problem) = shown.problem {
        return bad(problem);
    }
    match Authority::load(&config.ca_dir) {
        Ok(authority) => {
            if let Err(error) = agent::check_permitted(config, &authority) {
                return bad(chain(&error));
            }
        }
        Err(error) => return bad(chain(&error)),
    }
    let until = shown.intermediate.not_after;
    Finding::good(
        NAME,
        if shown.root_key_on_node {
            format!("good until {until}; the root's key lies on this node, move it away")
        } else {
            format!("good until {until}")
        },
    )
}

async fn verifiers(all: BTreeMap<Arc<str>, VerifierConfig>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, verifier) in all {
        let label = format!("verifier {name}");
        let built = roots::compose(&verifier.extra_roots, &[])
            .map_err(|error| chain(&error))
            .and_then(|roots| {
                Verifier::new(verifier.settings, Arc::new(roots)).map_err(|error| chain(&error))
            });
        let reached = match built {
            Ok(verifier) => verifier.reach().await,
            Err(why) => Err(why),
        };
        findings.push(match reached {
            Ok(detail) => Finding::good(label, detail),
            Err(why) => Finding::bad(label, why, "correct the verifier's settings, or mend its issuer"),
        });
    }
    findings
}

async fn vaults(all: BTreeMap<Arc<str>, VaultConfig>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, vault) in all {
        let label = format!("vault {name}");
        let endpoint = vault.settings.token_endpoint.to_string();
        let built = roots::compose(&vault.extra_roots, &[])
            .map_err(|error| chain(&error))
            .and_then(|roots| Vault::new(vault.settings, Arc::new(roots)).map_err(|error| chain(&error)));
        findings.push(match built {
            Ok(vault) => match vault.reach(Duration::from_secs(5)).await {
                Ok(()) => Finding::good(label, format!("{endpoint} answers over verified TLS")),
                Err(why) => Finding::bad(
                    label,
                    format!("{endpoint}: {why}"),
                    "check the domain, DNS, the network, and extra_roots if the vault's CA is private",
                ),
            },
            Err(why) => Finding::bad(label, why, "correct the vault's settings"),
        });
    }
    findings
}

async fn shared_cache(cache: SharedCache) -> Finding {
    const NAME: &str = "shared cache";
    let server = format!("{}:{}", cache.settings.host, cache.settings.port);
    let roots = if cache.settings.tls {
        roots::compose(&cache.extra_roots, &[]).map_err(|error| chain(&error))
    } else {
        Ok(RootCertStore::empty())
    };
    let reached = match roots {
        Ok(roots) => shared::reach(cache.settings, Arc::new(roots)).await,
        Err(why) => Err(why),
    };
    match reached {
        Ok(()) => Finding::good(NAME, format!("{server} can be used")),
        Err(why) => Finding::bad(
            NAME,
            format!("{server}: {why}"),
            "the agent works without it, each node for itself; mend it before the fleet needs it",
        ),
    }
}
