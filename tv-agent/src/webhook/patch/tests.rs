//! The patch, applied to pods of every kind: it gives what is wanted, twice changes nothing, and the rest stays.

use json_patch::Patch;
use proptest::prelude::*;

use super::*;
use crate::kubernetes::SIDECARS;
use crate::webhook::needs::VARIABLES;

const PATH: &str = "/run/tv-agent/ca";

fn book() -> Rulebook {
    Rulebook {
        rules: Rules {
            prefix: "tv-agent.io".to_owned(),
            enrol: crate::kubernetes::Enrol::Asked,
            exclude: SIDECARS.map(str::to_owned).into(),
        },
        plan: Plan {
            path: PATH.into(),
            variables: VARIABLES.map(str::to_owned).into(),
        },
        config_map: "tv-agent-ca".to_owned(),
    }
}

fn decided(pod: &Value) -> Decision {
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    decide(&pod, true, &book(), "aa,bb")
}

/// The pod as the API server makes it of the answer.
fn patched(pod: &Value) -> Value {
    let mut patched = pod.clone();
    if let Ok(operations) = decided(pod).operations {
        let patch: Patch = serde_json::from_value(operations.into()).unwrap();
        json_patch::patch(&mut patched, &patch).unwrap();
    }
    patched
}

fn pod(containers: Value) -> Value {
    json!({ "metadata": { "name": "web" }, "spec": { "containers": containers } })
}

fn has_mount(container: &Value, volume: &str) -> bool {
    let mounts = container["volumeMounts"].as_array().into_iter().flatten();
    let ours = mounts.filter(|mount| mount["mountPath"] == PATH);
    let ours: Vec<&Value> = ours.collect();
    ours.len() == 1 && ours[0]["name"] == volume && ours[0]["readOnly"] == true
}

fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let env = container["env"].as_array().into_iter().flatten();
    let found: Vec<&Value> = env.filter(|variable| variable["name"] == name).collect();
    assert!(found.len() < 2, "{name} is there twice");
    found.first()?["value"].as_str()
}

#[test]
fn every_container_gets_mount_and_variables_but_those_that_are_excluded() {
    let mut pod = pod(json!([
        { "name": "app", "env": [{ "name": "A", "value": "b" }], "volumeMounts": [] },
        { "name": "istio-proxy" },
        { "name": "logs" },
    ]));
    pod["spec"]["initContainers"] = json!([
        { "name": "migrate", "env": null },
        { "name": "native-sidecar", "restartPolicy": "Always" },
    ]);
    pod["metadata"]["annotations"] = json!({ "tv-agent.io/exclude-containers": "logs", "kept": "yes" });
    let after = patched(&pod);
    let spec = &after["spec"];
    for container in [
        &spec["containers"][0],
        &spec["initContainers"][0],
        &spec["initContainers"][1],
    ] {
        assert!(has_mount(container, "tv-agent-ca"), "{container}");
        assert_eq!(
            variable(container, "NODE_EXTRA_CA_CERTS"),
            Some("/run/tv-agent/ca/roots.pem")
        );
        assert_eq!(
            variable(container, "REQUESTS_CA_BUNDLE"),
            Some("/run/tv-agent/ca/bundle.pem")
        );
    }
    assert_eq!(variable(&spec["containers"][0], "A"), Some("b"));
    for left in [1, 2] {
        assert_eq!(spec["containers"][left], pod["spec"]["containers"][left]);
    }
    assert_eq!(
        spec["volumes"],
        json!([{ "name": "tv-agent-ca",
                 "configMap": { "name": "tv-agent-ca", "defaultMode": 0o444, "optional": true } }])
    );
    let annotations = &after["metadata"]["annotations"];
    assert_eq!(annotations["tv-agent.io/trust"], "injected");
    assert_eq!(annotations["tv-agent.io/trust-roots"], "aa,bb");
    assert_eq!(annotations["kept"], "yes");
    assert_eq!(patched(&after), after, "a pod that has it is left alone");
}

#[test]
fn what_the_pod_sets_stays_and_unknown_names_keep_variables_away() {
    let after = patched(&pod(json!([
        { "name": "own", "env": [
            { "name": "NODE_EXTRA_CA_CERTS", "value": "/own.pem" },
            { "name": "CURL_CA_BUNDLE", "valueFrom": { "configMapKeyRef": { "name": "a", "key": "b" } } },
        ] },
        { "name": "from", "envFrom": [{ "secretRef": { "name": "a" } }] },
    ])));
    let own = &after["spec"]["containers"][0];
    assert_eq!(variable(own, "NODE_EXTRA_CA_CERTS"), Some("/own.pem"));
    assert_eq!(
        variable(own, "REQUESTS_CA_BUNDLE"),
        None,
        "it would be read instead of CURL_CA_BUNDLE"
    );
    assert!(variable(own, "DENO_CERT").is_some());
    let from = &after["spec"]["containers"][1];
    assert!(has_mount(from, "tv-agent-ca") && from["env"].is_null());
}

#[test]
fn a_volume_of_that_name_is_somebody_elses() {
    let mut pod = pod(json!([{ "name": "app" }]));
    pod["spec"]["volumes"] = json!([{ "name": "tv-agent-ca", "emptyDir": {} },
                                    { "name": "tv-agent-ca-2", "configMap": { "name": "tv-agent-ca",
                                       "items": [{ "key": "a", "path": "b" }] } }]);
    let after = patched(&pod);
    assert!(has_mount(&after["spec"]["containers"][0], "tv-agent-ca-3"));
    assert_eq!(after["spec"]["volumes"][2]["configMap"]["name"], "tv-agent-ca");
    // The pod's own volume of our ConfigMap will do.
    pod["spec"]["volumes"] = json!([{ "name": "roots", "configMap": { "name": "tv-agent-ca" } }]);
    let after = patched(&pod);
    assert!(has_mount(&after["spec"]["containers"][0], "roots"));
    assert_eq!(after["spec"]["volumes"].as_array().unwrap().len(), 1);
}

#[test]
fn pods_of_other_kinds_and_those_that_do_not_ask_stay_as_they_are() {
    let with = |place: &str, value: Value| {
        let mut pod = pod(json!([{ "name": "app" }]));
        pod["metadata"]["annotations"] = json!({});
        pod["spec"]["nodeSelector"] = json!({});
        *pod.pointer_mut(place).unwrap() = value;
        pod
    };
    for (pod, why) in [
        (
            with("/spec/nodeSelector", json!({ "kubernetes.io/os": "windows" })),
            Unchanged::OtherKind,
        ),
        (
            with("/spec", json!({ "os": { "name": "windows" } })),
            Unchanged::OtherKind,
        ),
        (
            with(
                "/metadata/annotations",
                json!({ "kubernetes.io/config.mirror": "x" }),
            ),
            Unchanged::OtherKind,
        ),
        (
            with("/metadata/annotations", json!({ "tv-agent.io/enrol": "false" })),
            Unchanged::NotAsked,
        ),
        (
            with(
                "/spec",
                json!({ "hostNetwork": true, "containers": [{ "name": "app" }] }),
            ),
            Unchanged::NotAsked,
        ),
        (with("/spec", json!({ "containers": null })), Unchanged::Nothing),
        (
            with("/spec", json!({ "containers": [{ "name": "istio-proxy" }] })),
            Unchanged::Nothing,
        ),
    ] {
        assert_eq!(decided(&pod).operations, Err(why), "{pod}");
    }
}

#[test]
fn a_container_that_cannot_take_the_mount_is_told_and_the_others_get_it() {
    let pod = pod(json!([
        { "name": "app" },
        { "name": "odd", "volumeMounts": [{ "name": "x", "mountPath": "/run", "readOnly": true }] },
    ]));
    let decision = decided(&pod);
    assert!(decision.warnings[0].contains("odd"), "{:?}", decision.warnings);
    let after = patched(&pod);
    assert!(has_mount(&after["spec"]["containers"][0], "tv-agent-ca"));
    assert_eq!(after["spec"]["containers"][1], pod["spec"]["containers"][1]);
}

#[test]
fn a_pod_of_a_thousand_containers_gets_a_thousand_mounts_and_few_warnings() {
    let containers: Vec<Value> = (0..1000)
        .map(|n| json!({ "name": format!("c{n}"), "envFrom": [{ "configMapRef": { "name": "a" } }] }))
        .collect();
    let pod = pod(containers.into());
    assert_eq!(decided(&pod).warnings.len(), WARNINGS + 1);
    let after = patched(&pod);
    let containers = after["spec"]["containers"].as_array().unwrap();
    assert!(containers.iter().all(|it| has_mount(it, "tv-agent-ca")));
}

/// Some of a container's variables, of those that matter and of others.
fn variables() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
        "NODE_EXTRA_CA_CERTS",
        "PATH",
    ]);
    let value = prop::sample::select(vec!["", "/a.pem", "?"]);
    let one = (name, value).prop_map(|(name, value)| match value {
        "?" => json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": "status.hostIP" } } }),
        value => json!({ "name": name, "value": value }),
    });
    prop_oneof![
        Just(Value::Null),
        prop::collection::vec(one, 0..4).prop_map(|mut list| {
            // Twice the same name is refused by nobody, but `variable` above wants one.
            let mut seen = BTreeSet::new();
            list.retain(|it| seen.insert(it["name"].to_string()));
            Value::from(list)
        }),
    ]
}

fn mounts() -> impl Strategy<Value = Value> {
    let path = prop::sample::select(vec!["/data", "/run", "/run/tv-agent/ca", "/run/tv-agent/ca/x"]);
    let one = (path, any::<bool>())
        .prop_map(|(path, read_only)| json!({ "name": "v", "mountPath": path, "readOnly": read_only }));
    prop_oneof![
        Just(Value::Null),
        prop::collection::vec(one, 0..2).prop_map(Value::from)
    ]
}

fn container() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec!["app", "istio-proxy", "logs"]);
    (name, variables(), mounts(), any::<bool>()).prop_map(|(name, env, mounts, from)| {
        let mut container = json!({ "name": name, "image": "x", "env": env, "volumeMounts": mounts });
        if from {
            container["envFrom"] = json!([{ "configMapRef": { "name": "a" } }]);
        }
        container
    })
}

fn any_pod() -> impl Strategy<Value = Value> {
    let list = || prop::collection::vec(container(), 0..4);
    let volumes = prop::sample::select(vec![
        Value::Null,
        json!([]),
        json!([{ "name": "tv-agent-ca", "secret": { "secretName": "s" } }]),
        json!([{ "name": "v", "configMap": { "name": "tv-agent-ca" } }]),
    ]);
    let annotations = prop::sample::select(vec![
        Value::Null,
        json!({}),
        json!({ "tv-agent.io/exclude-containers": "logs" }),
        json!({ "tv-agent.io/trust": "injected", "tv-agent.io/trust-roots": "old" }),
    ]);
    (list(), list(), volumes, annotations).prop_map(|(containers, init, volumes, annotations)| {
        json!({
            "metadata": { "name": "web", "annotations": annotations },
            "spec": { "containers": containers, "initContainers": init, "volumes": volumes, "subdomain": "s" },
        })
    })
}

proptest! {
    #[test]
    fn twice_changes_nothing_and_what_was_there_stays(pod in any_pod()) {
        let after = patched(&pod);
        prop_assert_eq!(&patched(&after), &after);
        prop_assert_eq!(&after["spec"]["subdomain"], "s");
        for list in ["containers", "initContainers"] {
            let (before, after) = (&pod["spec"][list], &after["spec"][list]);
            let pairs = before.as_array().unwrap().iter().zip(after.as_array().unwrap());
            for (before, after) in pairs {
                for part in ["env", "volumeMounts"] {
                    let old = before[part].as_array().cloned().unwrap_or_default();
                    let new = after[part].as_array().cloned().unwrap_or_default();
                    prop_assert!(new.starts_with(&old), "{part}: {old:?} {new:?}");
                }
                for variable in VARIABLES {
                    super::tests::variable(after, variable);
                }
                let named = after["env"].as_array().into_iter().flatten();
                let bundle = named.filter(|it| it["value"].as_str().is_some_and(|value| value.starts_with(PATH)));
                let mounted = after["volumeMounts"].as_array().into_iter().flatten();
                prop_assert!(
                    bundle.count() == 0 || mounted.filter(|it| it["mountPath"] == PATH).count() >= 1,
                    "a variable names a file that is not there: {after}"
                );
            }
        }
    }
}
