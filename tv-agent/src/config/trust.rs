//! `trust:`: who is made to trust our CA, and what becomes of those who do not.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::check::Checker;
use super::raw;
use super::*;
use crate::policy::OnUntrusted;

/// Where the copies of stores lie that are mounted into workloads.
pub const DEFAULT_DIR: &str = "/run/tv-agent/trust";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    pub install: Install,
    /// Also into the stores of this host, by its distribution's own means.
    pub host: bool,
    /// For routes that do not say.
    pub on_untrusted: OnUntrusted,
    /// Of copies and records; outlives the agent, not the machine's boot.
    pub dir: PathBuf,
}

/// Whether the CA is brought to workloads that run.
#[derive(Deserialize, Clone, Copy, Default, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Install {
    /// Into the mount namespaces of enrolled processes.
    #[default]
    Live,
    None,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            install: Install::default(),
            host: false,
            on_untrusted: OnUntrusted::default(),
            dir: DEFAULT_DIR.into(),
        }
    }
}

impl Checker<'_> {
    pub(super) fn trust(&self, raw: &raw::Trust) -> Result<Trust, Error> {
        Ok(Trust {
            install: raw.install,
            host: raw.host,
            on_untrusted: raw.on_untrusted,
            dir: match &raw.dir {
                Some(at) => self.trust_dir(at)?,
                None => DEFAULT_DIR.into(),
            },
        })
    }

    /// Everything below it is ours to write and to remove.
    fn trust_dir(&self, at: &Spanned<PathBuf>) -> Result<PathBuf, Error> {
        use std::path::Component;
        let mut parts = at.value.components();
        let absolute = parts.next() == Some(Component::RootDir);
        let mut rest = parts.peekable();
        if absolute && rest.peek().is_some() && rest.all(|part| matches!(part, Component::Normal(_))) {
            return Ok(at.value.clone());
        }
        let problem =
            "is no place for copies; allowed: an absolute path without `..`, such as /run/tv-agent/trust";
        Err(self.value("trust.dir", at, at.value.display(), problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &str) -> Result<Config, String> {
        let text = format!(
            r#"
vaults:
  main: {{ kind: auth0_token_vault, domain: t.example, client_id: x, client_auth: {{ method: client_secret_post, secret: {{ env: S }} }} }}
routes:
  - {{ name: a, hosts: [a.example.com], vault: main, connection: c }}
  - {{ name: b, hosts: [b.example.com], vault: main, connection: c, on_untrusted: refuse }}
{lines}"#
        );
        Config::parse(&text, Path::new("f"), &|_| Some("s".into())).map_err(|error| error.to_string())
    }

    #[test]
    fn a_route_that_does_not_say_follows_the_section() {
        let config = parse("").unwrap();
        assert_eq!(config.trust, Trust::default());
        assert!(
            config
                .routes
                .iter()
                .all(|route| route.on_untrusted == OnUntrusted::Refuse)
        );
        let config =
            parse("trust: { install: none, host: true, on_untrusted: tunnel, dir: /run/x }").unwrap();
        let expected = Trust {
            install: Install::None,
            host: true,
            on_untrusted: OnUntrusted::Tunnel,
            dir: "/run/x".into(),
        };
        assert_eq!(config.trust, expected);
        let said: Vec<_> = config.routes.iter().map(|route| route.on_untrusted).collect();
        assert_eq!(said, [OnUntrusted::Tunnel, OnUntrusted::Refuse]);
    }

    #[test]
    fn each_mistake_names_line_key_value_and_remedy() {
        for (lines, parts) in [
            (
                "trust: { dir: trust }",
                &["f:7: trust.dir: \"trust\"", "absolute path"][..],
            ),
            ("trust: { dir: / }", &["f:7: trust.dir: \"/\"", "absolute path"]),
            ("trust: { dir: /run/../etc }", &["f:7: trust.dir", "without `..`"]),
            (
                "trust:\n  install: always",
                &["f:8: install", "always", "live", "none"],
            ),
            (
                "trust:\n  on_untrusted: bypass",
                &["f:8: on_untrusted", "bypass", "refuse", "tunnel"],
            ),
            ("trust:\n  host: maybe", &["f:8: host"]),
            ("trust: { instal: live }", &["f:7: ", "instal", "install"]),
        ] {
            let error = parse(lines).err().unwrap();
            for part in parts {
                assert!(error.contains(part), "{lines}: {error} lacks {part}");
            }
        }
    }
}
