//! What the configuration does with workloads that do not trust our CA.

use super::Finding;
use crate::config::{Config, Install};
use crate::policy::OnUntrusted;

const NAME: &str = "trust";

/// A warning for each choice that can leak a token or leave workloads refused; else what will be done.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let warning = |detail: String, remedy: &str| Finding {
        remedy: remedy.to_owned(),
        ..Finding::good(NAME, detail)
    };
    let mut findings = Vec::new();
    if config.trust.install == Install::None && !config.intercept.cgroups.is_empty() {
        findings.push(warning(
            "trust.install: none; workloads in mount namespaces of their own get no CA from the daemon"
                .to_owned(),
            "bring it into their images (`tv-agent trust install --root DIR`), or set trust.install: live",
        ));
    }
    let leaky = config
        .routes
        .iter()
        .filter(|route| route.on_untrusted == OnUntrusted::Tunnel);
    let leaky: Vec<&str> = leaky.map(|route| &*route.name).collect();
    if !leaky.is_empty() {
        findings.push(warning(
            format!(
                "on_untrusted: tunnel for {}: a process that does not trust the CA sends its own token to the provider",
                leaky.join(", ")
            ),
            "on_untrusted: refuse, and bring the CA to those processes; `tv-agent trust list` names them",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::good(
            NAME,
            "processes that do not trust the CA are refused",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn what_leaks_or_leaves_workloads_alone_is_warned_of() {
        let told = |trust: &str| {
            let text = format!(
                r#"
intercept: {{ cgroups: [/a] }}
vaults:
  main: {{ kind: auth0_token_vault, domain: t.example, client_id: x, client_auth: {{ method: client_secret_post, secret: {{ env: S }} }} }}
routes: [{{ name: mail, hosts: [a.example.com], vault: main, connection: c }}]
trust: {trust}"#
            );
            let config = Config::parse(&text, Path::new("f"), &|_| Some("s".into())).unwrap();
            let found = findings(&config);
            assert!(found.iter().all(|finding| finding.ok), "a choice is no fault");
            found
                .into_iter()
                .map(|finding| (finding.detail, finding.remedy))
                .collect::<Vec<_>>()
        };
        let [(detail, remedy)] = &told("{}")[..] else {
            panic!("{:?}", told("{}"))
        };
        assert!(detail.contains("refused") && remedy.is_empty());
        let both = told("{ install: none, on_untrusted: tunnel }");
        assert_eq!(both.len(), 2);
        assert!(both[0].0.contains("trust.install: none") && both[0].1.contains("live"));
        assert!(both[1].0.contains("tunnel for mail") && both[1].1.contains("refuse"));
    }
}
