//! One DNS answer: which routed name it is about, and the addresses in it (RFC 1035 §4, RFC 6891).
//!
//! Pure, and written for the verifier: one bounded loop after the other, each offset checked against the message's
//! length and masked into the buffer, each turn a function of its own ([`Turns`]). Addresses are credited to the name that was asked for, whatever record they stand
//! in: a resolver sends the whole chain of CNAMEs, and the workload connects with the name that it asked for.

use crate::abi::{NAME_BELOW, NAME_EXACT, mapped};
use crate::name::{self, LABEL_LIMIT, LENGTH, NAME_BYTES};

/// Room for one message. A power of two, for the mask.
pub const BUFFER: usize = 4096;
/// The longest message that is read.
pub const MESSAGE_BYTES: usize = BUFFER - 1;
/// Labels, pointers and records of the answer section that are looked at.
pub const STEPS: usize = 256;

const HEADER: usize = 12;
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TRUNCATED: u8 = 0x02;
/// The two upper bits of a length byte: a compression pointer has both, anything else but neither is unknown.
const FORM: u8 = 0xc0;
/// Type, class, TTL and length of a record's data.
const FIXED: usize = 10;

const INTERNET: u16 = 1;
const A: u16 = 1;
const AAAA: u16 = 28;
/// SVCB and HTTPS (RFC 9460) may hold addresses in a form of their own.
const SVCB: u16 = 64;
const HTTPS: u16 = 65;

/// An address is kept for as long at least, seconds: workloads hold on to what they looked up.
pub const FLOOR: u32 = 3600;
/// Longer TTLs are cut to this, seconds (RFC 8767 §4).
pub const CEILING: u32 = 7 * 24 * 3600;
/// A time is prolonged only by more than this, nanoseconds: most connects then write nothing.
const GAIN: u64 = 60_000_000_000;

/// Until when an address is kept that has just been seen, or used (`ttl` 0). Nanoseconds, but for `ttl`, in seconds.
#[inline(always)]
pub const fn kept(now: u64, ttl: u32) -> u64 {
    let seconds = if ttl < FLOOR {
        FLOOR
    } else if ttl > CEILING {
        CEILING
    } else {
        ttl
    };
    // No sum comes near the end of u64: the clock began with the machine. A gain that is not written takes no time away.
    now.wrapping_add(seconds as u64 * 1_000_000_000 + GAIN)
}

/// The later of the two, unless there is too little between them to be worth a write.
#[inline(always)]
pub const fn prolonged(until: u64, wanted: u64) -> Option<u64> {
    if wanted > until.saturating_add(GAIN) {
        Some(wanted)
    } else {
        None
    }
}

/// Room for a message, and for what reading it has to remember. A value of a map, where it is in the kernel.
#[repr(C)]
pub struct Scratch {
    pub message: [u8; BUFFER],
    /// Of the message.
    length: usize,
    /// Of the name.
    name: usize,
    /// Bytes left of a label.
    left: usize,
    /// Offset in the message.
    at: usize,
    /// Records that are still to come.
    records: usize,
    /// Not 0: an address found no room.
    doubt: usize,
    /// Of the part of the name that was looked at.
    hash: u64,
}

impl Scratch {
    pub const EMPTY: Self = Self {
        message: [0; BUFFER],
        length: 0,
        name: 0,
        left: 0,
        at: 0,
        records: 0,
        doubt: 0,
        hash: 0,
    };
}

/// What came of reading a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// No answer, or not about a routed name.
    NotOurs,
    /// All its addresses are known now.
    Learnt,
    /// It may have told the workload addresses that are not known.
    Unsure(Doubt),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The server cut it (TC); the whole answer comes over TCP.
    Truncated,
    /// Longer than [`MESSAGE_BYTES`], or more than [`STEPS`].
    TooLarge,
    /// Not a form that is known, or broken off.
    Unreadable,
    /// The table of addresses took no more.
    NoRoom,
}

/// What a reading needs of the tables.
pub trait Tables {
    /// What is known of the name with this hash: [`NAME_EXACT`], [`NAME_BELOW`], both or nothing.
    fn name(&self, hash: u64) -> u32;
    /// Notes an address, words in network order, for at least `ttl` seconds. False: no room.
    fn learn(&self, address: [u32; 4], ttl: u32) -> bool;
}

/// How a loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Turn {
    More,
    Done,
    /// What was looked for is not there, or cannot be read.
    Failed,
}

/// The turns of the loops, each a function of its own in the kernel: the verifier then looks at it once, and not at each
/// way through it in each turn.
pub trait Turns {
    /// [`fold`] for the byte at `index` of the name.
    fn fold(&mut self, index: u32) -> Turn;
    /// [`suffix`] for the last `length` bytes of the name.
    fn suffix(&mut self, length: u32) -> Turn;
    /// [`record`].
    fn record(&mut self) -> Turn;
}

/// What is known of a message from its header.
///
/// `length` is [`MESSAGE_BYTES`] at most. None: no answer.
#[inline(always)]
pub fn begin(scratch: &mut Scratch, length: usize) -> Option<Turn> {
    if length < HEADER {
        return Some(Turn::Failed);
    }
    let message = &scratch.message;
    if message[2] & RESPONSE == 0 || message[2] & OPCODE != 0 {
        return None;
    }
    let records = short(message, 6);
    let questions = short(message, 4);
    scratch.length = length;
    scratch.records = records as usize;
    scratch.left = 0;
    scratch.doubt = 0;
    scratch.hash = name::EMPTY;
    Some(if questions == 1 { Turn::More } else { Turn::Failed })
}

/// Reads on after [`begin`].
#[inline(always)]
pub fn read(turns: &mut impl Turns) -> Reading {
    match run(NAME_BYTES as u32, |index| turns.fold(index)) {
        Turn::Done => {}
        Turn::More | Turn::Failed => return Reading::Unsure(Doubt::Unreadable),
    }
    match run(NAME_BYTES as u32, |index| turns.suffix(index + 1)) {
        Turn::Done => {}
        Turn::More | Turn::Failed => return Reading::NotOurs,
    }
    match run(STEPS as u32, |_| turns.record()) {
        Turn::Done => Reading::Learnt,
        Turn::More => Reading::Unsure(Doubt::TooLarge),
        Turn::Failed => Reading::Unsure(Doubt::Unreadable),
    }
}

/// What the reading comes to. `whole`: the message was no longer than [`MESSAGE_BYTES`].
#[inline(always)]
pub fn end(scratch: &Scratch, reading: Reading, whole: bool) -> Reading {
    if reading == Reading::NotOurs {
        return reading;
    }
    if scratch.doubt != 0 {
        return Reading::Unsure(Doubt::NoRoom);
    }
    match reading {
        Reading::Unsure(Doubt::Unreadable) if !whole => Reading::Unsure(Doubt::TooLarge),
        Reading::Learnt | Reading::Unsure(_) if scratch.message[2] & TRUNCATED != 0 => {
            Reading::Unsure(Doubt::Truncated)
        }
        other => other,
    }
}

#[inline(always)]
fn run(most: u32, mut turn: impl FnMut(u32) -> Turn) -> Turn {
    for index in 0..most {
        let turn = turn(index);
        if turn != Turn::More {
            return turn;
        }
    }
    Turn::More
}

/// Brings one byte of the question's name into the form of [`crate::name`]; done at its end. Fails for what is no plain
/// name, which the first name of a message has to be.
#[inline(always)]
pub fn fold(scratch: &mut Scratch, index: u32) -> Turn {
    let at = HEADER + index as usize;
    if at >= scratch.length {
        return Turn::Failed;
    }
    let left = scratch.left;
    let byte = &mut scratch.message[at & (BUFFER - 1)];
    if left > 0 {
        scratch.left = left - 1;
        *byte = byte.to_ascii_lowercase();
    } else if *byte == 0 {
        scratch.name = index as usize;
        // The root's byte, the question's type and class.
        scratch.at = at + 5;
        return Turn::Done;
    } else if *byte < LABEL_LIMIT {
        scratch.left = *byte as usize;
        *byte |= LENGTH;
    } else {
        return Turn::Failed;
    }
    Turn::More
}

/// Adds the byte that begins the last `length` bytes of the name to their hash; done when the name, or one that it lies
/// below, is known.
#[inline(always)]
pub fn suffix(scratch: &mut Scratch, length: u32, tables: &impl Tables) -> Turn {
    let (name, length) = (scratch.name, length as usize);
    if length > name {
        return Turn::Failed;
    }
    let byte = scratch.message[(HEADER + name - length) & (BUFFER - 1)];
    let hash = name::before(byte, scratch.hash);
    scratch.hash = hash;
    // A byte of a label may look like a length; the look-up then finds nothing, or looks at more.
    let wanted = if length == name { NAME_EXACT } else { NAME_BELOW };
    if byte & LENGTH != 0 && tables.name(hash) & wanted != 0 {
        Turn::Done
    } else {
        Turn::More
    }
}

/// One label of the name of a record in the answer section, or the name's end and the record, whose addresses are
/// learnt. Whose record it is does not matter. Done when there is none left.
#[inline(always)]
pub fn record(scratch: &mut Scratch, tables: &impl Tables) -> Turn {
    let left = scratch.records;
    if left == 0 {
        return Turn::Done;
    }
    let (message, length, at) = (&scratch.message, scratch.length, scratch.at);
    if at >= length {
        return Turn::Failed;
    }
    let byte = message[at & (BUFFER - 1)];
    if byte & FORM == 0 && byte != 0 {
        scratch.at = at + 1 + byte as usize;
        return Turn::More;
    }
    if byte != 0 && byte & FORM != FORM {
        return Turn::Failed;
    }
    let at = at + if byte == 0 { 1 } else { 2 };
    let data = at + FIXED;
    if data > length {
        return Turn::Failed;
    }
    let (kind, class) = (short(message, at), short(message, at + 2));
    let size = short(message, at + 8) as usize;
    if data + size > length {
        return Turn::Failed;
    }
    let address = match (class, kind, size) {
        (INTERNET, A, 4) => Some(mapped(word(message, data))),
        (INTERNET, AAAA, 16) => Some([
            word(message, data),
            word(message, data + 4),
            word(message, data + 8),
            word(message, data + 12),
        ]),
        (INTERNET, A | AAAA | SVCB | HTTPS, _) => return Turn::Failed,
        _ => None,
    };
    if let Some(address) = address {
        let ttl = (short(message, at + 4) as u32) << 16 | short(message, at + 6) as u32;
        if !tables.learn(address, ttl) {
            scratch.doubt = 1;
        }
    }
    scratch.at = data + size;
    scratch.records = left - 1;
    Turn::More
}

#[inline(always)]
fn short(message: &[u8; BUFFER], at: usize) -> u16 {
    u16::from_be_bytes([message[at & (BUFFER - 1)], message[(at + 1) & (BUFFER - 1)]])
}

/// Four bytes as they lie there.
#[inline(always)]
fn word(message: &[u8; BUFFER], at: usize) -> u32 {
    u32::from_ne_bytes([
        message[at & (BUFFER - 1)],
        message[(at + 1) & (BUFFER - 1)],
        message[(at + 2) & (BUFFER - 1)],
        message[(at + 3) & (BUFFER - 1)],
    ])
}

#[cfg(test)]
mod tests;
