//! JKS, and JCEKS without secret keys (sun.security.provider.JavaKeyStore): entries one after the other, and a
//! digest over them and the password.

use std::ops::Range;

use sha1::{Digest as _, Sha1};

use super::{PASSWORDS, Unusable};
use crate::trust::anchors::{Anchor, Anchors};

const PRIVATE_KEY: u32 = 1;
const TRUSTED: u32 = 2;
const SECRET_KEY: u32 = 3;
/// Magic number, version, count of entries.
const HEADER: usize = 12;
const DIGEST: usize = 20;

struct Store<'a> {
    bytes: &'a [u8],
    version: u32,
    password: &'static str,
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    range: Range<usize>,
    /// Of a trusted certificate.
    der: Option<&'a [u8]>,
}

pub(super) fn merge(store: &[u8], anchors: &Anchors) -> Result<Vec<u8>, Unusable> {
    let store = Store::read(store)?;
    let missing: Vec<_> = anchors.iter().filter(|anchor| !store.holds(anchor)).collect();
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for entry in &store.entries {
        entries.push(store.bytes[entry.range.clone()].to_owned());
    }
    for anchor in missing {
        entries.push(trusted(anchor, store.version)?);
    }
    Ok(store.with(&entries))
}

pub(super) fn remove(store: &[u8], anchors: &Anchors) -> Result<Vec<u8>, Unusable> {
    let store = Store::read(store)?;
    let ours = |entry: &&Entry<'_>| {
        entry
            .der
            .is_some_and(|der| anchors.iter().any(|anchor| anchor.der() == der))
    };
    let kept: Vec<_> = store
        .entries
        .iter()
        .filter(|entry| !ours(entry))
        .map(|entry| store.bytes[entry.range.clone()].to_owned())
        .collect();
    Ok(store.with(&kept))
}

impl<'a> Store<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Unusable> {
        let body_end = bytes.len().checked_sub(DIGEST).ok_or(Unusable::Damaged)?;
        let mut reader = Reader {
            bytes: &bytes[..body_end],
            at: 4,
        };
        let version = reader.number()?;
        if !(1..=2).contains(&version) {
            return Err(Unusable::Damaged);
        }
        let count = reader.number()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(reader.entry(version)?);
        }
        if reader.at != body_end {
            return Err(Unusable::Damaged);
        }
        let fits = |password: &&str| digest(password, &bytes[..body_end]) == bytes[body_end..];
        let password = PASSWORDS.into_iter().find(fits).ok_or(Unusable::Password)?;
        Ok(Self {
            bytes,
            version,
            password,
            entries,
        })
    }

    fn holds(&self, anchor: &Anchor) -> bool {
        self.entries.iter().any(|entry| entry.der == Some(anchor.der()))
    }

    /// The same store with these entries.
    fn with(&self, entries: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = self.bytes[..HEADER - 4].to_owned();
        let count = u32::try_from(entries.len()).expect("a file of bounded size has fewer");
        bytes.extend(count.to_be_bytes());
        bytes.extend(entries.concat());
        let digest = digest(self.password, &bytes);
        bytes.extend(digest);
        bytes
    }
}

/// Its time is that of the root, so that the same root always makes the same entry.
fn trusted(anchor: &Anchor, version: u32) -> Result<Vec<u8>, Unusable> {
    let (_, x509) = x509_parser::parse_x509_certificate(anchor.der()).map_err(|_| Unusable::Damaged)?;
    let milliseconds = x509.validity().not_before.timestamp().saturating_mul(1000);
    let mut entry = TRUSTED.to_be_bytes().to_vec();
    put_text(&mut entry, &anchor.name());
    entry.extend(milliseconds.to_be_bytes());
    if version == 2 {
        put_text(&mut entry, "X.509");
    }
    let length = u32::try_from(anchor.der().len()).map_err(|_| Unusable::Damaged)?;
    entry.extend(length.to_be_bytes());
    entry.extend_from_slice(anchor.der());
    Ok(entry)
}

/// As DataOutput.writeUTF does it; what we write is short and ASCII.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("short");
    out.extend(length.to_be_bytes());
    out.extend(text.bytes());
}

fn digest(password: &str, body: &[u8]) -> [u8; DIGEST] {
    let mut sum = Sha1::new();
    for unit in password.encode_utf16() {
        sum.update(unit.to_be_bytes());
    }
    sum.update(b"Mighty Aphrodite");
    sum.update(body);
    sum.finalize().into()
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Unusable> {
        let end = self.at.checked_add(length).ok_or(Unusable::Damaged)?;
        let taken = self.bytes.get(self.at..end).ok_or(Unusable::Damaged)?;
        self.at = end;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, Unusable> {
        let bytes = self.take(4)?.try_into().map_err(|_| Unusable::Damaged)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn text(&mut self) -> Result<&'a [u8], Unusable> {
        let length = self.take(2)?.try_into().map_err(|_| Unusable::Damaged)?;
        self.take(u16::from_be_bytes(length).into())
    }

    fn counted(&mut self) -> Result<&'a [u8], Unusable> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| Unusable::Damaged)?)
    }

    fn certificate(&mut self, version: u32) -> Result<&'a [u8], Unusable> {
        if version == 2 {
            self.text()?;
        }
        self.counted()
    }

    fn entry(&mut self, version: u32) -> Result<Entry<'a>, Unusable> {
        let start = self.at;
        let tag = self.number()?;
        self.text()?;
        self.take(8)?;
        let der = match tag {
            PRIVATE_KEY => {
                self.counted()?;
                for _ in 0..self.number()? {
                    self.certificate(version)?;
                }
                None
            }
            TRUSTED => Some(self.certificate(version)?),
            SECRET_KEY => return Err(Unusable::Entry),
            _ => return Err(Unusable::Damaged),
        };
        Ok(Entry {
            range: start..self.at,
            der,
        })
    }
}
