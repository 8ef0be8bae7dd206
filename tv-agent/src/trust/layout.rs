//! Where distributions, language runtimes and libraries keep the certificates that they trust. Pure.

/// OpenSSL certificate directories: Debian, Alpine, Arch, and by a link SUSE; RHEL; SUSE's own; newer Fedora.
pub(super) const DIRECTORIES: [&str; 5] = [
    "/etc/ssl/certs",
    "/etc/pki/tls/certs",
    "/var/lib/ca-certificates/pem",
    "/var/lib/ca-certificates/openssl",
    "/etc/pki/ca-trust/extracted/pem/directory-hash",
];

/// Bundles, the first five in the order in which Go looks for them: Debian, Alpine and Arch; RHEL; SUSE; RHEL's own
/// name; Alpine's OpenSSL. Those in OpenSSL's trusted form come last, for not everybody reads it.
pub(super) const BUNDLES: [&str; 13] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/tls/cert.pem",
    "/usr/lib/ssl/cert.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/openssl/ca-bundle.trust.crt",
    "/etc/pki/tls/certs/ca-bundle.trust.crt",
    "/etc/ca-certificates/extracted/ca-bundle.trust.crt",
];

/// Key stores that the distribution keeps for all its Java runtimes: Debian; RHEL, two names; SUSE; Arch.
pub(super) const SYSTEM_KEYSTORES: [&str; 5] = [
    "/etc/ssl/certs/java/cacerts",
    "/etc/pki/ca-trust/extracted/java/cacerts",
    "/etc/pki/java/cacerts",
    "/var/lib/ca-certificates/java-cacerts",
    "/etc/ca-certificates/extracted/java-cacerts.keystore",
];

/// Directories of a Java runtime; `*` stands for one name.
pub(super) const JAVA_HOMES: [&str; 12] = [
    "/usr/lib/jvm/*",
    "/usr/lib64/jvm/*",
    "/usr/java/*",
    "/usr/local/*",
    "/usr/local/lib/*",
    "/opt/*",
    "/opt/*/*",
    "/opt/bitnami/java",
    "/root/.sdkman/candidates/java/*",
    "/home/*/.sdkman/candidates/java/*",
    "/usr/local/sdkman/candidates/java/*",
    "/app/jre",
];

/// Below a Java runtime's directory; where there is a `jssecacerts`, Java reads no `cacerts`.
pub(super) const JAVA_STORES: [&str; 4] = [
    "lib/security/jssecacerts",
    "lib/security/cacerts",
    "jre/lib/security/jssecacerts",
    "jre/lib/security/cacerts",
];

/// Directories of Python packages: of the system, of what is installed beside it, of virtual environments.
pub(super) const PYTHON_PACKAGES: [&str; 24] = [
    "/usr/lib/python3/dist-packages",
    "/usr/lib/python3*/site-packages",
    "/usr/lib/python3*/dist-packages",
    "/usr/lib64/python3*/site-packages",
    "/usr/local/lib/python3*/site-packages",
    "/usr/local/lib/python3*/dist-packages",
    "/usr/local/lib64/python3*/site-packages",
    "/opt/*/lib/python3*/site-packages",
    "/opt/*/*/lib/python3*/site-packages",
    "/opt/pipx/venvs/*/lib/python3*/site-packages",
    "/venv/lib/python3*/site-packages",
    "/.venv/lib/python3*/site-packages",
    "/env/lib/python3*/site-packages",
    "/app/*/lib/python3*/site-packages",
    "/code/*/lib/python3*/site-packages",
    "/srv/*/lib/python3*/site-packages",
    "/srv/*/*/lib/python3*/site-packages",
    "/usr/src/app/*/lib/python3*/site-packages",
    "/workspace/*/lib/python3*/site-packages",
    "/root/*/lib/python3*/site-packages",
    "/root/.local/share/pipx/venvs/*/lib/python3*/site-packages",
    "/home/*/*/lib/python3*/site-packages",
    "/home/*/*/*/lib/python3*/site-packages",
    "/var/lang/lib/python3*/site-packages",
];

/// Below a directory of Python packages: certifi and those that bring a list of their own.
pub(super) const PYTHON_BUNDLES: [&str; 7] = [
    "certifi/cacert.pem",
    "pip/_vendor/certifi/cacert.pem",
    "botocore/cacert.pem",
    "botocore/vendored/requests/cacert.pem",
    "httplib2/cacerts.txt",
    "grpc/_cython/_credentials/roots.pem",
    "requests/cacert.pem",
];

/// How a distribution wants to be told of a root.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Distribution {
    pub(super) name: &'static str,
    /// Directory for a file of each root, and how the file's name ends.
    pub(super) anchors: &'static str,
    pub(super) extension: &'static str,
    /// What then brings the stores up to date.
    pub(super) tool: &'static [&'static str],
    /// The directory in which it links to each root, and what it puts before the link's name.
    pub(super) links: Option<(&'static str, &'static str)>,
}

const RHEL: Distribution = Distribution {
    name: "rhel",
    anchors: "/etc/pki/ca-trust/source/anchors",
    extension: "pem",
    tool: &["update-ca-trust", "extract"],
    links: None,
};
const SUSE: Distribution = Distribution {
    name: "suse",
    anchors: "/etc/pki/trust/anchors",
    extension: "pem",
    tool: &["update-ca-certificates"],
    links: None,
};
const ARCH: Distribution = Distribution {
    name: "arch",
    anchors: "/etc/ca-certificates/trust-source/anchors",
    extension: "crt",
    tool: &["trust", "extract-compat"],
    links: None,
};
const ALPINE: Distribution = Distribution {
    name: "alpine",
    anchors: "/usr/local/share/ca-certificates",
    extension: "crt",
    tool: &["update-ca-certificates"],
    links: Some(("/etc/ssl/certs", "ca-cert-")),
};
const DEBIAN: Distribution = Distribution {
    name: "debian",
    links: Some(("/etc/ssl/certs", "")),
    ..ALPINE
};

/// Told by what only its packages bring; `exists` answers for paths inside the root.
pub(super) fn distribution(exists: &mut dyn FnMut(&str) -> bool) -> Option<&'static Distribution> {
    const BY: [(&[&str], &Distribution); 5] = [
        (&["/etc/pki/ca-trust/source/anchors"], &RHEL),
        (&["/etc/pki/trust/anchors"], &SUSE),
        (&["/etc/ca-certificates/trust-source/anchors"], &ARCH),
        (&["/etc/alpine-release"], &ALPINE),
        (
            &["/usr/local/share/ca-certificates", "/etc/ca-certificates.conf"],
            &DEBIAN,
        ),
    ];
    BY.into_iter()
        .find(|(marks, _)| marks.iter().any(|mark| exists(mark)))
        .map(|(_, distribution)| distribution)
}

/// Whether `name` fits `pattern`, in which a `*` stands for any characters.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((before, after)) => name
            .strip_prefix(before)
            .is_some_and(|rest| rest.len() >= after.len() && rest.ends_with(after)),
        None => pattern == name,
    }
}

/// Whether `name` is that of a hash link, such as `002c0b4f.0`.
pub(super) fn is_hashed(name: &str) -> bool {
    name.split_once('.').is_some_and(|(hash, number)| {
        hash.len() == 8
            && hash.bytes().all(|b| b.is_ascii_hexdigit())
            && !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit())
    })
}
