//! The chart and the plain manifests are taken, kept as they are, upgraded, and removed without a trace.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tv_tests::cluster::{self, Kinds};
use tv_tests::fakes::pki::Pki;

use crate::support::{
    UNKNOWN_FIELDS, UNKNOWN_KINDS, documents, install, kind, known, line, lost, releases, remove, rendered,
    versions,
};

/// The chart as it was released before.
const PREVIOUS: &str = include_str!("previous.yaml");

fn everything() -> Value {
    json!({
        "kubernetes": {"enabled": true},
        "serviceMonitor": {"enabled": true},
        "prometheusRule": {"enabled": true},
        "grafanaDashboard": {"enabled": true},
        "ca": {"existingSecret": "tv-agent-root"},
        "webhook": {
            "enabled": true,
            "publicRoots": {"configMap": "public-roots"},
            // Helm's own is another one each time that it is rendered without a cluster.
            "certificate": {"secret": "webhook", "caBundle": Pki::new("webhook's CA").root_pem()},
        },
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "auth0", "key": "client-secret"}}}],
        "envFrom": [{"secretRef": {"name": "more"}}],
        "imagePullSecrets": [{"name": "registry"}],
        "commonLabels": {"team": "platform"},
        "commonAnnotations": {"owner": "platform"},
    })
}

#[test]
fn the_server_takes_every_document_and_keeps_all_that_it_knows() {
    // The plain manifests have a namespace of a fixed name.
    let Some(cluster) = cluster::start() else { return };
    let (api, kinds) = (cluster.admin(), Kinds::of(&cluster.admin()));
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tv-agent"}});
    api.create("/api/v1/namespaces", &namespace).expect_code(201);
    let release = |values| ("tv-agent", "tv-agent", values);
    let mut all = rendered(&[
        release(everything()),
        release(json!({})),
        release(json!({"privileged": true})),
        release(json!({"mode": "cleanup"})),
        release(
            json!({"ca": {"existingSecret": "tv-agent-root"}, "kubernetes": {"enrol": "all"}, "webhook": {"enabled": true}}),
        ),
        release(json!({"metrics": {"exposed": false}, "ca": {"init": false}})),
    ]);
    all.push(documents(include_str!("../../deploy/kubernetes/tv-agent.yaml")));
    all.push(documents(include_str!("../../deploy/kubernetes/cleanup.yaml")));
    for object in all.into_iter().flat_map(known) {
        let path = kinds
            .path(&object)
            .unwrap_or_else(|| panic!("no {}", kind(&object)));
        let answer = api.apply(&path, &object, true);
        assert_eq!(answer.code, 201, "{}: {}", line(&object), answer.message());
        let mut found = Vec::new();
        lost(&object, &answer.body, &line(&object), &mut found);
        assert_eq!(found, Vec::<String>::new());
    }
    let left = kinds.objects(&api, |line| line.contains("tv-agent"));
    assert_eq!(
        left,
        BTreeSet::from(["Namespace /tv-agent".to_owned()]),
        "nothing but asked"
    );
}

/// What [`known`] leaves out, and nothing else: the server names every field that it does not have.
#[test]
fn the_server_knows_all_but_what_is_younger_or_others() {
    let Some(cluster) = cluster::shared() else { return };
    let (api, kinds) = (cluster.admin(), Kinds::of(&cluster.admin()));
    let namespace = cluster.namespace("younger");
    let (mut unknown, mut fields) = (BTreeSet::new(), BTreeSet::new());
    for object in &rendered(&[("tv-agent", &namespace, everything())])[0] {
        let Some(path) = kinds.path(object) else {
            unknown.insert(kind(object));
            continue;
        };
        let answer = api.apply(&path, object, true);
        for line in answer.message().lines().filter(|_| answer.code != 201) {
            if let Some(field) = line.strip_suffix(": field not declared in schema") {
                let (_, field) = field.rsplit_once('.').unwrap();
                fields.insert((object["kind"].as_str().unwrap().to_owned(), field.to_owned()));
            } else {
                assert_eq!(line, "failed to create typed patch object: errors:");
            }
        }
    }
    assert_eq!(unknown, UNKNOWN_KINDS.map(str::to_owned).into());
    assert_eq!(
        fields,
        UNKNOWN_FIELDS
            .map(|(kind, field)| (kind.to_owned(), field.to_owned()))
            .into()
    );
}

#[test]
fn a_release_comes_again_changes_and_goes_without_a_trace() {
    let Some(cluster) = cluster::shared() else { return };
    let (api, kinds) = (cluster.admin(), Kinds::of(&cluster.admin()));
    let namespace = cluster.namespace("release");
    let mine = |line: &str| line.contains(&namespace);
    let before = kinds.objects(&api, mine);
    let mut values = everything();
    let first = ("tv-agent", namespace.as_str(), values.clone());
    values["drainSeconds"] = json!(60);
    values["image"] = json!({"tag": "9.9.9"});
    let second = ("tv-agent", namespace.as_str(), values);
    let last = ("tv-agent", namespace.as_str(), json!({"mode": "cleanup"}));
    let mut all = releases(&[first, second, last]).into_iter();
    let [first, second, last] = [(); 3].map(|()| all.next().unwrap());

    let installed = install(&api, &kinds, &first);
    assert_eq!(installed.len(), 14, "{:?}", installed.keys());
    assert_eq!(
        versions(&install(&api, &kinds, &first)),
        versions(&installed),
        "nothing changes"
    );

    let upgraded = install(&api, &kinds, &second);
    let (old, new) = (versions(&installed), versions(&upgraded));
    let changed: Vec<&str> = old
        .iter()
        .filter(|(line, at)| new[*line] != **at)
        .map(|(line, _)| *line)
        .collect();
    let name = format!("{namespace}/tv-agent");
    assert_eq!(
        changed,
        [
            format!("ConfigMap {name}"),
            format!("DaemonSet {name}"),
            format!("Deployment {name}-webhook")
        ]
    );

    // The way out: agents go, then what they left, then the release.
    remove(&api, &kinds, &second, &last);
    install(&api, &kinds, &last);
    let left: BTreeSet<String> = last.iter().map(line).chain(before.iter().cloned()).collect();
    assert_eq!(kinds.objects(&api, mine), left);
    remove(&api, &kinds, &last, &[]);
    assert_eq!(kinds.objects(&api, mine), before);
}

#[test]
fn two_releases_are_nothing_to_each_other() {
    let Some(cluster) = cluster::shared() else { return };
    let (api, kinds) = (cluster.admin(), Kinds::of(&cluster.admin()));
    let (one, two) = (
        cluster.namespace("side-by-side"),
        cluster.namespace("side-by-side"),
    );
    let sides = [
        ("tv-agent", one.as_str(), everything()),
        // The same name elsewhere, and another one in the same place.
        ("tv-agent", two.as_str(), everything()),
        ("blue", one.as_str(), everything()),
    ];
    let all = releases(&sides);
    let installed: Vec<_> = all.iter().map(|objects| install(&api, &kinds, objects)).collect();
    let lines: BTreeSet<&String> = installed.iter().flat_map(|objects| objects.keys()).collect();
    assert_eq!(
        lines.len(),
        installed.iter().map(|objects| objects.len()).sum::<usize>(),
        "{lines:?}"
    );

    // Each picks its own pods, even in one namespace.
    let sets: Vec<&Value> = all
        .iter()
        .flatten()
        .filter(|object| object["kind"] == "DaemonSet" || object["kind"] == "Deployment")
        .collect();
    assert_eq!(sets.len(), 6);
    for (at, set) in sets.iter().enumerate() {
        let wanted = set["spec"]["selector"]["matchLabels"].as_object().unwrap();
        let picks = |other: &Value| {
            let labels = &other["spec"]["template"]["metadata"]["labels"];
            set["metadata"]["namespace"] == other["metadata"]["namespace"]
                && wanted.iter().all(|(key, value)| labels[key] == *value)
        };
        let picked: Vec<usize> = (0..sets.len()).filter(|other| picks(sets[*other])).collect();
        assert_eq!(picked, [at]);
    }

    remove(&api, &kinds, &all[0], &[]);
    for objects in [1, 2] {
        let now = install(&api, &kinds, &all[objects]);
        assert_eq!(
            versions(&now),
            versions(&installed[objects]),
            "as if the first had never been"
        );
    }
    for objects in [1, 2] {
        remove(&api, &kinds, &all[objects], &[]);
    }
    let left = kinds.objects(&api, |line| line.contains(&one) || line.contains(&two));
    assert_eq!(
        left,
        BTreeSet::from([format!("Namespace /{one}"), format!("Namespace /{two}")])
    );
}

/// A selector, a role's reference and a Service's address cannot be changed in place.
#[test]
fn the_release_before_is_upgraded_and_comes_back() {
    let Some(cluster) = cluster::start() else { return };
    let (api, kinds) = (cluster.admin(), Kinds::of(&cluster.admin()));
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tv-agent"}});
    api.create("/api/v1/namespaces", &namespace).expect_code(201);
    let old = known(documents(PREVIOUS));
    for values in [everything(), json!({}), json!({"mode": "cleanup"})] {
        let new = releases(&[("tv-agent", "tv-agent", values)]).remove(0);
        install(&api, &kinds, &old);
        for (from, to) in [(&old, &new), (&new, &old)] {
            install(&api, &kinds, to);
            remove(&api, &kinds, from, to);
            let there = kinds.objects(&api, |line| line.contains("tv-agent"));
            let wanted: BTreeSet<String> = to
                .iter()
                .map(line)
                .chain(["Namespace /tv-agent".to_owned()])
                .collect();
            assert_eq!(there, wanted);
        }
    }
}
