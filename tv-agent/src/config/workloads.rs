//! `workloads:` of a route: a cgroup pattern, or a mapping of criteria that must all hold.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_saphyr::Spanned;

use super::Error;
use super::check::Checker;
use crate::policy::Selector;
use crate::workload::{is_pod_uid, uid_of};

/// Fewer digits would match containers by accident.
const CONTAINER_DIGITS: std::ops::RangeInclusive<usize> = 8..=64;

/// As written.
pub enum Raw {
    Cgroup(String),
    Criteria(Box<Criteria>),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Criteria {
    cgroup: Option<Spanned<String>>,
    unit: Option<Spanned<String>>,
    container: Option<Spanned<String>>,
    pod: Option<Spanned<String>>,
    namespace: Option<Spanned<String>>,
    name: Option<Spanned<String>>,
    service_account: Option<Spanned<String>>,
    labels: BTreeMap<String, String>,
    uid: Option<Spanned<u64>>,
    user: Option<Spanned<String>>,
}

/// By hand, since an untagged enum would lose the line and the reason of an error inside.
impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a cgroup path or a mapping of criteria")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Raw, E> {
                Ok(Raw::Cgroup(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Raw, A::Error> {
                Criteria::deserialize(MapAccessDeserializer::new(map)).map(|c| Raw::Criteria(Box::new(c)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Checker<'_> {
    pub(super) fn selector(&self, key: &str, at: Spanned<Raw>) -> Result<Selector, Error> {
        let criteria = match at.value {
            Raw::Cgroup(ref path) => return self.cgroup_glob(key, &at, path).map(Selector::cgroup),
            Raw::Criteria(ref criteria) => criteria,
        };
        let text = |name: &str, value: &Option<Spanned<String>>| match value {
            Some(at) if at.value.is_empty() => {
                let problem = "is empty; allowed: a name, with * for any part of it";
                Err(self.value(&format!("{key}.{name}"), at, "", problem))
            }
            value => Ok(value.as_ref().map(|at| at.value.clone())),
        };
        let cgroup = &criteria.cgroup;
        let cgroup = cgroup
            .as_ref()
            .map(|at| self.cgroup_glob(&format!("{key}.cgroup"), at, &at.value));
        let (uid, user) = self.uid(key, criteria)?;
        let selector = Selector {
            cgroup: cgroup.transpose()?,
            unit: text("unit", &criteria.unit)?,
            container: self.form(key, "container", &criteria.container, is_container, {
                "is no container id; allowed: 8 to 64 hexadecimal digits in lower case"
            })?,
            pod: self.form(key, "pod", &criteria.pod, is_pod_uid, {
                "is no pod UID; allowed: a UID such as 8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff"
            })?,
            namespace: text("namespace", &criteria.namespace)?,
            name: text("name", &criteria.name)?,
            service_account: text("service_account", &criteria.service_account)?,
            labels: criteria.labels.clone(),
            uid,
            user,
        };
        if selector == Selector::default() {
            let problem = "says nothing; allowed: at least one of cgroup, unit, container, pod, namespace, name, \
                           service_account, labels, uid, user, or no workloads at all";
            return Err(self.value(key, &at, "{}", problem));
        }
        Ok(selector)
    }

    pub(super) fn pod_facts(&self, at: Option<&Spanned<PathBuf>>) -> Result<Option<PathBuf>, Error> {
        match at {
            Some(at) if !at.value.is_absolute() => {
                let problem = "is no absolute path; allowed: a directory with a file UID.yaml for each pod";
                Err(self.value("intercept.pod_facts", at, at.value.display(), problem))
            }
            at => Ok(at.map(|at| at.value.clone())),
        }
    }

    fn cgroup_glob<T>(&self, key: &str, at: &Spanned<T>, path: &str) -> Result<String, Error> {
        if path.starts_with('/') {
            return Ok(path.to_owned());
        }
        let problem = "is no cgroup; allowed: a path below the cgroup2 mount, with * for part of a component";
        Err(self.value(key, at, path, problem))
    }

    fn form(
        &self,
        key: &str,
        name: &str,
        value: &Option<Spanned<String>>,
        is_good: fn(&str) -> bool,
        problem: &str,
    ) -> Result<Option<String>, Error> {
        match value {
            Some(at) if !is_good(&at.value) => {
                Err(self.value(&format!("{key}.{name}"), at, &at.value, problem))
            }
            value => Ok(value.as_ref().map(|at| at.value.clone())),
        }
    }

    fn uid(&self, key: &str, criteria: &Criteria) -> Result<(Option<u32>, Option<String>), Error> {
        match (&criteria.uid, &criteria.user) {
            (None, None) => Ok((None, None)),
            (Some(at), None) => match u32::try_from(at.value) {
                Ok(uid) => Ok((Some(uid), None)),
                Err(_) => {
                    let problem = "is no user id; allowed: 0 to 4294967295";
                    Err(self.value(&format!("{key}.uid"), at, at.value, problem))
                }
            },
            (None, Some(at)) => match uid_of(&at.value) {
                Some(uid) => Ok((Some(uid), Some(at.value.clone()))),
                None => {
                    let problem =
                        "is no user of this machine's /etc/passwd; allowed: a name from there, or uid: N";
                    Err(self.value(&format!("{key}.user"), at, &at.value, problem))
                }
            },
            (Some(_), Some(at)) => {
                let problem = "stands beside uid; allowed: one of the two";
                Err(self.value(&format!("{key}.user"), at, &at.value, problem))
            }
        }
    }
}

fn is_container(text: &str) -> bool {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    CONTAINER_DIGITS.contains(&text.len()) && text.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    fn parse(intercept: &str, workloads: &str) -> Result<Config, String> {
        let text = format!(
            "intercept: {{{intercept}}}\nvaults:\n  v: {{kind: auth0_token_vault, domain: t.example, client_id: c, \
             client_auth: {{method: client_secret_post, secret: {{env: S}}}}}}\nroutes:\n  - name: r\n    \
             hosts: [a.example]\n    vault: v\n    connection: c\n    workloads: {workloads}\n"
        );
        Config::parse(&text, Path::new("f"), &|_| Some("s".to_owned())).map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_are_read() {
        let list = r#"["/system.slice/*", {unit: "a*.service", user: root}, {container: 0123456789ab},
            {pod: 8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff},
            {cgroup: /kubepods*, namespace: shop, name: cart-*, service_account: cart, labels: {app: cart, x: ""}},
            {uid: 1000}]"#;
        let config = parse("pod_facts: /run/pods", list).unwrap();
        assert_eq!(
            config.intercept.pod_facts.as_deref(),
            Some(Path::new("/run/pods"))
        );
        let shown: Vec<String> = config.routes[0]
            .workloads
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            shown,
            [
                "/system.slice/*",
                "{unit: a*.service, user: root}",
                "{container: 0123456789ab}",
                "{pod: 8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff}",
                "{cgroup: /kubepods*, namespace: shop, name: cart-*, service_account: cart, labels: {app: cart, x: }}",
                "{uid: 1000}"
            ]
        );
        assert_eq!(config.routes[0].workloads[1].uid, Some(0));
    }

    #[test]
    fn an_error_names_line_key_value_and_what_is_allowed() {
        for (list, wanted) in [
            (
                "[system.slice]",
                "f:9: routes.r.workloads: \"system.slice\" is no cgroup",
            ),
            ("[{}]", "f:9: routes.r.workloads: \"{}\" says nothing"),
            (
                "[{cgroup: a}]",
                "f:9: routes.r.workloads.cgroup: \"a\" is no cgroup",
            ),
            ("[{unit: ''}]", "f:9: routes.r.workloads.unit: \"\" is empty"),
            (
                "[{container: 0123}]",
                "f:9: routes.r.workloads.container: \"0123\" is no container id",
            ),
            (
                "[{pod: cart-0}]",
                "f:9: routes.r.workloads.pod: \"cart-0\" is no pod UID",
            ),
            (
                "[{uid: 4294967296}]",
                "f:9: routes.r.workloads.uid: \"4294967296\" is no user id",
            ),
            (
                "[{user: no-such-user}]",
                "f:9: routes.r.workloads.user: \"no-such-user\" is no user",
            ),
            (
                "[{uid: 1, user: root}]",
                "f:9: routes.r.workloads.user: \"root\" stands beside uid",
            ),
            ("[{unti: a}]", "unti"),
            ("[[a]]", "f:9"),
        ] {
            let error = parse("", list).err().expect(list);
            assert!(error.contains(wanted), "{list}: {error}");
        }
        let error = parse("pod_facts: pods", "[]").err().unwrap();
        let wanted = "f:1: intercept.pod_facts: \"pods\" is no absolute path";
        assert!(error.starts_with(wanted), "{error}");
    }
}
