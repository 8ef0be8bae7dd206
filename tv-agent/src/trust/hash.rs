//! The name under which OpenSSL looks a CA up in a certificate directory: `X509_NAME_hash` (OpenSSL 1.0 and
//! later), as `openssl x509 -subject_hash` prints it.

use sha1::{Digest as _, Sha1};
use x509_parser::asn1_rs::{Tag, ToDer as _};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Eight hexadecimal digits: the first four bytes, little endian, of SHA-1 over the canonical form of the name.
///
/// `None` when the name is empty or holds a string type that no CA has used for decades (BMP, Universal, T61).
pub(super) fn subject_hash(name: &X509Name<'_>) -> Option<String> {
    let mut canonical = Vec::new();
    for rdn in name.iter_rdn() {
        let mut attributes = rdn.iter().map(attribute).collect::<Option<Vec<_>>>()?;
        // DER sorts the members of a SET OF (X.690 §11.6).
        attributes.sort();
        canonical.extend(tlv(0x31, &attributes.concat()));
    }
    if canonical.is_empty() {
        return None;
    }
    let digest = Sha1::digest(&canonical);
    let hash = u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]);
    Some(format!("{hash:08x}"))
}

/// SEQUENCE { type, value }, with the value in canonical form (`x509_name_canon`, crypto/x509/x_name.c).
fn attribute(attribute: &AttributeTypeAndValue<'_>) -> Option<Vec<u8>> {
    let value = attribute.attr_value();
    let value = match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::VisibleString => {
            tlv(0x0c, &canonical_text(value.data))
        }
        Tag::BmpString | Tag::UniversalString | Tag::T61String => return None,
        // Anything that is no text (a bit string, say) stays as it is.
        _ => value.to_der_vec().ok()?,
    };
    let mut both = attribute.attr_type().to_der_vec().ok()?;
    both.extend(value);
    Some(tlv(0x30, &both))
}

/// ASCII letters in lower case, no spaces at the ends, one space for each run of them.
fn canonical_text(text: &[u8]) -> Vec<u8> {
    text.split(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c))
        .filter(|word| !word.is_empty())
        .map(<[u8]>::to_ascii_lowercase)
        .collect::<Vec<_>>()
        .join(&b' ')
}

/// Tag, length and value in DER (X.690 §8.1.3).
pub(super) fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    if value.len() < 0x80 {
        out.push(value.len() as u8);
    } else {
        let length = value.len().to_be_bytes();
        let length = &length[length.iter().take_while(|b| **b == 0).count()..];
        out.push(0x80 | length.len() as u8);
        out.extend(length);
    }
    out.extend(value);
    out
}
