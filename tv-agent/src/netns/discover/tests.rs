//! A directory that looks like a cgroup is one, as far as looking goes.

use super::*;
use crate::netns::own_id;

struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("tv-discover-{}-{name}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        Self(root)
    }

    fn cgroup(&self, name: &str, processes: &[u32]) {
        let directory = self.0.join(name);
        fs::create_dir_all(&directory).unwrap();
        let lines: String = processes.iter().map(|process| format!("{process}\n")).collect();
        fs::write(directory.join("cgroup.procs"), lines).unwrap();
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const OWN: fn() -> u32 = std::process::id;

#[test]
fn namespaces_are_found_by_their_processes() {
    let tree = Tree::new("found");
    // One that lives, one that is gone, and one of another pid namespace.
    tree.cgroup("pod/container", &[OWN(), 0x7fff_fff0, 0]);
    tree.cgroup("empty", &[]);
    let mut looker = Looker::new(Bell::default(), Bounds::default());
    for _ in 0..2 {
        let found = looker.look(&[tree.0.clone(), tree.0.join("gone")]);
        assert!(found.hidden && !found.truncated);
        let [(id, seen)] = found.namespaces.iter().collect::<Vec<_>>()[..] else {
            panic!("{found:?}")
        };
        assert_eq!(*id, own_id().unwrap());
        assert_eq!(seen.process, i32::try_from(OWN()).unwrap());
        assert!(seen.cgroup.ends_with("pod/container"));
    }
    tree.cgroup("pod/container", &[]);
    let found = looker.look(std::slice::from_ref(&tree.0));
    assert!(found.namespaces.is_empty() && !found.hidden && looker.known.is_empty());
}

#[test]
fn a_look_is_bounded() {
    let tree = Tree::new("bounded");
    let mut children: Vec<_> = (0..3)
        .map(|_| std::process::Command::new("sleep").arg("60").spawn().unwrap())
        .collect();
    let pids: Vec<u32> = children.iter().map(std::process::Child::id).collect();
    tree.cgroup("a", &pids);
    let look = |cgroups, processes| {
        let bounds = Bounds {
            cgroups,
            processes,
            rechecks: 1,
        };
        let mut looker = Looker::new(Bell::default(), bounds);
        let found = looker.look(std::slice::from_ref(&tree.0));
        (found.truncated, looker.known.len())
    };
    assert_eq!(look(2, 3), (false, 3));
    assert_eq!(look(2, 2), (true, 2));
    assert_eq!(look(1, 3), (true, 0));

    // Those known from before have their turn, one round in four.
    let bounds = Bounds {
        cgroups: 2,
        processes: 3,
        rechecks: 1,
    };
    let mut looker = Looker::new(Bell::default(), bounds);
    looker.look(std::slice::from_ref(&tree.0));
    let rounds: Vec<bool> = (0..4)
        .map(|_| {
            looker.look(std::slice::from_ref(&tree.0));
            looker.known.values().all(|known| known.checked == looker.round)
        })
        .collect();
    assert_eq!(rounds, [false, false, false, true]);
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_change_is_noticed_at_once_and_the_thread_ends_with_its_reader() {
    let tree = Tree::new("change");
    tree.cgroup("a", &[]);
    let (gone, roots) = (Arc::new(()), Arc::new(vec![tree.0.clone()]));
    let held = Arc::downgrade(&gone);
    let ask = move || {
        let _held = &gone;
        roots.clone()
    };
    let mut found = discover(ask, Bell::default(), Bounds::default()).unwrap();
    // Long enough for the looks to be as rare as they get.
    std::thread::sleep(Duration::from_millis(700));
    found.borrow_and_update();
    let began = Instant::now();
    tree.cgroup("a", &[OWN()]);
    while found.borrow_and_update().namespaces.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(5), "never noticed");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(found);
    while held.strong_count() > 0 {
        assert!(began.elapsed() < Duration::from_secs(5), "the thread goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_bell_wakes_once_for_however_often_it_rang() {
    let bell = Bell::new();
    let looker = Looker::new(bell.clone(), Bounds::default());
    bell.ring();
    bell.ring();
    assert!(looker.wait(Duration::from_secs(60)));
    assert!(!looker.wait(Duration::from_millis(1)));
    // More than a pipe holds.
    (0..1_000_000).for_each(|_| bell.ring());
    assert!(looker.wait(Duration::from_secs(60)));
    assert!(!looker.wait(Duration::from_millis(1)));
}
