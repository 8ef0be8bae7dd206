//! Our certificates by other people's rules: OpenSSL's strict mode, Python's strict context (the default from 3.13 on),
//! the path validator of `cryptography`, and pkilint's RFC 5280 rules.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::{ServerConfig, ServerConnection, Stream};
use tv_agent::ca::{Authority, Leaves};
use tv_agent::metrics::Metrics;
use tv_tests::tools;

const HOST: &str = "api.github.com";

/// Handshakes with a P-256 leaf and, by cipher suites of RSA, with an RSA one; writes what it was shown.
const CONNECT: &str = r#"
import socket, ssl, sys
folder, port = sys.argv[1], int(sys.argv[2])
for name, suites in (("p256", None), ("rsa", "ECDHE-RSA-AES128-GCM-SHA256")):
    context = ssl.create_default_context(cafile=folder + "/root.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if suites:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(suites)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname="api.github.com") as tls:
        leaf = ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True))
        open(f"{folder}/{name}.pem", "w").write(leaf)
        tls.sendall(b"x")
        print(name, tls.cipher()[0], bool(context.verify_flags & ssl.VERIFY_X509_STRICT))
"#;

const VALIDATE: &str = r#"
import sys
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
folder = sys.argv[1]
load = lambda name: x509.load_pem_x509_certificate(open(f"{folder}/{name}.pem", "rb").read())
store = x509.verification.Store([load("root")])
kinds = {"p256": ec.EllipticCurvePublicKey, "rsa": rsa.RSAPublicKey}
for name, kind in kinds.items():
    assert isinstance(load(name).public_key(), kind), name
    verifier = x509.verification.PolicyBuilder().store(store).build_server_verifier(x509.DNSName("api.github.com"))
    print(name, len(verifier.verify(load(name), [load("intermediate")])))
"#;

/// What pkilint says and we mean: its code, and why.
const DELIBERATE: [(&str, &str); 1] = [(
    "pkix.unknown_subject_key_identifier_calculation_method",
    "SHA-256, cut to 20 bytes (RFC 7093 §2): pkilint knows RFC 5280's methods of SHA-1 only",
)];

fn run(program: &str, arguments: &[&str], packages: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("PYTHONPATH", packages)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// A Python whose default context is strict, where there is one.
fn strict_python() -> &'static str {
    ["python3.14", "python3.13"]
        .into_iter()
        .find(|name| {
            Command::new(name)
                .arg("--version")
                .output()
                .is_ok_and(|out| out.status.success())
        })
        .unwrap_or("python3")
}

#[test]
fn root_intermediate_and_leaves_pass_strict_verifiers_and_linters() {
    let packages = tools::install_linters().expect("pip installs the linters");
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("ca");
    tv_agent::ca::init(&dir, &["github.com".into(), "googleapis.com".into(), HOST.into()]).unwrap();
    let authority = Arc::new(Authority::load(&dir).unwrap());
    let folder = temp.path().display().to_string();
    for name in ["root", "intermediate"] {
        std::fs::copy(
            dir.join(format!("{name}.pem")),
            temp.path().join(format!("{name}.pem")),
        )
        .unwrap();
    }
    let leaves = Leaves::new(authority, Arc::new(|_| true), Metrics::new()).unwrap();
    serve(leaves, |address| {
        let port = address.port().to_string();
        for python in [strict_python(), "python3"] {
            let said = run(python, &["-c", CONNECT, &folder, &port], Path::new(""));
            assert!(
                said.contains("p256 TLS_") && said.contains("rsa ECDHE-RSA-"),
                "{python}: {said}"
            );
        }
    });
    let file = |name: &str| format!("{folder}/{name}.pem");
    for leaf in ["p256", "rsa"] {
        let (root, intermediate, leaf) = (file("root"), file("intermediate"), file(leaf));
        let arguments = [
            "verify",
            "-x509_strict",
            "-check_ss_sig",
            "-purpose",
            "sslserver",
            "-verify_hostname",
            HOST,
            "-CAfile",
            &root,
            "-no-CApath",
            "-untrusted",
            &intermediate,
            &leaf,
        ];
        run("openssl", &arguments, Path::new(""));
    }
    let said = run("python3", &["-c", VALIDATE, &folder], &packages);
    assert_eq!(said, "p256 3\nrsa 3\n");

    let lint = |module: &str, files: &[&str]| {
        let fixed = ["-m", module, "lint", "-s", "NOTICE", "-f", "CSV"];
        let output = run_lint(&[&fixed[..], files].concat(), &packages);
        let odd: Vec<&str> = output
            .lines()
            .skip(1)
            .filter(|line| !line.trim().is_empty() && !DELIBERATE.iter().any(|(code, _)| line.contains(code)))
            .collect();
        assert!(odd.is_empty(), "{files:?}: {odd:#?}");
        assert!(output.starts_with("node_path,"), "{output}");
    };
    for name in ["root", "intermediate", "p256", "rsa"] {
        lint("pkilint.bin.lint_pkix_cert", &[&file(name)]);
    }
    for (issuer, subject) in [
        ("root", "intermediate"),
        ("intermediate", "p256"),
        ("intermediate", "rsa"),
    ] {
        let files = [&*file(issuer), &*file(subject)];
        lint("pkilint.bin.lint_pkix_signer_signee_cert_chain", &files);
    }
}

/// pkilint ends with the number of findings.
fn run_lint(arguments: &[&str], packages: &Path) -> String {
    let output = Command::new("python3")
        .args(arguments)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("PYTHONPATH", packages)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("Traceback"), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Answers each connection with nothing, once it has said something.
fn serve(leaves: Leaves, test: impl FnOnce(SocketAddr)) {
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(leaves));
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (mut stream, mut tls) = (stream.unwrap(), ServerConnection::new(config.clone()).unwrap());
                // Who breaks off is the client's to tell.
                let mut tls = Stream::new(&mut tls, &mut stream);
                let _ = tls.read(&mut [0; 1]);
                tls.conn.send_close_notify();
                let _ = tls.flush();
            }
        });
        test(address);
        over.store(true, Ordering::SeqCst);
        std::net::TcpStream::connect(address).unwrap();
    });
}
