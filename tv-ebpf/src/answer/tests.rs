//! Answers as resolvers send them, and as nobody should.
extern crate std;

use core::cell::RefCell;
use core::net::{Ipv4Addr, Ipv6Addr};
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

use super::*;
use crate::abi::octets;

/// The tables, with room for so many addresses.
struct Fake {
    names: Vec<(u64, u32)>,
    room: usize,
    learnt: RefCell<Vec<(Ipv6Addr, u32)>>,
}

impl Tables for Fake {
    fn name(&self, hash: u64) -> u32 {
        let mut found = self.names.iter().filter(|(known, _)| *known == hash);
        found.next().map_or(0, |(_, parts)| *parts)
    }
    fn learn(&self, address: [u32; 4], ttl: u32) -> bool {
        let mut learnt = self.learnt.borrow_mut();
        if learnt.len() == self.room {
            return false;
        }
        learnt.push((octets(address).into(), ttl));
        true
    }
}

struct Inline<'a>(&'a mut Scratch, &'a Fake);

impl Turns for Inline<'_> {
    fn fold(&mut self, index: u32) -> Turn {
        fold(self.0, index)
    }
    fn suffix(&mut self, length: u32) -> Turn {
        suffix(self.0, length, self.1)
    }
    fn record(&mut self) -> Turn {
        record(self.0, self.1)
    }
}

fn routes() -> Fake {
    let names = [("api.example.com", NAME_EXACT), ("example.org", NAME_BELOW)];
    Fake {
        names: names.map(|(name, parts)| (name::hash(name), parts)).to_vec(),
        room: usize::MAX,
        learnt: RefCell::default(),
    }
}

/// As the program does it. What an earlier message left in the buffer is there, too.
fn reading_with(message: &[u8], tables: &Fake) -> Reading {
    let mut scratch = Scratch::EMPTY;
    scratch.message.fill(0x41);
    let taken = message.len().min(MESSAGE_BYTES);
    scratch.message[..taken].copy_from_slice(&message[..taken]);
    let reading = match begin(&mut scratch, taken) {
        None => Reading::NotOurs,
        Some(Turn::Failed) => Reading::Unsure(Doubt::Unreadable),
        Some(_) => read(&mut Inline(&mut scratch, tables)),
    };
    end(&scratch, reading, taken == message.len())
}

fn reading(message: &[u8]) -> (Reading, Vec<(Ipv6Addr, u32)>) {
    let tables = routes();
    let reading = reading_with(message, &tables);
    (reading, tables.learnt.into_inner())
}

fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> = labels
        .flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat())
        .collect();
    bytes.push(0);
    bytes
}

/// `owner` as it stands in the message.
fn resource(owner: &[u8], kind: u16, class: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    [
        owner,
        &kind.to_be_bytes(),
        &class.to_be_bytes(),
        &ttl.to_be_bytes(),
        &(data.len() as u16).to_be_bytes(),
        data,
    ]
    .concat()
}

const POINTER: &[u8] = &[0xc0, 12];
const OPT: u16 = 41;
const CNAME: u16 = 5;
const CHAOS: u16 = 3;

fn a(last: u8) -> Vec<u8> {
    resource(POINTER, A, INTERNET, 300, &[192, 0, 2, last])
}

fn answer(name: &[u8], records: &[Vec<u8>]) -> Vec<u8> {
    let count = (records.len() as u16).to_be_bytes();
    let header = [0, 7, 0x81, 0x80, 0, 1, count[0], count[1], 0, 0, 0, 1];
    let opt = resource(&[0], OPT, 1232, 0, &[]);
    [&header[..], name, &[0, 1, 0, 1], &records.concat(), &opt].concat()
}

fn v4(last: u8) -> Ipv6Addr {
    Ipv4Addr::new(192, 0, 2, last).to_ipv6_mapped()
}

#[test]
fn addresses_are_credited_to_the_question() {
    let v6: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let target = wire("edge.cdn.example");
    let records = [
        resource(POINTER, CNAME, INTERNET, 60, &target),
        resource(&target, A, INTERNET, 20, &[192, 0, 2, 1]),
        resource(POINTER, AAAA, INTERNET, 30, &v6.octets()),
    ];
    let (reading, learnt) = reading(&answer(&wire("api.example.com"), &records));
    assert_eq!(reading, Reading::Learnt);
    assert_eq!(learnt, [(v4(1), 20), (v6, 30)]);
}

#[test]
fn routed_names_and_no_others() {
    for (name, ours) in [
        ("api.example.com", true),
        ("API.eXample.COM", true),
        ("a.example.org", true),
        ("a.b.c.d.EXAMPLE.org", true),
        ("example.org", false),
        ("notexample.org", false),
        ("x.api.example.com", false),
        ("example.com", false),
        ("com", false),
        ("", false),
    ] {
        let (reading, learnt) = reading(&answer(&wire(name), &[a(1)]));
        let expected = if ours { Reading::Learnt } else { Reading::NotOurs };
        assert_eq!((reading, learnt.len()), (expected, usize::from(ours)), "{name}");
    }
}

/// Labels may hold any byte; one that looks like a length byte hides nothing.
#[test]
fn odd_bytes_in_labels_do_not_hide_a_name() {
    let mut odd = vec![3, 0x80, 0xff, b'.'];
    odd.extend(wire("example.org"));
    assert_eq!(reading(&answer(&odd, &[a(1)])).0, Reading::Learnt);
}

#[test]
fn names_of_every_length_are_read() {
    let longest = format!("{}example.org", "a.".repeat((NAME_BYTES - 1 - 12) / 2));
    let longer = format!("b{longest}");
    assert_eq!(wire(&longest).len(), NAME_BYTES);
    assert_eq!(reading(&answer(&wire(&longest), &[a(1)])).0, Reading::Learnt);
    let (doubt, learnt) = reading(&answer(&wire(&longer), &[a(1)]));
    assert_eq!((doubt, learnt.len()), (Reading::Unsure(Doubt::Unreadable), 0));
    let label = "x".repeat(63);
    assert_eq!(
        reading(&answer(&wire(&format!("{label}.example.org")), &[a(1)])).0,
        Reading::Learnt
    );
}

#[test]
fn other_classes_types_and_sections_are_passed_over() {
    let records = [
        resource(POINTER, A, CHAOS, 9, &[192, 0, 2, 1]),
        resource(POINTER, 16, INTERNET, 9, b"\x05hello"),
        resource(&[0], 46, INTERNET, 9, &[0; 90]),
        a(2),
    ];
    let mut message = answer(&wire("api.example.com"), &records);
    // Not counted, so not in the answer section.
    message.extend(a(3));
    let (reading, learnt) = reading(&message);
    assert_eq!((reading, learnt), (Reading::Learnt, vec![(v4(2), 300)]));
}

#[test]
fn what_is_no_answer_is_none_of_ours() {
    let good = answer(&wire("api.example.com"), &[a(1)]);
    for (at, byte) in [(2, 0x01), (2, 0xa8)] {
        let mut message = good.clone();
        message[at] = byte;
        assert_eq!(reading(&message), (Reading::NotOurs, vec![]), "{byte:#x}");
    }
}

#[test]
fn what_is_not_understood_is_a_doubt() {
    let name = wire("api.example.com");
    let unreadable = [
        // No question, or two.
        {
            let mut none = answer(&name, &[a(1)]);
            none[5] = 0;
            none
        },
        {
            let mut two = answer(&name, &[a(1)]);
            two[5] = 2;
            two
        },
        // The question's name: a pointer to itself, a label of a form that is gone, no end.
        answer(POINTER, &[a(1)]),
        answer(&[0x41, 1, 0], &[a(1)]),
        answer(&[1; 300], &[]),
        // A record's name of a form that is gone, addresses of a wrong length, addresses inside of others (RFC 9460).
        answer(&name, &[resource(&[0x80, 12], A, INTERNET, 1, &[192, 0, 2, 1])]),
        answer(&name, &[resource(POINTER, A, INTERNET, 1, &[192, 0, 2])]),
        answer(&name, &[resource(POINTER, AAAA, INTERNET, 1, &[0; 4])]),
        answer(&name, &[a(1), resource(POINTER, HTTPS, INTERNET, 1, &[0, 1, 0])]),
        answer(&name, &[resource(POINTER, SVCB, INTERNET, 1, &[0, 1, 0])]),
        vec![0, 7, 0x80],
        vec![],
    ];
    for message in unreadable {
        let doubt = Reading::Unsure(Doubt::Unreadable);
        assert_eq!(reading(&message).0, doubt, "{message:02x?}");
    }
}

#[test]
fn a_cut_answer_is_a_doubt_and_its_addresses_count() {
    let mut message = answer(&wire("api.example.com"), &[a(1)]);
    message[2] |= TRUNCATED;
    let (doubt, learnt) = reading(&message);
    assert_eq!(doubt, Reading::Unsure(Doubt::Truncated));
    assert_eq!(learnt, [(v4(1), 300)]);
    // Nobody needs to know of other names.
    let mut message = answer(&wire("other.example"), &[]);
    message[2] |= TRUNCATED;
    assert_eq!(reading(&message).0, Reading::NotOurs);
}

#[test]
fn limits_are_doubts() {
    let name = wire("api.example.com");
    let most = vec![a(1); STEPS - 1];
    let (all, learnt) = reading(&answer(&name, &most));
    assert_eq!(
        (all, learnt.len()),
        (Reading::Unsure(Doubt::TooLarge), 253),
        "bytes"
    );
    let small = vec![resource(&[0], 16, INTERNET, 1, &[]); STEPS];
    assert_eq!(reading(&answer(&name, &small[1..])).0, Reading::Learnt);
    assert_eq!(
        reading(&answer(&name, &small)).0,
        Reading::Unsure(Doubt::TooLarge),
        "steps"
    );
    let large = vec![resource(POINTER, 16, INTERNET, 1, &[0; 1000]); 5];
    assert_eq!(
        reading(&answer(&name, &large)).0,
        Reading::Unsure(Doubt::TooLarge)
    );
    let tables = Fake { room: 1, ..routes() };
    let message = answer(&name, &[a(1), a(2)]);
    assert_eq!(reading_with(&message, &tables), Reading::Unsure(Doubt::NoRoom));
}

/// Cut anywhere, a message is a doubt as long as an address of it may be missing.
#[test]
fn every_cut_is_seen() {
    let v6 = resource(&wire("x.example"), AAAA, INTERNET, 1, &[1; 16]);
    let message = answer(&wire("api.example.com"), &[a(1), v6]);
    let opt = 11;
    for length in 3..message.len() - opt {
        let (doubt, learnt) = reading(&message[..length]);
        assert_eq!(doubt, Reading::Unsure(Doubt::Unreadable), "{length}");
        assert!(learnt.len() < 2);
    }
    for length in message.len() - opt..=message.len() {
        assert_eq!(reading(&message[..length]).0, Reading::Learnt, "{length}");
    }
}

/// xorshift, so that a failure can be had again.
fn noise(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Whatever is changed in a good answer: it ends, and learns nothing that does not stand in it.
#[test]
fn changed_answers_end_and_teach_only_what_they_hold() {
    let records: Vec<_> = (1..9).map(a).collect();
    let good = answer(&wire("a.b.example.org"), &records);
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    for round in 0..50_000 {
        let mut message = good.clone();
        for _ in 0..=noise(&mut seed) % 4 {
            let at = noise(&mut seed) as usize % message.len();
            message[at] = noise(&mut seed) as u8;
        }
        message.truncate(message.len() - noise(&mut seed) as usize % 8);
        let (_, learnt) = reading(&message);
        for (address, _) in learnt {
            let octets = address.octets();
            let there = |part: &[u8]| message.windows(part.len()).any(|window| window == part);
            assert!(
                there(&octets) || there(&octets[12..]),
                "round {round}: {message:02x?}"
            );
        }
    }
}

/// Against a second reader of the same text: random names, matched as the policy does.
#[test]
fn names_match_as_the_policy_matches_them() {
    let mut seed = 7;
    let labels = ["a", "api", "example", "com", "org", "EXAMPLE", "Api", "x-1"];
    for _ in 0..20_000 {
        let count = noise(&mut seed) % 5 + 1;
        let parts: Vec<&str> = (0..count)
            .map(|_| labels[noise(&mut seed) as usize % labels.len()])
            .collect();
        let name = parts.join(".");
        let lower: String = name.to_ascii_lowercase();
        let ours = lower == "api.example.com" || lower.ends_with(".example.org");
        let expected = if ours { Reading::Learnt } else { Reading::NotOurs };
        assert_eq!(reading(&answer(&wire(&name), &[a(1)])).0, expected, "{name}");
    }
}

#[test]
fn times_are_bounded_and_never_shortened() {
    let second = 1_000_000_000;
    for (ttl, seconds) in [
        (0, FLOOR),
        (FLOOR, FLOOR),
        (FLOOR + 1, FLOOR + 1),
        (u32::MAX, CEILING),
    ] {
        let until = kept(5, ttl);
        assert!(until >= 5 + u64::from(seconds) * second, "{ttl}");
        assert!(until <= 5 + u64::from(seconds) * second + GAIN, "{ttl}");
    }
    let until = kept(5, 0);
    assert_eq!(prolonged(until, until - 1), None);
    assert_eq!(prolonged(until, until + GAIN), None);
    assert_eq!(prolonged(until, until + GAIN + 1), Some(until + GAIN + 1));
    // One that was not written is kept for its time all the same.
    assert!(until >= 5 + GAIN + u64::from(FLOOR) * second);
}
