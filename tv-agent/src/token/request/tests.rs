//! Each kind and preset against its documented wire format.

use super::*;
use crate::token::settings::{ActorFrom, JWT_BEARER, Preset, TOKEN_EXCHANGE};
use crate::token::tests::fake::ask;

fn text(kind: &Kind, ask: &Ask<'_>) -> Vec<(String, String)> {
    let list = parameters(kind, ask).unwrap_or_else(|missing| panic!("{missing}"));
    list.into_iter()
        .map(|(name, value)| {
            let value = match value {
                Value::Text(text) => text.to_owned(),
                Value::Secret(secret) => secret.expose().to_owned(),
                Value::Signed(_, user) => format!("signed for {user}"),
            };
            (name.to_owned(), value)
        })
        .collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect()
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn exchange(preset: Preset) -> TokenExchange {
    TokenExchange {
        preset,
        grant_type: preset.grant_type().to_owned(),
        subject_token_type: (preset != Preset::EntraObo).then(|| ACCESS_TOKEN.to_owned()),
        requested_token_type: (preset != Preset::EntraObo).then(|| ACCESS_TOKEN.to_owned()),
        wanted: Wanted::default(),
        extra: Vec::new(),
        actor: None,
    }
}

fn subject() -> Secret {
    Secret::new("the subject".into())
}

#[test]
fn token_vault_by_access_and_by_refresh_token() {
    let (subject, wanted) = (subject(), Wanted::connection("google-oauth2"));
    let vault = |subject| {
        Kind::TokenVault(TokenVault {
            subject,
            requested_token_type: None,
        })
    };
    for (kind, token_type) in [
        (VaultSubject::AccessToken, ACCESS_TOKEN),
        (VaultSubject::RefreshToken, REFRESH_TOKEN),
    ] {
        let expected = pairs(&[
            (
                "grant_type",
                "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token",
            ),
            ("subject_token", "the subject"),
            ("subject_token_type", token_type),
            (
                "requested_token_type",
                "http://auth0.com/oauth/token-type/federated-connection-access-token",
            ),
            ("connection", "google-oauth2"),
        ]);
        assert_eq!(text(&vault(kind), &ask(&wanted, Some(&subject))), expected);
    }
    let hinted = Ask {
        login_hint: Some("me@example.com"),
        ..ask(&wanted, Some(&subject))
    };
    let last = text(&vault(VaultSubject::AccessToken), &hinted).pop();
    assert_eq!(last, pairs(&[("login_hint", "me@example.com")]).pop());
    let none = Wanted::default();
    let missing = |ask: &Ask<'_>| parameters(&vault(VaultSubject::AccessToken), ask).err();
    assert_eq!(missing(&ask(&wanted, None)), Some(Missing::Subject));
    assert_eq!(missing(&ask(&none, Some(&subject))), Some(Missing::Connection));
}

#[test]
fn the_privileged_worker_asks_without_a_token() {
    let kind = Kind::TokenVault(TokenVault {
        subject: VaultSubject::Worker(crate::token::assertion::tests::worker()),
        requested_token_type: None,
    });
    let wanted = Wanted {
        scope: Some("read".into()),
        ..Wanted::connection("github")
    };
    let named = Ask {
        user: Some("auth0|1"),
        ..ask(&wanted, None)
    };
    let expected = pairs(&[
        (
            "grant_type",
            "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token",
        ),
        ("subject_token", "signed for auth0|1"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        (
            "requested_token_type",
            "http://auth0.com/oauth/token-type/token-vault-access-token",
        ),
        ("connection", "github"),
        ("scope", "read"),
    ]);
    assert_eq!(text(&kind, &named), expected);
    for user in [None, Some("")] {
        let nobody = Ask {
            user,
            ..ask(&wanted, None)
        };
        assert_eq!(parameters(&kind, &nobody).err(), Some(Missing::User));
    }
}

#[test]
fn rfc_8693_with_everything() {
    let actor = Secret::new("the actor".into());
    let settings = TokenExchange {
        requested_token_type: None,
        wanted: Wanted {
            audience: words(&["unused"]),
            resource: words(&["https://r/1", "https://r/2"]),
            scope: Some("unused".into()),
            ..Wanted::default()
        },
        extra: vec![("x".into(), "1".into())],
        actor: Some(Actor {
            from: ActorFrom::Own,
            token_type: "urn:actor".into(),
        }),
        ..exchange(Preset::Generic)
    };
    let kind = Kind::TokenExchange(settings);
    let wanted = Wanted {
        audience: words(&["a", "b"]),
        scope: Some("read write".into()),
        ..Wanted::default()
    };
    let subject = subject();
    let acting = Ask {
        actor: Some(&actor),
        ..ask(&wanted, Some(&subject))
    };
    let expected = pairs(&[
        ("grant_type", TOKEN_EXCHANGE),
        ("subject_token", "the subject"),
        ("subject_token_type", ACCESS_TOKEN),
        ("actor_token", "the actor"),
        ("actor_token_type", "urn:actor"),
        ("audience", "a"),
        ("audience", "b"),
        ("resource", "https://r/1"),
        ("resource", "https://r/2"),
        ("scope", "read write"),
        ("x", "1"),
    ]);
    assert_eq!(text(&kind, &acting), expected);
    assert_eq!(
        parameters(&kind, &ask(&wanted, Some(&subject))).err(),
        Some(Missing::Actor)
    );
    assert_eq!(
        parameters(&kind, &ask(&wanted, None)).err(),
        Some(Missing::Subject)
    );
    let own = Ask {
        own: true,
        ..ask(&wanted, None)
    };
    assert_eq!(text(&kind, &own), pairs(&[("grant_type", "client_credentials")]));
}

#[test]
fn each_preset_speaks_its_dialect() {
    let subject = subject();
    let audience = Wanted {
        audience: words(&["https://orders.example"]),
        ..Wanted::default()
    };
    for preset in [Preset::Generic, Preset::Keycloak, Preset::Okta, Preset::Auth0Obo] {
        let expected = pairs(&[
            ("grant_type", TOKEN_EXCHANGE),
            ("subject_token", "the subject"),
            ("subject_token_type", ACCESS_TOKEN),
            ("requested_token_type", ACCESS_TOKEN),
            ("audience", "https://orders.example"),
        ]);
        let kind = Kind::TokenExchange(exchange(preset));
        assert_eq!(
            text(&kind, &ask(&audience, Some(&subject))),
            expected,
            "{preset:?}"
        );
    }
    let scope = Wanted {
        scope: Some("https://graph.microsoft.com/.default".into()),
        ..Wanted::default()
    };
    let expected = pairs(&[
        ("grant_type", JWT_BEARER),
        ("assertion", "the subject"),
        ("scope", "https://graph.microsoft.com/.default"),
        ("requested_token_use", "on_behalf_of"),
    ]);
    let kind = Kind::TokenExchange(exchange(Preset::EntraObo));
    assert_eq!(text(&kind, &ask(&scope, Some(&subject))), expected);
}

#[test]
fn client_credentials_for_auth0() {
    let kind = Kind::ClientCredentials(ClientCredentials {
        wanted: Wanted {
            audience: words(&["https://api.example"]),
            ..Wanted::default()
        },
        extra: vec![("organization".into(), "org_1".into())],
        ..ClientCredentials::default()
    });
    let none = Wanted::default();
    let expected = pairs(&[
        ("grant_type", "client_credentials"),
        ("audience", "https://api.example"),
        ("organization", "org_1"),
    ]);
    assert_eq!(text(&kind, &ask(&none, None)), expected);
    // The user's token, if there is one, stays out of it.
    assert_eq!(text(&kind, &ask(&none, Some(&subject()))), expected);
}
