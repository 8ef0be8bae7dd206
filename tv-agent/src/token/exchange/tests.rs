//! The request on the wire, and every way in which a vault can answer badly or not at all.

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::policy::Wanted;
use crate::token::ErrorKind;
use crate::token::Malformed;
use crate::token::settings::{Kind, TokenVault};
use crate::token::tests::fake::ask;
use crate::token::tests::fake::{Answer, Body, CLIENT_ID, CLIENT_SECRET, Fake, settings};
use base64::Engine as _;

async fn call(vault: &Vault, hint: Option<&str>) -> Result<Granted, ErrorKind> {
    let subject = Secret::new("subject&token=ü".into());
    let wanted = Wanted::connection("git&hub");
    let ask = Ask {
        login_hint: hint,
        ..ask(&wanted, Some(&subject))
    };
    exchange(vault, &ask, None, &Metrics::new()).await
}

/// The failure of one call answered with `answer`, and the calls it took.
async fn failure(answer: Answer, timeout: Duration) -> (ErrorKind, usize) {
    let fake = Fake::always(answer).await;
    let vault = fake.vault_with(|s| s.timeout = timeout);
    let kind = call(&vault, None).await.err().expect("a failure");
    (kind, fake.count())
}

const SOON: Duration = Duration::from_millis(400);

#[tokio::test]
async fn both_encodings_and_both_authentications_arrive_whole() {
    for encoding in [Encoding::Form, Encoding::Json] {
        for in_header in [false, true] {
            let fake = Fake::always(Answer::token("provider", 3600)).await;
            let secret = Secret::new(CLIENT_SECRET.into());
            let vault = fake.vault_with(|s| {
                s.encoding = encoding;
                if in_header {
                    s.client_auth = ClientAuth::SecretBasic(secret);
                }
            });
            let granted = call(&vault, Some("me@example.com")).await.unwrap();
            assert_eq!(granted.token.expose(), "provider");
            let calls = fake.calls();
            let [received] = &calls[..] else {
                panic!("{} calls", calls.len())
            };
            assert_eq!(received.subject(), "subject&token=ü");
            assert_eq!(received.fields["connection"], "git&hub");
            assert_eq!(received.fields["login_hint"], "me@example.com");
            assert_eq!(
                received.fields["requested_token_type"],
                TokenVault::default().requested_token_type()
            );
            assert_eq!(
                received.content_type.ends_with("json"),
                encoding == Encoding::Json
            );
            // The fake has compared id and secret, and refuses both at once.
            assert_eq!(received.authorization.is_some(), in_header);
            assert_eq!(received.accept_encoding, None);
        }
    }
}

#[tokio::test]
async fn options_of_the_request() {
    let fake = Fake::always(Answer::token("provider", 3600)).await;
    let vault = fake.vault_with(|s| {
        s.kind = Kind::TokenVault(TokenVault {
            requested_token_type: Some("urn:other".into()),
            ..TokenVault::default()
        });
    });
    call(&vault, None).await.unwrap();
    let calls = fake.calls();
    assert_eq!(calls[0].fields["requested_token_type"], "urn:other");
    assert!(!calls[0].fields.contains_key("login_hint"));
}

#[test]
fn basic_is_form_encoded_before_base64() {
    let value = https::basic(CLIENT_ID, CLIENT_SECRET);
    let plain = base64::engine::general_purpose::STANDARD
        .decode(value.as_str())
        .unwrap();
    assert_eq!(
        String::from_utf8(plain).unwrap(),
        "client%3Aone+%26:CANARY-client+secret%3A%25%26%2B%C3%A9"
    );
}

#[tokio::test]
async fn a_long_or_endless_answer_is_an_error_and_not_memory() {
    let long = Answer::new(200, "").body(Body::Long(10 << 20));
    let (kind, calls) = failure(long, limits::TOKEN_TIME).await;
    assert!(
        matches!(kind, ErrorKind::InvalidResponse(Malformed::TooLarge)),
        "{kind}"
    );
    assert_eq!(calls, 1);
    let just_over = Answer::new(200, "").body(Body::Long(limits::TOKEN_RESPONSE_BYTES + 1));
    let (kind, _) = failure(just_over, limits::TOKEN_TIME).await;
    assert!(
        matches!(kind, ErrorKind::InvalidResponse(Malformed::TooLarge)),
        "{kind}"
    );
    let fits = Answer::new(200, "").body(Body::Long(limits::TOKEN_RESPONSE_BYTES));
    let (kind, _) = failure(fits, limits::TOKEN_TIME).await;
    assert!(
        matches!(kind, ErrorKind::InvalidResponse(Malformed::NotJson)),
        "{kind}"
    );
    let fake = Fake::speaking(&["http/1.1"], |_, _| {
        Answer::new(200, "").body(Body::Long(10 << 20))
    })
    .await;
    let kind = call(&fake.vault(), None).await.err().unwrap();
    assert!(
        matches!(kind, ErrorKind::InvalidResponse(Malformed::TooLarge)),
        "{kind}"
    );
    let (kind, _) = failure(Answer::new(200, "").body(Body::Endless), SOON).await;
    assert!(matches!(kind, ErrorKind::Timeout(SOON)), "{kind}");
}

#[tokio::test]
async fn an_error_status_counts_however_its_body_is() {
    for body in [Body::Endless, Body::Long(10 << 20)] {
        let answer = Answer::new(429, "").header("retry-after", "3").body(body);
        let (kind, _) = failure(answer, limits::TOKEN_TIME).await;
        let ErrorKind::RateLimited { retry_after, .. } = kind else {
            panic!("{kind}")
        };
        assert_eq!(retry_after, Duration::from_secs(3));
    }
}

#[tokio::test]
async fn silence_is_a_time_out() {
    let (kind, calls) = failure(Answer::token("t", 60).after(Duration::from_secs(60)), SOON).await;
    assert!(matches!(kind, ErrorKind::Timeout(SOON)), "{kind}");
    assert_eq!(calls, 1);
    // Nor is a handshake without an answer waited for: this listener never accepts.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let root = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()])
        .unwrap()
        .cert
        .der()
        .clone();
    let vault = unreachable(
        &format!("https://{}/oauth/token", silent.local_addr().unwrap()),
        root,
        SOON,
    );
    let kind = call(&vault, None).await.err().unwrap();
    assert!(matches!(kind, ErrorKind::Timeout(SOON)), "{kind}");
}

fn unreachable(endpoint: &str, root: CertificateDer<'static>, timeout: Duration) -> Vault {
    let mut settings = settings(endpoint, vec![root]);
    settings.timeout = timeout;
    Vault::new(settings, Arc::new(RootCertStore::empty())).unwrap()
}

#[tokio::test]
async fn a_cut_connection_is_tried_again() {
    for alpn in [&["h2"][..], &["http/1.1"], &[]] {
        let cut = |_, _: &_| Answer::new(200, "").body(Body::Cut);
        let fake = Fake::speaking(alpn, cut).await;
        let kind = call(&fake.vault(), None).await.err().unwrap();
        assert!(matches!(kind, ErrorKind::Broken(_)), "{alpn:?}: {kind}");
        assert_eq!(fake.count(), pace::ATTEMPTS as usize, "{alpn:?}");
        let fake = Fake::speaking(alpn, |n, _| match n {
            0 => Answer::new(200, "").body(Body::Cut),
            _ => Answer::token("provider", 3600),
        })
        .await;
        assert!(call(&fake.vault(), None).await.is_ok(), "{alpn:?}");
    }
}

#[tokio::test]
async fn a_closed_port_and_an_untrusted_certificate_are_no_connection() {
    let fake = Fake::always(Answer::token("t", 3600)).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let vault = unreachable(
        &format!("https://{closed}/oauth/token"),
        fake.root.clone(),
        limits::TOKEN_TIME,
    );
    let kind = call(&vault, None).await.err().unwrap();
    assert!(matches!(kind, ErrorKind::Connect(_)), "{kind}");
    // The same name, another key.
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()])
        .unwrap()
        .cert
        .der()
        .clone();
    let vault = unreachable(
        &format!("https://{}/oauth/token", fake.addr),
        other,
        limits::TOKEN_TIME,
    );
    let kind = call(&vault, None).await.err().unwrap();
    assert!(matches!(kind, ErrorKind::Connect(_)), "{kind}");
    // The right key, another name.
    let vault = unreachable(
        &format!("https://localhost:{}/oauth/token", fake.addr.port()),
        fake.root.clone(),
        limits::TOKEN_TIME,
    );
    let kind = call(&vault, None).await.err().unwrap();
    assert!(matches!(kind, ErrorKind::Connect(_)), "{kind}");
    assert_eq!(fake.count(), 0, "the secret was sent to an unverified peer");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Fake::always(Answer::token("t", 3600)).await;
    for status in [301, 302, 303, 307, 308] {
        let to = format!("https://{}/oauth/token", other.addr);
        let (kind, _) = failure(Answer::new(status, "").header("location", to), limits::TOKEN_TIME).await;
        assert!(
            matches!(kind, ErrorKind::InvalidResponse(Malformed::Status(s)) if s == status),
            "{kind}"
        );
    }
    assert_eq!(other.count(), 0);
}

#[tokio::test]
async fn faults_in_passing_are_repeated_and_others_are_not() {
    let passing = [
        Answer::new(500, "oops"),
        Answer::new(503, ""),
        Answer::new(200, ""),
    ];
    for answer in passing {
        let first = answer.clone();
        let fake = Fake::start(move |n, _| match n {
            0..2 => first.clone(),
            _ => Answer::token("provider", 3600),
        })
        .await;
        assert!(call(&fake.vault(), None).await.is_ok());
        let (_, calls) = failure(answer, limits::TOKEN_TIME).await;
        assert_eq!(calls, pace::ATTEMPTS as usize);
    }
    let lasting = [
        Answer::new(503, "").header("retry-after", "1"),
        Answer::refusal(400, "invalid_grant", ""),
        Answer::new(429, ""),
        Answer::new(200, "<html>"),
    ];
    for answer in lasting {
        let (kind, calls) = failure(answer, limits::TOKEN_TIME).await;
        assert_eq!(calls, 1, "{kind}");
    }
}

#[test]
fn repeated_parameters_are_a_list_in_json() {
    let fields: Fields<'_> = vec![
        ("a", Held::Text("1")),
        ("b", Held::Text("\"")),
        ("a", Held::Text("2")),
        ("c", Held::Made(Secret::new("3".into()))),
        ("a", Held::Text("3")),
    ];
    let text = String::from_utf8(json(&fields).to_vec()).unwrap();
    assert_eq!(text, r#"{"a":["1","2","3"],"b":"\"","c":"3"}"#);
    let text = String::from_utf8(form(&fields).to_vec()).unwrap();
    assert_eq!(text, "a=1&b=%22&a=2&c=3&a=3");
}

#[tokio::test]
async fn a_client_certificate_stands_for_the_secret() {
    let own = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec![name.into()]).unwrap();
        (cert.self_signed(&key).unwrap().der().clone(), key)
    };
    let auth = |cert: &CertificateDer<'static>, key: &rcgen::KeyPair| ClientAuth::TlsClient {
        chain: vec![cert.clone()],
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    };
    let ((cert, key), (other_cert, other_key)) = (own("client.example"), own("other.example"));
    let fake = Fake::believing(&["h2"], Some(cert.clone()), |_, _| {
        Answer::token("provider", 3600)
    })
    .await;
    let vault = fake.vault_with(|s| s.client_auth = auth(&cert, &key));
    assert!(call(&vault, None).await.is_ok());
    let calls = fake.calls();
    assert!(!calls[0].fields.contains_key("client_secret") && calls[0].fields["client_id"] == CLIENT_ID);
    let stranger = fake.vault_with(|s| s.client_auth = auth(&other_cert, &other_key));
    assert!(call(&stranger, None).await.is_err());
    assert_eq!(fake.count(), 1);
    // A key that is not the certificate's is found before anything is asked.
    let mut settings = fake.settings();
    settings.client_auth = auth(&cert, &other_key);
    let error = Vault::new(settings, Arc::new(RootCertStore::empty()))
        .err()
        .unwrap();
    assert!(matches!(error, BuildError::Client { .. }), "{error}");
}

#[tokio::test]
async fn an_exchange_that_is_not_believed_gives_no_token() {
    struct Never;
    impl crate::token::CheckToken for Never {
        fn check<'a>(
            &'a self,
            token: &'a Secret,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
            assert_eq!(token.len(), "provider".len());
            Box::pin(async { Err("its audience is another".to_owned()) })
        }
    }
    let fake = Fake::always(Answer::token("provider", 3600)).await;
    let vault = Vault::new(fake.settings(), Arc::new(RootCertStore::empty())).unwrap();
    let vault = Arc::new(vault.checked_by(Arc::new(Never)));
    let tokens = crate::token::Tokens::new(Metrics::new());
    let subject = Arc::new(Secret::new("s".into()));
    for _ in 0..2 {
        let grant = crate::token::tests::fake::grant(&vault, &subject);
        let error = tokens.obtain(grant).await.err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Unvalidated(_)), "{error}");
        assert_eq!(error.class(), crate::class::Class::VaultInvalidResponse);
    }
    assert_eq!(fake.count(), 1, "remembered for a moment");
}
