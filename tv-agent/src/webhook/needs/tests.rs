//! What containers get, and what is left as it was.

use std::collections::BTreeMap;

use super::*;

fn plan(variables: &[&str]) -> Plan {
    Plan {
        path: "/run/tv-agent/ca".into(),
        variables: variables.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn ask(set: &[(&str, &str)], mounts: &[Mounted<'_>], more: bool, plan: &Plan) -> Result<Needs, Left> {
    let set: BTreeMap<&str, &str> = set.iter().copied().collect();
    let seen = Seen {
        variable: &|name| set.get(name).map(|value| (*value).to_owned()),
        more_variables: more,
        mounts,
    };
    needs(&seen, plan)
}

fn names(needs: &Needs) -> Vec<&str> {
    needs.variables.iter().map(|(name, _)| *name).collect()
}

#[test]
fn every_default_variable_is_one_that_runtimes_read() {
    let known: Vec<&str> = env::files().collect();
    for name in VARIABLES {
        assert!(known.contains(&name), "{name}");
    }
}

#[test]
fn variables_that_replace_name_the_bundle_and_those_that_add_our_roots_alone() {
    let needs = ask(&[], &[], false, &plan(&VARIABLES)).unwrap();
    assert!(needs.mount && !needs.withheld);
    assert_eq!(needs.variables.len(), VARIABLES.len());
    for (name, value) in &needs.variables {
        let file = match env::effect(name) {
            Effect::Replaces => "bundle.pem",
            Effect::Adds => "roots.pem",
        };
        assert_eq!(value, &format!("/run/tv-agent/ca/{file}"), "{name}");
    }
    assert!(
        !names(&needs).contains(&"SSL_CERT_FILE"),
        "it would hide the image's own roots"
    );
}

#[test]
fn what_is_set_is_neither_overwritten_nor_shadowed() {
    let all = plan(&VARIABLES);
    let own = ask(&[("NODE_EXTRA_CA_CERTS", "/own.pem")], &[], false, &all).unwrap();
    assert!(!names(&own).contains(&"NODE_EXTRA_CA_CERTS"));
    // An empty value is one, too.
    let empty = ask(&[("AWS_CA_BUNDLE", "")], &[], false, &all).unwrap();
    assert!(!names(&empty).contains(&"AWS_CA_BUNDLE"));
    // requests and pip read it where their own is not set.
    let curl = ask(&[("CURL_CA_BUNDLE", "/corporate.pem")], &[], false, &all).unwrap();
    assert!(!names(&curl).contains(&"REQUESTS_CA_BUNDLE") && !names(&curl).contains(&"PIP_CERT"));
    assert!(names(&curl).contains(&"AWS_CA_BUNDLE"));
}

#[test]
fn no_variable_is_set_where_names_are_unknown() {
    let needs = ask(&[], &[], true, &plan(&VARIABLES)).unwrap();
    assert!(needs.mount && needs.withheld && needs.variables.is_empty());
    assert!(
        !ask(&[], &[], true, &plan(&[])).unwrap().withheld,
        "there was nothing to set"
    );
}

#[test]
fn a_container_that_could_not_start_with_the_mount_is_left_alone() {
    let mounted = |path, read_only, ours| Mounted {
        path,
        read_only,
        ours,
    };
    let ask = |mount| ask(&[], &[mount], false, &plan(&[]));
    assert!(
        !ask(mounted("/run/tv-agent/ca", true, true)).unwrap().mount,
        "it is there"
    );
    assert!(!ask(mounted("/run//tv-agent/./ca/", true, true)).unwrap().mount);
    for path in ["/run/tv-agent/ca", "/run/tv-agent/ca/", "/run/tv-agent/ca/below"] {
        assert!(
            matches!(ask(mounted(path, false, false)), Err(Left::Taken(_))),
            "{path}"
        );
    }
    for path in ["/run", "/run/tv-agent", "/"] {
        assert!(
            matches!(ask(mounted(path, true, false)), Err(Left::ReadOnly(_))),
            "{path}"
        );
        assert!(ask(mounted(path, false, false)).unwrap().mount, "{path}");
    }
    for path in ["/run/tv-agent/ca2", "/data", "/var/run/tv-agent"] {
        assert!(ask(mounted(path, true, false)).unwrap().mount, "{path}");
    }
    // Ours, but elsewhere: the pod mounts the ConfigMap itself.
    assert!(ask(mounted("/etc/ca", true, true)).unwrap().mount);
}
