//! ClientHellos made by rustls itself, whole, split in every place, too long, too slow, and not at all.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::EchGreaseConfig;
use rustls::crypto::hpke::Hpke as _;
use tokio::io::AsyncWriteExt as _;

use super::*;

const CAPS: Caps = Caps {
    bytes: 64 * 1024,
    time: Duration::from_millis(200),
};

fn client_hello(name: &str, alpn: &[&str], grease: bool) -> Vec<u8> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768];
    let provider = Arc::new(provider);
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = if grease {
        let (public, _) = rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128
            .generate_key_pair()
            .unwrap();
        let suite = rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128;
        builder
            .with_ech(EchGreaseConfig::new(suite, public).into())
            .unwrap()
    } else {
        builder.with_safe_default_protocol_versions().unwrap()
    };
    let mut config = builder
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|a| a.as_bytes().to_vec()).collect();
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

async fn first_of(bytes: &[u8], caps: Caps) -> First {
    let (mut ours, mut theirs) = tokio::io::duplex(256 * 1024);
    theirs.write_all(bytes).await.unwrap();
    let (first, seen) = read(&mut ours, caps).await.unwrap();
    assert!(seen.len() <= caps.bytes, "the cap on bytes holds");
    if !matches!(first, First::TooLong) {
        assert!(seen == bytes, "every byte is kept for the replay");
    }
    first
}

#[tokio::test]
async fn a_hello_is_read_whole() {
    let First::Hello(hello) =
        first_of(&client_hello("Api.Example.com", &["h2", "http/1.1"], false), CAPS).await
    else {
        panic!("no hello")
    };
    assert_eq!(hello.sni, HostName::parse("api.example.com"));
    assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert!(!hello.ech);
}

#[tokio::test]
async fn post_quantum_hellos_arrive_in_pieces() {
    let bytes = client_hello("api.example.com", &[], false);
    assert!(bytes.len() > 1300, "offers X25519MLKEM768: {}", bytes.len());
    let (mut ours, mut theirs) = tokio::io::duplex(1);
    let (read, ()) = tokio::join!(
        read(
            &mut ours,
            Caps {
                time: Duration::from_secs(10),
                ..CAPS
            }
        ),
        async {
            theirs.write_all(&bytes).await.unwrap();
        }
    );
    assert!(matches!(read.unwrap().0, First::Hello(_)));
}

#[tokio::test]
async fn a_hello_may_span_records() {
    let whole = client_hello("api.example.com", &[], false);
    let body = &whole[5..];
    let mut split = Vec::new();
    for piece in body.chunks(100) {
        split.extend_from_slice(&whole[..3]);
        split.extend_from_slice(&u16::try_from(piece.len()).unwrap().to_be_bytes());
        split.extend_from_slice(piece);
    }
    let First::Hello(hello) = first_of(&split, CAPS).await else {
        panic!("no hello")
    };
    assert_eq!(hello.sni, HostName::parse("api.example.com"));
}

#[tokio::test]
async fn no_sni_for_an_address_and_ech_is_seen() {
    let First::Hello(hello) = first_of(&client_hello("192.0.2.1", &[], false), CAPS).await else {
        panic!()
    };
    assert_eq!(hello.sni, None);
    let First::Hello(hello) = first_of(&client_hello("public.example", &[], true), CAPS).await else {
        panic!()
    };
    assert!(hello.ech);
}

#[tokio::test]
async fn what_is_no_hello_has_its_own_name() {
    assert_eq!(first_of(b"GET / HTTP/1.1\r\n", CAPS).await, First::NotTls);
    assert_eq!(first_of(&[22, 3, 1, 0, 5, 2, 0, 0, 1, 0], CAPS).await, First::Bad);
    let whole = client_hello("api.example.com", &[], false);
    assert_eq!(first_of(&whole[..100], CAPS).await, First::TooSlow);
    assert_eq!(first_of(b"", CAPS).await, First::Silent);
    let (mut ours, theirs) = tokio::io::duplex(64);
    drop(theirs);
    assert_eq!(read(&mut ours, CAPS).await.unwrap().0, First::Closed);
}

#[tokio::test]
async fn a_hello_longer_than_the_cap_is_cut_off() {
    // A handshake message of 65,535 bytes in records of 16 KiB: with their headers just over the cap.
    let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
    endless.resize(5 + 0x4000, 0);
    for _ in 0..4 {
        endless.extend_from_slice(&[22, 3, 1, 0x40, 0]);
        endless.resize(endless.len() + 0x4000, 0);
    }
    assert!(endless.len() > CAPS.bytes);
    assert_eq!(first_of(&endless, CAPS).await, First::TooLong);
    // One that says in its first bytes that it will be longer is not waited for.
    assert_eq!(
        first_of(&[22, 3, 1, 0, 9, 1, 0x10, 0, 0, 0, 0, 0, 0, 0], CAPS).await,
        First::TooLong
    );
    // And our own cap, where rustls would still take more.
    let whole = client_hello("api.example.com", &[], false);
    assert_eq!(
        first_of(&whole, Caps { bytes: 200, ..CAPS }).await,
        First::TooLong
    );
}
