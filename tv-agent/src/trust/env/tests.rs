//! What becomes of an environment, without a file being looked at.

use super::*;

fn environment(set: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<OsString> {
    move |name| {
        let value = set.iter().find(|(other, _)| *other == name);
        value.map(|(_, value)| value.into())
    }
}

fn paths(keystore: Option<&str>) -> Paths {
    Paths {
        bundle: "/bundle".into(),
        anchors: "/anchors".into(),
        keystore: keystore.map(PathBuf::from),
    }
}

#[test]
fn each_variable_once_and_additive_ones_get_the_anchors_alone() {
    let (settings, kept) = settings(&environment(&[]), &paths(None));
    assert!(kept.is_empty());
    assert_eq!(settings.len(), VARIABLES.len());
    for setting in &settings {
        let same = settings.iter().filter(|other| other.name == setting.name);
        assert_eq!(same.count(), 1, "{setting:?}");
        let expected = match setting.effect {
            Replaces => "/bundle",
            Adds => "/anchors",
        };
        assert_eq!(setting.value, expected, "{setting:?}");
    }
    let adding = settings.iter().filter(|setting| setting.effect == Adds);
    let adding: Vec<_> = adding.map(|setting| setting.name).collect();
    assert_eq!(adding, ["NODE_EXTRA_CA_CERTS", "DENO_CERT"]);
}

#[test]
fn own_values_stay_and_runtimes_that_fall_back_to_them_follow() {
    let own = environment(&[
        ("SSL_CERT_FILE", "/corporate"),
        ("SSL_CERT_DIR", "/a::/b"),
        ("NODE_EXTRA_CA_CERTS", "/node"),
        ("PIP_CERT", ""),
        ("NODE_OPTIONS", "--use-openssl-ca"),
    ]);
    let (settings, kept) = settings(&own, &paths(None));
    assert_eq!(kept, ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "SSL_CERT_DIR"]);
    let value = |name: &str| {
        let setting = settings.iter().find(|setting| setting.name == name);
        setting.map(|setting| setting.value.to_str().unwrap())
    };
    for name in ["CURL_CA_BUNDLE", "NIX_SSL_CERT_FILE", "CARGO_HTTP_CAINFO"] {
        assert_eq!(value(name), Some("/corporate"), "{name}");
    }
    // Those read no SSL_CERT_FILE, and would lose the public roots.
    for name in ["GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE", "PIP_CERT"] {
        assert_eq!(value(name), Some("/bundle"), "{name}");
    }
    for name in [
        "SSL_CERT_FILE",
        "NODE_EXTRA_CA_CERTS",
        "SSL_CERT_DIR",
        "NODE_OPTIONS",
    ] {
        assert_eq!(value(name), None, "{name}");
    }
    let directories = assignments(&own).pop().unwrap();
    assert_eq!(
        directories.source,
        Source::OwnDirectories(vec!["/a".into(), "/b".into()])
    );
}

#[test]
fn java_gets_a_key_store_unless_it_names_its_own() {
    let (set, kept) = settings(&environment(&[(java::OPTIONS, "-Xmx1g")]), &paths(Some("/store")));
    assert!(kept.is_empty());
    let java = set.last().unwrap();
    assert_eq!(java.name, java::OPTIONS);
    assert!(
        java.value
            .to_str()
            .unwrap()
            .starts_with("-Xmx1g -Djavax.net.ssl.trustStore=/store ")
    );
    let own = environment(&[(java::OPTIONS, "-Djavax.net.ssl.trustStore=/own")]);
    let (set, kept) = settings(&own, &paths(Some("/store")));
    assert!(set.iter().all(|setting| setting.name != java::OPTIONS));
    assert_eq!(kept, [java::OPTIONS]);
}
