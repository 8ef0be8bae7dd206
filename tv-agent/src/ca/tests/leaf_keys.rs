//! RSA leaves for clients that verify nothing else, and the change of the CA below running handshakes.

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};

use super::super::mint::Request;
use super::*;

fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

fn server(leaves: Arc<Leaves>) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(leaves);
    Arc::new(config)
}

fn client(provider: CryptoProvider, root: &CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// The certificate that the client was shown.
fn shown(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<CertificateDer<'static>, rustls::Error> {
    let name = ServerName::try_from("a.example.com").unwrap();
    let mut c = ClientConnection::new(client.clone(), name).unwrap();
    let mut s = ServerConnection::new(server.clone()).unwrap();
    while c.is_handshaking() || s.is_handshaking() {
        let mut bytes = Vec::new();
        while c.wants_write() {
            c.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            s.read_tls(&mut rest).unwrap();
            s.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while s.wants_write() {
            s.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            c.read_tls(&mut rest).unwrap();
            c.process_new_packets()?;
        }
    }
    assert_eq!(c.handshake_kind(), Some(HandshakeKind::Full));
    Ok(c.peer_certificates().unwrap()[0].clone().into_owned())
}

fn is_rsa(der: &CertificateDer<'_>) -> bool {
    let (_, x509) = x509_parser::parse_x509_certificate(der).unwrap();
    matches!(
        x509.public_key().parsed(),
        Ok(x509_parser::public_key::PublicKey::RSA(_))
    )
}

/// One whose TLS 1.2 suites are of RSA, as `--ciphers ECDHE-RSA-AES128-GCM-SHA256` makes it.
fn rsa_suites_only() -> CryptoProvider {
    use rustls::crypto::aws_lc_rs::cipher_suite;
    CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256],
        ..provider()
    }
}

#[test]
fn clients_get_rsa_only_where_they_offer_nothing_better() {
    let (leaves, metrics) = leaves(&["example.com"]);
    let leaves = Arc::new(leaves);
    let root = leaves_root(&leaves);
    let server = server(leaves.clone());
    assert!(!is_rsa(&shown(&client(provider(), &root), &server).unwrap()));
    let old = client(rsa_suites_only(), &root);
    let leaf = shown(&old, &server).unwrap();
    assert!(is_rsa(&leaf));
    assert_eq!(shown(&old, &server).unwrap(), leaf, "it is kept");
    assert_eq!(metrics.leaves.get(), 2, "one of each kind");
    let (ok, text) = openssl_verify(&leaves.authority(), &leaf, "a.example.com");
    assert!(ok, "{text}");
}

/// A client that verifies no ECDSA at all cannot have a chain under a P-256 intermediate: it says so, and we too.
#[test]
fn a_client_without_ecdsa_altogether_refuses_the_chain() {
    let (leaves, _) = leaves(&["example.com"]);
    let leaves = Arc::new(leaves);
    let root = leaves_root(&leaves);
    let mut only_rsa = provider();
    let rsa: Vec<_> = only_rsa
        .signature_verification_algorithms
        .mapping
        .iter()
        .filter(|(scheme, _)| format!("{scheme:?}").starts_with("RSA"))
        .copied()
        .collect();
    let mapping: &'static [_] = rsa.leak();
    only_rsa.signature_verification_algorithms = WebPkiSupportedAlgorithms {
        mapping,
        all: mapping[0].1,
    };
    let error = shown(&client(only_rsa, &root), &server(leaves)).unwrap_err();
    assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error:?}");
}

#[test]
fn the_rsa_key_is_made_once_and_only_when_asked_for() {
    let (leaves, _) = leaves(&["example.com"]);
    let ask = |name: &str| leaves.get_at(&host(name), KeyKind::Rsa, now()).unwrap();
    let (first, second) = std::thread::scope(|scope| {
        let (a, b) = (
            scope.spawn(|| ask("a.example.com")),
            scope.spawn(|| ask("b.example.com")),
        );
        (a.join().unwrap(), b.join().unwrap())
    });
    assert!(Arc::ptr_eq(&first.key, &second.key));
    assert!(!Arc::ptr_eq(
        &first.key,
        &leaves.get(&host("a.example.com")).unwrap().key
    ));
}

#[test]
fn another_authority_signs_at_once_and_the_server_stays() {
    let (leaves, _) = leaves(&["example.com"]);
    let leaves = Arc::new(leaves);
    let server = server(leaves.clone());
    let before = client(provider(), &leaves_root(&leaves));
    shown(&before, &server).unwrap();
    let next = Arc::new(Authority::ephemeral(&names(&["example.com"])).unwrap());
    leaves.replace(next.clone());
    let after = client(provider(), next.root_der());
    shown(&after, &server).unwrap();
    shown(&before, &server).unwrap_err();
    assert!(Arc::ptr_eq(&leaves.authority(), &next));
}

/// The interface that a process of its own could serve: it signs no key of another kind, and no other name.
#[test]
fn the_mint_answers_what_it_may_and_nothing_else() {
    let authority = Authority::ephemeral(&names(&["example.com"])).unwrap();
    let key = CaKey::generate().unwrap();
    let public_key = rcgen::PublicKeyData::subject_public_key_info(&key);
    let ask = |name: &str, kind, public_key: &[u8], at| {
        let host = host(name);
        let request = Request {
            host: &host,
            kind,
            public_key,
        };
        authority
            .mint()
            .answer(&request, at)
            .map(|minted| minted.not_after)
    };
    let until = ask("example.com", KeyKind::P256, &public_key, now()).unwrap();
    assert!(until <= now() + Duration::hours(72));
    assert!(matches!(
        ask("example.org", KeyKind::P256, &public_key, now()),
        Err(Error::NotPermitted { .. })
    ));
    assert!(matches!(
        ask("example.com", KeyKind::Rsa, &public_key, now()),
        Err(Error::ForeignKey { .. })
    ));
    for garbage in [&b""[..], b"no key", &[public_key.as_slice(), b"x"].concat()] {
        assert!(matches!(
            ask("example.com", KeyKind::P256, garbage, now()),
            Err(Error::ForeignKey { .. })
        ));
    }
    assert!(matches!(
        ask(
            "example.com",
            KeyKind::P256,
            &public_key,
            now() + Duration::days(366)
        ),
        Err(Error::AuthorityExpired { .. })
    ));
}
