//! PEM bundles: ours are appended, with marks by which they are found again; every other byte stays. Pure.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Anchors;
use super::anchors::Anchor;

const MARK: &str = "# tv-agent root ";
const BEGINS: &str = " begins";
/// The bundle had no line end of its own: one was added, and goes with the block.
const BEGINS_ON_NEW_LINE: &str = " begins, on a line of its own";
const ENDS: &str = " ends";
const PEM_BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
const PEM_END: &[u8] = b"-----END CERTIFICATE-----";

/// `original` with those of `anchors` that it does not hold; what an earlier merge added goes.
pub fn merge(original: &[u8], anchors: &Anchors) -> Vec<u8> {
    let mut merged = unmerge(original);
    let mut missing = anchors
        .iter()
        .filter(|anchor| !holds(&merged, anchor))
        .collect::<Vec<_>>()
        .into_iter();
    if !merged.is_empty()
        && !merged.ends_with(b"\n")
        && let Some(first) = missing.next()
    {
        merged.push(b'\n');
        merged.extend(marked(first, BEGINS_ON_NEW_LINE).bytes());
    }
    missing.for_each(|anchor| merged.extend(block(anchor).bytes()));
    merged
}

/// Takes marked blocks out again: of what [`merge`] gave, exactly its `original`.
pub fn unmerge(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_owned();
    // What stood around a block may be one itself.
    while let Some(without) = unmerge_once(&bytes) {
        bytes = without;
    }
    bytes
}

/// Takes `anchors` out, whoever put them in and however they are marked.
pub(super) fn remove(bytes: &[u8], anchors: &Anchors) -> Vec<u8> {
    let mut bytes = unmerge(bytes);
    let ours = |der: &[u8]| anchors.iter().any(|anchor| der.starts_with(anchor.der()));
    let mut found = certificates(&bytes);
    found.retain(|(_, der)| ours(der));
    for (range, _) in found.into_iter().rev() {
        let rest = &bytes[range.end..];
        let line_end = if rest.starts_with(b"\r\n") {
            2
        } else {
            usize::from(rest.starts_with(b"\n"))
        };
        let end = range.end + line_end;
        bytes.drain(range.start..end);
    }
    bytes
}

/// Whether there is a certificate in it, `BEGIN CERTIFICATE` or OpenSSL's `BEGIN TRUSTED CERTIFICATE`.
pub(super) fn has_certificate(bytes: &[u8]) -> bool {
    !certificates(bytes).is_empty()
}

pub(super) fn holds(bytes: &[u8], anchor: &Anchor) -> bool {
    // OpenSSL's trusted form has more after the certificate.
    let is = |der: &Vec<u8>| der.starts_with(anchor.der());
    certificates(bytes).iter().any(|(_, der)| is(der))
}

/// An anchor as it stands in bundles, and in its own file in a system's directory of anchors.
pub(super) fn block(anchor: &Anchor) -> String {
    marked(anchor, BEGINS)
}

fn marked(anchor: &Anchor, begins: &str) -> String {
    let (id, pem) = (anchor.sha256(), anchor.pem());
    format!("{MARK}{id}{begins}\n{pem}{MARK}{id}{ENDS}\n")
}

/// Without its marked blocks; None when there is none.
fn unmerge_once(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut kept: Vec<u8> = Vec::with_capacity(bytes.len());
    let mut joined_at = None;
    let mut any = false;
    let mut at = 0;
    while at < bytes.len() {
        if let Some((length, own_line)) = block_at(&bytes[at..]) {
            if own_line {
                joined_at = Some(kept.len());
            }
            any = true;
            at += length;
        } else {
            let line = line_at(&bytes[at..]);
            kept.extend_from_slice(line);
            at += line.len();
        }
    }
    // Unless something was put behind it meanwhile, which needs the line end.
    if joined_at == Some(kept.len()) && kept.ends_with(b"\n") {
        kept.pop();
    }
    any.then_some(kept)
}

/// The length of the marked block at the start of `bytes`, and whether a line end was added before it. Strict, so that
/// nothing else is ever taken for one.
fn block_at(bytes: &[u8]) -> Option<(usize, bool)> {
    let first = line_at(bytes);
    let rest = text(first)?.strip_prefix(MARK)?;
    let (id, own_line) = match rest.strip_suffix(BEGINS_ON_NEW_LINE) {
        Some(id) => (id, true),
        None => (rest.strip_suffix(BEGINS)?, false),
    };
    let mut length = first.len();
    let mut next = || {
        let line = line_at(&bytes[length..]);
        length += line.len();
        text(line)
    };
    if next()?.as_bytes() != PEM_BEGIN {
        return None;
    }
    loop {
        let line = next()?;
        if line.as_bytes() == PEM_END {
            break;
        }
        let base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
        if line.is_empty() || !line.bytes().all(base64) {
            return None;
        }
    }
    let last = next()?;
    let ends = last.strip_prefix(MARK)?.strip_suffix(ENDS)? == id;
    ends.then_some((length, own_line))
}

/// Up to and with the line end.
fn line_at(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    &bytes[..end.map_or(bytes.len(), |at| at + 1)]
}

fn text(line: &[u8]) -> Option<&str> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    std::str::from_utf8(line).ok()
}

/// Where each certificate stands, and its DER. What is no certificate is passed over.
fn certificates(bytes: &[u8]) -> Vec<(Range<usize>, Vec<u8>)> {
    const ENDS: [(&[u8], &[u8]); 2] = [
        (PEM_BEGIN, PEM_END),
        (
            b"-----BEGIN TRUSTED CERTIFICATE-----",
            b"-----END TRUSTED CERTIFICATE-----",
        ),
    ];
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = position(&bytes[at..], b"-----BEGIN ").map(|start| at + start) {
        at = start + 1;
        let Some((begin, end)) = ENDS.iter().find(|(begin, _)| bytes[start..].starts_with(begin)) else {
            continue;
        };
        let body = start + begin.len();
        let Some(length) = position(&bytes[body..], b"-----") else {
            break;
        };
        if !bytes[body + length..].starts_with(end) {
            continue;
        }
        let mut base64 = bytes[body..body + length].to_vec();
        base64.retain(|byte| !byte.is_ascii_whitespace());
        if let Ok(der) = STANDARD.decode(base64)
            && !der.is_empty()
        {
            at = body + length + end.len();
            found.push((start..at, der));
        }
    }
    found
}

fn position(bytes: &[u8], what: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += bytes[at..].iter().position(|byte| *byte == what[0])?;
        if bytes[at..].starts_with(what) {
            return Some(at);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests;
