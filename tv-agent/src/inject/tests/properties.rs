//! Whatever a request holds: the subject token does not stay in it, and nothing breaks.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

use super::*;
use crate::inject::take_client_from_form;
use crate::token::settings::{CallerCredentials, Place as FormPlace};

const TOKEN: &str = "subject-token-of-the-property-0001";
const SECRET: &str = "client-secret-of-the-property-0001";

/// The token as a careless client writes it.
fn written() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(TOKEN.to_owned()),
        Just(format!("Bearer {TOKEN}")),
        Just(format!("\"{TOKEN}\"")),
        Just(utf8_percent_encode(TOKEN, NON_ALPHANUMERIC).to_string()),
        Just(BASE64.encode(format!("user:{TOKEN}"))),
        "[ -~]{0,20}",
    ]
}

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "x-token",
        "cookie",
        "x-other",
        "referer",
        "x-forwarded-authorization",
    ])
}

fn route() -> Credentials {
    Credentials {
        places: vec![
            Place::Header(HeaderName::from_static("x-token")),
            Place::Query("access_token".into()),
            Place::Cookie("at".into()),
        ],
        ..Credentials::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_readable_copy_of_the_token_goes_out(
        fields in prop::collection::vec((name(), written(), "[a-z=;, ]{0,8}", "[a-z=;, ]{0,8}"), 0..6),
        query in prop::collection::vec((prop::sample::select(vec!["access_token", "a", "b"]), written()), 0..4),
        bearer in any::<bool>(),
    ) {
        let mut request = http::Request::get("/x");
        if bearer {
            request = request.header(AUTHORIZATION, format!("Bearer {TOKEN}"));
        }
        for (name, text, before, after) in &fields {
            request = request.header(*name, format!("{before}{text}{after}"));
        }
        let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let address = format!("/x?{}", query.join("&"));
        let Ok(request) = request.uri(address).body(()) else {
            // No HTTP message: hyper refuses it.
            return Ok(());
        };
        let (mut head, ()) = request.into_parts();
        let route = route();
        let host = host("a.example");
        let Ok(Some(presented)) = presented(&head.headers, &head.uri, &host, &route) else {
            return Ok(());
        };
        if presented.subject.expose() != TOKEN {
            return Ok(());
        }
        let ours = Secret::new("provider-token".to_owned());
        if replace(&mut head, Some(&presented), &ours, &route).is_err() {
            return Ok(());
        }
        let mut left: Vec<Vec<u8>> = head.headers.values().map(|value| value.as_bytes().to_vec()).collect();
        left.push(head.uri.to_string().into_bytes());
        for text in left {
            let plain: Vec<u8> = percent_encoding::percent_decode(&text).collect();
            for text in [text, plain] {
                prop_assert!(!contains(&text, TOKEN.as_bytes()), "{:?}", String::from_utf8_lossy(&text));
            }
        }
        prop_assert_eq!(&head.headers[AUTHORIZATION], "Bearer provider-token");
    }

    #[test]
    fn credentials_do_not_stay_in_a_form(before in "[ -~]{0,40}", after in "[ -~]{0,40}") {
        let places = CallerCredentials {
            from: vec![FormPlace::Body],
            id_name: "client_id".into(),
            secret_name: "client_secret".into(),
        };
        let form = format!("{before}&client_id=me&client_secret={SECRET}&{after}");
        match take_client_from_form(form.as_bytes(), &places) {
            Ok((client, rest)) => {
                prop_assert!(client.is_some_and(|client| client.secret.expose() == SECRET));
                prop_assert!(!contains(&rest, SECRET.as_bytes()));
            }
            Err(error) => prop_assert_eq!(error, Error::Client),
        }
    }

    #[test]
    fn any_bytes_are_a_form_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let places = CallerCredentials {
            from: vec![FormPlace::Body],
            id_name: "client_id".into(),
            secret_name: "client_secret".into(),
        };
        if let Ok((None, rest)) = take_client_from_form(&bytes, &places) {
            prop_assert_eq!(&*rest, &bytes);
        }
    }

    #[test]
    fn any_text_is_looked_at_and_only_looked_at(text in "\\PC{0,200}", payload in prop::collection::vec(any::<u8>(), 0..60)) {
        use crate::policy::credentials::Issuer;
        let own = [Issuer::At("tenant.example".into())];
        let token = format!("e30.{}.sig", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(payload));
        for text in [text, token] {
            if let Some(foreign) = foreign(&Secret::new(text), &own) {
                prop_assert!(foreign.to_string().is_ascii());
            }
        }
    }
}
