//! The rotation's files: what is trusted and who signs at each step, killed anywhere, and two at once.

use super::super::files::{Paths, finish_filing, read_rotation, write_rotation};
use super::super::rotate::advance_at;
use super::super::rotation::Filing;
use super::*;

fn roots(dir: &Path) -> Vec<CertificateDer<'static>> {
    use rustls_pki_types::pem::PemObject as _;
    let pem = anchors(dir).unwrap();
    let listed: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(Result::unwrap)
        .collect();
    let authority = Authority::load(dir).unwrap();
    assert_eq!(authority.anchors(), listed);
    assert_eq!(authority.anchors_pem(), pem);
    listed
}

fn step(dir: &Path) -> Step {
    let before = rotation(dir).unwrap();
    let made = advance(dir, before.as_ref(), None).unwrap();
    assert_eq!(rotation(dir).unwrap().as_ref(), Some(&made.rotation));
    assert!(!made.advice.is_empty());
    made.rotation.step
}

fn takes_a_leaf(dir: &Path) -> CertificateDer<'static> {
    let authority = Arc::new(Authority::load(dir).unwrap());
    let leaves = Leaves::new(authority.clone(), any(), Metrics::new()).unwrap();
    let leaf = &leaves.get(&host("a.example.com")).unwrap().cert[0];
    rustls_verify(&authority, leaf, "a.example.com").unwrap();
    authority.root_der().clone()
}

#[test]
fn five_steps_replace_the_root_with_overlap() {
    let (_temp, dir) = ca_dir(&["example.com"]);
    let old = takes_a_leaf(&dir);
    assert_eq!(roots(&dir), std::slice::from_ref(&old));
    let mut digests = vec![digest(&dir)];

    assert_eq!(step(&dir), Step::Published);
    let both = roots(&dir);
    assert_eq!((both.len(), &both[0]), (2, &old));
    let new = both[1].clone();
    assert_eq!(takes_a_leaf(&dir), old);
    digests.push(digest(&dir));
    let shown = show(&dir).unwrap();
    assert_eq!(shown.rotation.as_ref().unwrap().step, Step::Published);
    let sha256 = shown.next_root.as_ref().unwrap().sha256.clone();
    assert_eq!(
        (&sha256, &shown.root.sha256),
        (
            &shown.rotation.as_ref().unwrap().new,
            &shown.rotation.as_ref().unwrap().old
        )
    );

    assert_eq!(step(&dir), Step::Trusted);
    assert_eq!((roots(&dir), takes_a_leaf(&dir)), (both, old.clone()));
    // A new route meanwhile is served by the present root.
    init(&dir, &names(&["example.com", "example.org"])).unwrap();
    digests.push(digest(&dir));

    assert_eq!(step(&dir), Step::Issuing);
    assert_eq!(roots(&dir), [new.clone(), old.clone()]);
    assert_eq!(takes_a_leaf(&dir), new);
    assert_eq!(
        Authority::load(&dir).unwrap().permitted(),
        ["example.com", "example.org"]
    );
    assert!(dir.join("old/root/root-key.pem").exists() && !dir.join("next").exists());
    assert_eq!(
        show(&dir).unwrap().old_root.unwrap().sha256,
        show(&dir).unwrap().rotation.unwrap().old
    );
    digests.push(digest(&dir));

    assert_eq!(step(&dir), Step::Retiring);
    assert_eq!(roots(&dir), [new.clone(), old]);
    assert!(!dir.join("old/root/root-key.pem").exists());
    digests.push(digest(&dir));

    assert_eq!(step(&dir), Step::Removed);
    assert_eq!(
        (roots(&dir), takes_a_leaf(&dir)),
        (vec![new.clone()], new.clone())
    );
    assert!(!dir.join("old").exists());
    digests.push(digest(&dir));
    digests.dedup();
    assert_eq!(digests.len(), 6, "a running agent sees each step");
    // The new root's own key renews, and the next rotation begins.
    let renewed = init(&dir, &names(&["example.net"])).unwrap();
    assert_ne!(renewed.intermediate, Outcome::Kept);
    assert_eq!(step(&dir), Step::Published);
    assert_eq!(roots(&dir)[0], new);
    for path in walk(&dir) {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let secret = path.to_str().unwrap().contains("-key");
        assert!(
            if secret { mode == 0o600 } else { mode & 0o022 == 0 },
            "{}: {mode:o}",
            path.display()
        );
    }
}

/// The step to `issuing` moves files after it was decided. Killed between any two of them, readers see the new CA,
/// and whoever writes next finishes.
#[test]
fn killed_between_any_two_moves_the_new_root_signs_all_the_same() {
    for with_key in [true, false] {
        for killed_after in 0..7 {
            let (_temp, dir) = ca_dir(&["example.com"]);
            step(&dir);
            step(&dir);
            let new = roots(&dir)[1].clone();
            if !with_key {
                fs::remove_dir_all(dir.join("root")).unwrap();
            }
            // Everything as the step leaves it, then the moves undone but the first so many.
            let paths = Paths::new(&dir);
            let before: Vec<_> = walk(&dir).into_iter().filter(|p| p.is_file()).collect();
            let present = read_rotation(&paths).unwrap().unwrap();
            let mut decided = present.after(now());
            super::super::rotate::prepare_issuing(&paths, now()).unwrap();
            write_rotation(&paths, &decided).unwrap();
            let moves = [
                ("root/root-key.pem", "old/root/root-key.pem"),
                ("next/root/root-key.pem", "root/root-key.pem"),
                ("next/intermediate-key.pem", "intermediate-key.pem"),
                ("next/intermediate.pem", "intermediate.pem"),
                ("next/root.pem", "root.pem"),
            ];
            for (count, (from, to)) in moves.iter().enumerate().take(killed_after) {
                if count == 1 {
                    decided.filing = Some(Filing::New);
                    write_rotation(&paths, &decided).unwrap();
                }
                if dir.join(from).exists() {
                    fs::create_dir_all(dir.join(to).parent().unwrap()).unwrap();
                    fs::rename(dir.join(from), dir.join(to)).unwrap();
                }
            }
            assert_eq!(takes_a_leaf(&dir), new, "{killed_after}");
            assert_eq!(roots(&dir)[0], new, "{killed_after}");
            show(&dir).unwrap();
            finish_filing(&paths).unwrap();
            assert_eq!(takes_a_leaf(&dir), new, "{killed_after}");
            assert!(!dir.join("next").exists());
            assert_eq!(dir.join("old/root/root-key.pem").exists(), with_key, "{before:?}");
            assert!(dir.join("root/root-key.pem").exists());
            assert_eq!(step(&dir), Step::Retiring);
        }
    }
}

/// A replaced intermediate: the certificate decides, whichever key lies beside it.
#[test]
fn killed_between_certificate_and_key_the_new_intermediate_serves() {
    let (_temp, dir) = ca_dir(&["example.com"]);
    let old_key = fs::read(dir.join("intermediate-key.pem")).unwrap();
    init(&dir, &names(&["example.com", "example.org"])).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        fs::write(dir.join(name), bytes).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    };
    let key = fs::read(dir.join("intermediate-key.pem")).unwrap();
    write("intermediate-key.next.pem", &key);
    write("intermediate-key.pem", &old_key);
    assert_eq!(Authority::load(&dir).unwrap().permitted().len(), 2);
    // Before the certificate: the new key is not in force yet.
    write("intermediate-key.next.pem", &old_key);
    write("intermediate-key.pem", &key);
    assert_eq!(Authority::load(&dir).unwrap().permitted().len(), 2);
}

#[test]
fn a_beginning_that_was_killed_does_not_count() {
    let (_temp, dir) = ca_dir(&["example.com"]);
    fs::create_dir_all(dir.join("next/root")).unwrap();
    fs::write(dir.join("next/root.pem"), "half").unwrap();
    assert_eq!(roots(&dir).len(), 1);
    assert_eq!(step(&dir), Step::Published);
    assert_eq!(roots(&dir).len(), 2);
}

#[test]
fn two_at_once_take_turns() {
    let (_temp, dir) = ca_dir(&["example.com"]);
    step(&dir);
    let before = rotation(&dir).unwrap();
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| advance(&dir, before.as_ref(), None)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
    assert!(
        made.iter()
            .all(|made| matches!(made, Ok(_) | Err(Error::WentOn { step: Step::Trusted })))
    );
}

#[test]
fn somebody_who_holds_the_lock_is_waited_for_and_named() {
    let (_temp, dir) = ca_dir(&["example.com"]);
    let held = super::super::files::lock(&Paths::new(&dir)).unwrap();
    let error = Authority::load(&dir).unwrap_err();
    assert!(
        matches!(&error, Error::Locked { path } if path.ends_with(".lock")),
        "{error}"
    );
    drop(held);
    Authority::load(&dir).unwrap();
}

#[test]
fn what_cannot_be_rotated_is_told_and_nothing_changes() {
    let (temp, dir) = ca_dir(&["example.com"]);
    let unchanged = |what: &str, act: &dyn Fn() -> Error, check: fn(&Error) -> bool| {
        let before = snapshot(&dir);
        let error = act();
        assert!(check(&error), "{what}: {error:?}");
        assert_eq!(before, snapshot(&dir), "{what}");
    };
    let own = Source::files(&dir.join("root.pem"), &dir.join("root/root-key.pem")).unwrap();
    unchanged(
        "the same root",
        &|| advance(&dir, None, Some(&own)).unwrap_err(),
        |e| matches!(e, Error::SameRoot),
    );
    let none = Source::directory(temp.path()).unwrap();
    unchanged(
        "no root",
        &|| advance(&dir, None, Some(&none)).unwrap_err(),
        |e| matches!(e, Error::Io { .. }),
    );
    step(&dir);
    let before = rotation(&dir).unwrap();
    unchanged(
        "chosen",
        &|| advance(&dir, before.as_ref(), Some(&own)).unwrap_err(),
        |e| {
            matches!(
                e,
                Error::RootChosen {
                    step: Step::Published
                }
            )
        },
    );
    unchanged(
        "import",
        &|| import(&dir, &names(&["example.com"]), &own).unwrap_err(),
        |e| matches!(e, Error::RotationUnderWay { .. }),
    );
    step(&dir);
    // The next root's key went away, or its certificate cannot be used any more.
    fs::rename(dir.join("next/root"), temp.path().join("away")).unwrap();
    let before = rotation(&dir).unwrap();
    unchanged(
        "no key",
        &|| advance(&dir, before.as_ref(), None).unwrap_err(),
        |e| matches!(e, Error::Io { path, .. } if path.ends_with("next/root/root-key.pem")),
    );
    fs::rename(temp.path().join("away"), dir.join("next/root")).unwrap();
    let late = now() + Duration::days(6 * 365);
    unchanged(
        "too late",
        &|| advance_at(&dir, before.as_ref(), None, late).unwrap_err(),
        |_| true,
    );
    fs::write(dir.join("rotation.json"), "{}").unwrap();
    unchanged("no state", &|| advance(&dir, None, None).unwrap_err(), |e| {
        matches!(e, Error::NotARotation { .. })
    });
    assert!(matches!(
        advance(Path::new("/nonexistent/ca"), None, None),
        Err(Error::Missing { .. })
    ));
}

/// Imported CAs rotate to another imported one, by reference too.
#[test]
fn an_imported_root_is_followed_by_another_one() {
    let (temp, made) = ca_dir(&["example.com"]);
    let other = temp.path().join("other");
    init(&other, &names(&["example.com"])).unwrap();
    let of = |dir: &Path| Source::files(&dir.join("root.pem"), &dir.join("root/root-key.pem")).unwrap();
    let dir = temp.path().join("imported");
    import(&dir, &names(&["example.com"]), &of(&made)).unwrap();
    assert!(matches!(advance(&dir, None, None), Err(Error::NextRootNeeded)));
    advance(&dir, None, Some(&of(&other))).unwrap();
    let both = roots(&dir);
    for _ in 0..2 {
        step(&dir);
    }
    assert_eq!(takes_a_leaf(&dir), both[1]);
    assert_eq!(
        show(&dir).unwrap().issuer_key,
        Some(other.join("root/root-key.pem"))
    );
    step(&dir);
    step(&dir);
    assert_eq!(roots(&dir), both[1..]);
    renew(&dir, &names(&["example.com", "example.net"])).unwrap();
    assert!(
        made.join("root/root-key.pem").exists(),
        "what is not ours is not removed"
    );
}

#[test]
fn a_directory_with_nothing_but_the_root_has_anchors() {
    let (temp, dir) = ca_dir(&["example.com"]);
    let only = temp.path().join("only");
    fs::create_dir(&only).unwrap();
    fs::copy(dir.join("root.pem"), only.join("root.pem")).unwrap();
    assert_eq!(anchors(&only).unwrap(), Authority::load(&dir).unwrap().root_pem());
    assert!(matches!(anchors(temp.path()), Err(Error::Missing { .. })));
}
