//! A kubeconfig's current context, as far as it can be used without running anything. Pure.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use serde::Deserialize;
use url::Url;

use super::settings::{Material, Server};
use crate::secret::Secret;

/// The parts of a kubeconfig (client-go, clientcmd/api/v1) that are looked at.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: Option<String>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Option<Context>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    proxy_url: Option<String>,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<User>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    username: Option<String>,
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("is no kubeconfig: {0}")]
    Form(String),
    #[error("has no {0}")]
    Lacks(&'static str),
    #[error(
        "asks for {0}, which is not supported; allowed: a token, a token's file, or a client certificate"
    )]
    Unsupported(&'static str),
    #[error("holds a {0} that is not base64 of PEM")]
    Data(&'static str),
}

/// Where the current context of the kubeconfig `text`, which stands in `directory`, leads.
///
/// # Errors
/// When it leads nowhere, or by a way that is not supported.
pub fn server(text: &str, directory: &Path) -> Result<Server, Error> {
    let config: Kubeconfig =
        serde_saphyr::from_str(text).map_err(|error| Error::Form(error.without_snippet().to_string()))?;
    let current = config.current_context.ok_or(Error::Lacks("current-context"))?;
    let context = config.contexts.into_iter().find(|named| named.name == current);
    let context = context
        .and_then(|named| named.context)
        .ok_or(Error::Lacks("context"))?;
    let cluster = config
        .clusters
        .into_iter()
        .find(|named| named.name == context.cluster);
    let cluster = cluster
        .and_then(|named| named.cluster)
        .ok_or(Error::Lacks("cluster"))?;
    let user = context
        .user
        .and_then(|user| config.users.into_iter().find(|named| named.name == user));
    let user = user.and_then(|named| named.user).unwrap_or_default();
    if cluster.insecure_skip_tls_verify == Some(true) {
        return Err(Error::Unsupported("insecure-skip-tls-verify"));
    }
    if cluster.proxy_url.is_some() {
        return Err(Error::Unsupported("proxy-url"));
    }
    if user.exec.is_some() || user.auth_provider.is_some() || user.username.is_some() {
        return Err(Error::Unsupported("an exec plugin, a provider or a password"));
    }
    let file = |path: String| -> PathBuf { directory.join(path) };
    let of = |data: Option<String>, path: Option<String>, what| match (data, path) {
        (Some(data), _) => inline(&data, what).map(Some),
        (None, path) => Ok(path.map(|path| Material::File(file(path)))),
    };
    let url = cluster.server.ok_or(Error::Lacks("server"))?;
    let url = Url::parse(&url).map_err(|_| Error::Lacks("server's address"))?;
    let token = user
        .token
        .map(|token| Material::Inline(Arc::new(Secret::new(token))));
    let chain = of(
        user.client_certificate_data,
        user.client_certificate,
        "client certificate",
    )?;
    let key = of(user.client_key_data, user.client_key, "client key")?;
    Ok(Server {
        url,
        name: cluster.tls_server_name,
        // kubectl prefers the file, which changes (client-go, rest.TLSConfigFor and transport).
        token: user.token_file.map(|path| Material::File(file(path))).or(token),
        ca: of(
            cluster.certificate_authority_data,
            cluster.certificate_authority,
            "CA",
        )?,
        identity: chain.zip(key),
    })
}

fn inline(data: &str, what: &'static str) -> Result<Material, Error> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(data.trim());
    let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.ok_or(Error::Data(what))?;
    Ok(Material::Inline(Arc::new(Secret::new(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(cluster: &str, user: &str) -> Result<Server, Error> {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
        );
        server(&text, Path::new("/etc/kube"))
    }

    #[test]
    fn the_current_context_is_followed() {
        let found = parse(
            "server: 'https://10.0.0.1:6443', certificate-authority: ca.pem, tls-server-name: kubernetes",
            "tokenFile: /run/token, client-certificate-data: YQ==, client-key: key.pem",
        )
        .unwrap();
        assert_eq!(found.url.as_str(), "https://10.0.0.1:6443/");
        assert_eq!(found.name.as_deref(), Some("kubernetes"));
        let path = |material: Option<Material>| match material {
            Some(Material::File(path)) => path.display().to_string(),
            Some(Material::Inline(_)) => "inline".to_owned(),
            None => "none".to_owned(),
        };
        assert_eq!(path(found.ca), "/etc/kube/ca.pem");
        assert_eq!(path(found.token), "/run/token");
        let (chain, key) = found.identity.unwrap();
        assert_eq!(
            (path(Some(chain)), path(Some(key))),
            ("inline".into(), "/etc/kube/key.pem".into())
        );
        let found = parse("server: 'https://a'", "token: abc").unwrap();
        assert_eq!(path(found.token), "inline");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (cluster, user, wanted) in [
            (
                "server: 'https://a', insecure-skip-tls-verify: true",
                "",
                "insecure-skip-tls-verify",
            ),
            ("server: 'https://a', proxy-url: 'http://b'", "", "proxy-url"),
            ("server: 'https://a'", "username: a, password: b", "password"),
            (
                "server: 'https://a'",
                "client-certificate-data: '%'",
                "client certificate",
            ),
            ("certificate-authority: a", "", "has no server"),
        ] {
            let error = parse(cluster, user).err().expect(cluster).to_string();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(matches!(server("[", Path::new("/")), Err(Error::Form(_))));
        assert_eq!(
            server("{}", Path::new("/")).err(),
            Some(Error::Lacks("current-context"))
        );
    }
}
