//! What is merged can be taken out again, whatever stood there.

use proptest::prelude::*;

use super::*;

fn anchors(count: usize) -> Anchors {
    let pem: String = (0..count)
        .map(|n| {
            let names = [format!("a{n}.example.com")];
            crate::ca::Authority::ephemeral(&names)
                .unwrap()
                .root_pem()
                .to_owned()
        })
        .collect();
    Anchors::from_pem(&pem).unwrap()
}

fn others() -> String {
    anchors(2).pem()
}

#[test]
fn every_byte_of_a_bundle_stays_and_ours_is_found_again() {
    let (anchors, more) = (anchors(2), anchors(1));
    let others = others();
    for original in [
        others.clone(),
        others.trim_end().to_owned(),
        others.replace('\n', "\r\n"),
        format!("# comment\n\n{others}\n# the end"),
        others.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
        others.replacen("-----END", "\u{fffd} rubbish\n-----END", 1),
        String::new(),
    ] {
        let merged = merge(original.as_bytes(), &anchors);
        assert!(merged.starts_with(original.as_bytes()));
        assert!(anchors.iter().all(|anchor| holds(&merged, anchor)));
        let text = String::from_utf8(merged.clone()).unwrap();
        assert!(!text.contains("----------BEGIN"), "two blocks run together");
        assert_eq!(merge(&merged, &anchors), merged, "merging twice is merging once");
        assert_eq!(unmerge(&merged), original.as_bytes());
        assert_eq!(remove(&merged, &anchors), original.as_bytes());
        // The root was replaced: the old one goes, the new one comes.
        assert_eq!(merge(&merged, &more), merge(original.as_bytes(), &more));
    }
}

#[test]
fn what_others_put_before_and_behind_stays() {
    let anchors = anchors(1);
    let merged = merge(b"no line end", &anchors);
    let changed = [b"# new first line\n", &merged[..], b"# new last line\n"].concat();
    assert_eq!(
        unmerge(&changed),
        b"# new first line\nno line end\n# new last line\n"
    );
}

#[test]
fn a_root_that_is_there_already_is_not_added_and_goes_when_it_is_to_go() {
    let anchors = anchors(1);
    let there = format!("# before\n{}# behind\n", anchors.pem());
    assert_eq!(merge(there.as_bytes(), &anchors), there.as_bytes());
    assert_eq!(remove(there.as_bytes(), &anchors), b"# before\n# behind\n");
    let crlf = there.replace('\n', "\r\n");
    assert_eq!(remove(crlf.as_bytes(), &anchors), b"# before\r\n# behind\r\n");
}

#[test]
fn a_mark_that_is_not_whole_is_no_mark() {
    let anchors = anchors(1);
    let block = block(anchors.iter().next().unwrap());
    for cut in [1, 30, 90, 200, block.len() - 20] {
        let broken = &block[..cut];
        assert_eq!(unmerge(broken.as_bytes()), broken.as_bytes());
        let merged = merge(broken.as_bytes(), &anchors);
        assert_eq!(unmerge(&merged), broken.as_bytes(), "{cut}");
    }
}

#[test]
fn certificates_are_seen_in_both_forms_only() {
    let pem = others();
    assert!(has_certificate(pem.as_bytes()));
    assert!(has_certificate(
        pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE").as_bytes()
    ));
    for none in [
        "",
        "# nothing",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
        &pem.replace("CERTIFICATE", "PUBLIC KEY"),
    ] {
        assert!(!has_certificate(none.as_bytes()), "{none:?}");
    }
}

proptest! {
    /// Made of pieces that could be mistaken for ours, and of anything.
    #[test]
    fn merging_and_taking_out_again_changes_nothing(
        pieces in proptest::collection::vec((0..9usize, proptest::collection::vec(any::<u8>(), 0..12)), 0..12)
    ) {
        let anchors = anchors(2);
        let block = block(anchors.iter().next().unwrap());
        let lines: Vec<&str> = block.split_inclusive('\n').collect();
        let mut original = Vec::new();
        for (piece, bytes) in &pieces {
            match piece {
                0 => original.extend(lines[0].bytes()),
                1 => original.extend(lines[1].bytes()),
                2 => original.extend(lines[2..lines.len() - 1].concat().bytes()),
                3 => original.extend(lines[lines.len() - 1].bytes()),
                4 => original.extend(lines[lines.len() - 1].trim_end().bytes()),
                5 => original.extend(lines[0].trim_end().bytes().chain(", on a line of its own\n".bytes())),
                6 => original.extend(b"\n"),
                7 => original.extend(block.bytes()),
                _ => original.extend(bytes),
            }
        }
        let bare = unmerge(&original);
        let merged = merge(&original, &anchors);
        prop_assert_eq!(unmerge(&merged), bare.clone());
        prop_assert_eq!(merge(&merged, &anchors), merged.clone());
        prop_assert!(merged.starts_with(&bare));
    }
}
