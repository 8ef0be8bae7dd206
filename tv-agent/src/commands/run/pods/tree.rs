//! Pods' cgroups below a tree, as the kubelet's two cgroup drivers lay them out, and which of them are covered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::kubernetes::{Order, Unknown};
use crate::netns::subdirectories;
use crate::workload::Identity;

/// How deep below a tree pods are looked for: a class of service, and one more.
const DEPTH: usize = 3;
/// Pods that are looked after; the kubelet's own limit is 110 unless it is raised.
pub(super) const PODS: usize = 1024;
/// Directories that are read in one look.
const VISITS: usize = 64;

/// A pod's cgroup, and what was done about it.
pub(super) struct Lodger {
    pub directory: PathBuf,
    /// What was said of it last.
    pub order: Option<Order>,
    pub covered: BTreeSet<PathBuf>,
}

impl Lodger {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            order: None,
            covered: BTreeSet::new(),
        }
    }

    /// What is to be covered. `children`: the cgroups in it; `pinned`: whether a predecessor covered one. Pure.
    pub(super) fn targets(
        &self,
        children: &[PathBuf],
        unknown: Unknown,
        pinned: impl Fn(&Path) -> bool,
    ) -> BTreeSet<PathBuf> {
        let whole = || BTreeSet::from([self.directory.clone()]);
        let Some(order) = &self.order else {
            return match unknown {
                Unknown::Enrol => whole(),
                Unknown::Leave if pinned(&self.directory) => whole(),
                Unknown::Leave => BTreeSet::new(),
            };
        };
        match order {
            Order { enrol: false, .. } => BTreeSet::new(),
            Order { apart: false, .. } => whole(),
            Order { exclude, .. } => {
                let is_excluded = |child: &Path| {
                    let name = child.file_name().unwrap_or_default().to_string_lossy();
                    // A container that is not known yet is covered: it may be one of those that have to be.
                    Identity::of(&name)
                        .container
                        .is_some_and(|id| exclude.contains(&id))
                };
                children
                    .iter()
                    .filter(|child| !is_excluded(child))
                    .cloned()
                    .collect()
            }
        }
    }
}

/// Whether an enrolled cgroup is a tree in which pods live: one of its parts is the kubelet's `kubepods`.
pub fn is_pods_tree(path: &str) -> bool {
    path.split('/').any(|part| {
        let name = part.strip_suffix(".slice").unwrap_or(part);
        name.split('-').any(|word| word == "kubepods")
    })
}

/// Adds the pods below `root` to `found`, by UID; `read` is told of each directory before it is read.
pub(super) fn pods(root: &Path, found: &mut BTreeMap<String, PathBuf>, read: &mut dyn FnMut(&Path)) {
    let mut todo = vec![(root.to_owned(), 0)];
    let mut visits = 0;
    while let Some((directory, depth)) = todo.pop() {
        visits += 1;
        if visits > VISITS {
            return;
        }
        read(&directory);
        for child in subdirectories(&directory) {
            let name = child
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let identity = Identity::of(&name);
            match identity.pod {
                Some(uid) if found.len() < PODS => drop(found.insert(uid, child)),
                Some(_) => {}
                None if identity.container.is_none() && depth < DEPTH => todo.push((child, depth + 1)),
                None => {}
            }
        }
    }
}

/// The cgroups in a pod's.
pub(super) fn children(pod: &Path) -> Vec<PathBuf> {
    subdirectories(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff";

    #[test]
    fn pods_are_found_in_both_layouts() {
        let dir = tempfile::tempdir().unwrap();
        let other = UID.replace('8', "9");
        let slice = other.replace('-', "_");
        let id = "a".repeat(64);
        let systemd = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice");
        for path in [
            format!("kubepods/burstable/pod{UID}/{id}"),
            format!("{systemd}/cri-containerd-{id}.scope"),
            "kubepods/podium/x".to_owned(),
        ] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let mut found = BTreeMap::new();
        let mut read = Vec::new();
        for root in ["kubepods", "kubepods.slice"] {
            pods(&dir.path().join(root), &mut found, &mut |directory| {
                read.push(directory.to_owned())
            });
        }
        let wanted = [
            (
                UID.to_owned(),
                dir.path().join(format!("kubepods/burstable/pod{UID}")),
            ),
            (other, dir.path().join(systemd)),
        ];
        assert_eq!(found, wanted.into());
        assert!(
            read.iter()
                .all(|directory| !directory.display().to_string().contains("-pod")),
            "{read:?}"
        );
        pods(&dir.path().join("gone"), &mut found, &mut |_| {});
    }

    #[test]
    fn a_tree_without_bounds_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..2 * VISITS {
            std::fs::create_dir_all(dir.path().join(format!("x{number}"))).unwrap();
        }
        for number in 0..PODS + 2 {
            std::fs::create_dir(dir.path().join(format!("pod{number:032}"))).unwrap();
        }
        let (mut found, mut read) = (BTreeMap::new(), 0);
        pods(dir.path(), &mut found, &mut |_| read += 1);
        assert_eq!((found.len(), read), (PODS, VISITS));
    }

    #[test]
    fn trees_of_pods_are_told_by_their_name() {
        for path in [
            "/kubepods",
            "/kubepods.slice",
            "/kubelet.slice/kubelet-kubepods.slice",
            "/a/kubepods/burstable",
        ] {
            assert!(is_pods_tree(path), "{path}");
        }
        for path in ["/system.slice/billing.service", "/kubepodsx", "/machine.slice"] {
            assert!(!is_pods_tree(path), "{path}");
        }
    }

    #[test]
    fn what_is_covered_follows_from_the_order() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let at = |name: &str| PathBuf::from("/k/pod").join(name);
        let children = [at(&a), at(&format!("cri-containerd-{b}.scope")), at("odd")];
        let mut lodger = Lodger::new("/k/pod".into());
        let targets = |lodger: &Lodger, unknown, pinned| lodger.targets(&children, unknown, |_| pinned);
        let whole = BTreeSet::from(["/k/pod".into()]);
        assert_eq!(targets(&lodger, Unknown::Enrol, false), whole);
        assert_eq!(targets(&lodger, Unknown::Leave, false), BTreeSet::new());
        assert_eq!(
            targets(&lodger, Unknown::Leave, true),
            whole,
            "as its predecessor left it"
        );
        let order = |enrol, apart, exclude: &[&String]| Order {
            enrol,
            apart,
            exclude: exclude.iter().map(|&id| id.clone()).collect(),
        };
        lodger.order = Some(order(false, false, &[]));
        assert_eq!(targets(&lodger, Unknown::Enrol, true), BTreeSet::new());
        lodger.order = Some(order(true, false, &[]));
        assert_eq!(targets(&lodger, Unknown::Leave, false), whole);
        lodger.order = Some(order(true, true, &[]));
        assert_eq!(targets(&lodger, Unknown::Leave, false), children.clone().into());
        lodger.order = Some(order(true, true, &[&b]));
        assert_eq!(
            targets(&lodger, Unknown::Leave, false),
            [at(&a), at("odd")].into()
        );
    }
}
