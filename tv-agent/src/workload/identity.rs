//! What a cgroup path says of who lives there: a systemd unit, a pod, a container. Pure.
//!
//! The layouts are those of the kubelet's two cgroup drivers (`kubepods.slice/…-pod<uid>.slice` and
//! `kubepods/…/pod<uid>`), of containerd, CRI-O, Docker and Podman, and of systemd (systemd.slice(5)).

use serde::{Deserialize, Serialize};

/// A part is None where the path does not say it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// systemd unit, such as `billing.service`; a scope that is a container is none.
    pub unit: Option<String>,
    /// Kubernetes pod UID, with dashes.
    pub pod: Option<String>,
    /// The container's id as its runtime names it, 64 hexadecimal digits.
    pub container: Option<String>,
}

impl Identity {
    /// Reads `path` (below the cgroup2 mount) from the top: the innermost unit, pod and container count.
    pub fn of(path: &str) -> Self {
        let mut identity = Self::default();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let (name, kind) = part.rsplit_once('.').unwrap_or((part, ""));
            if let Some(container) = container(name) {
                identity.container = Some(container.to_owned());
            } else if let Some(pod) = pod(name, kind) {
                identity.pod = Some(pod);
            } else if matches!(kind, "service" | "scope") {
                identity.unit = Some(part.to_owned());
            }
        }
        identity
    }
}

/// `cri-containerd-<id>`, `crio-<id>`, `docker-<id>`, `libpod-<id>`, or the bare id.
fn container(name: &str) -> Option<&str> {
    const DIGITS: usize = 64;
    let id = name.rsplit('-').next()?;
    let is_id = id.len() == DIGITS
        && id
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    // CRI-O's own monitor lives beside the container, under its id.
    (is_id && !name.starts_with("crio-conmon-") && !name.starts_with("libpod-conmon-")).then_some(id)
}

/// `kubepods-burstable-pod<uid>` with underscores in a slice, `pod<uid>` with dashes else.
fn pod(name: &str, kind: &str) -> Option<String> {
    let uid = match kind {
        "slice" => name
            .strip_prefix("kubepods-")?
            .split_once("pod")
            .map(|(_, uid)| uid.replace('_', "-"))?,
        "" => name.strip_prefix("pod")?.to_owned(),
        _ => return None,
    };
    is_pod_uid(&uid).then_some(uid)
}

/// A UUID, or the 32 digits of a static pod. Safe as a file name.
pub fn is_pod_uid(text: &str) -> bool {
    (32..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff";

    fn parts(path: &str) -> (Option<String>, bool, bool) {
        let identity = Identity::of(path);
        (
            identity.unit,
            identity.pod.as_deref() == Some(UID),
            identity.container.as_deref() == Some(ID),
        )
    }

    #[test]
    fn the_layouts_of_the_field() {
        let slice = UID.replace('-', "_");
        for path in [
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{slice}.slice/crio-{ID}.scope"),
            format!("/kubepods.slice/kubepods-pod{slice}.slice/crio-{ID}.scope/container"),
            format!("/kubepods/besteffort/pod{UID}/{ID}"),
        ] {
            assert_eq!(parts(&path), (None, true, true), "{path}");
        }
        assert_eq!(
            parts(&format!("/system.slice/docker-{ID}.scope")),
            (None, false, true)
        );
        assert_eq!(
            parts(&format!("/machine.slice/libpod-{ID}.scope/container")),
            (None, false, true)
        );
        assert_eq!(parts(&format!("/docker/{ID}")), (None, false, true));
        assert_eq!(
            parts("/system.slice/billing.service"),
            (Some("billing.service".into()), false, false)
        );
        assert_eq!(
            parts("/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope"),
            (Some("app-x.scope".into()), false, false)
        );
    }

    #[test]
    fn what_only_looks_like_one_is_none() {
        for path in [
            "/",
            "",
            "/pod",
            "/podium",
            "/kubepods.slice",
            "/x-podlet.slice",
            "/kubepods/podXYZ",
        ] {
            assert_eq!(Identity::of(path), Identity::default(), "{path}");
        }
        assert_eq!(
            Identity::of(&format!("/a/crio-conmon-{ID}.scope")).container,
            None
        );
        assert_eq!(Identity::of(&format!("/a/{}", &ID[1..])).container, None);
    }
}
