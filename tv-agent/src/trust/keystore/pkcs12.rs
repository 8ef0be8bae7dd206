//! PKCS #12 (RFC 7292): ours go into a part of their own, in the clear, beside the parts that are there.
//!
//! In the clear, because that is all that Java reads of its own store, which it opens without a password.

use ::pkcs12::authenticated_safe::AuthenticatedSafe;
use ::pkcs12::kdf::{Pkcs12KeyType, derive_key_utf8};
use ::pkcs12::mac_data::MacData;
use ::pkcs12::pfx::Pfx;
use aws_lc_rs::hmac;
use der::asn1::{ObjectIdentifier, OctetString};
use der::{Any, AnyRef, Decode as _, Encode as _, Reader as _, SliceReader, Tag};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

use super::{PASSWORDS, Unusable};
use crate::limits;
use crate::trust::anchors::{Anchor, Anchors};
use crate::trust::hash::tlv;

const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const CERT_BAG: ObjectIdentifier = ::pkcs12::PKCS_12_CERT_BAG_OID;
const X509: ObjectIdentifier = ::pkcs12::PKCS_12_X509_CERT_OID;
const FRIENDLY_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.20");
/// Oracle's mark of a trusted certificate; its value says for what.
const TRUSTED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.113894.746875.1.1");
const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTETS: u8 = 0x04;
const BMP: u8 = 0x1e;
const EXPLICIT: u8 = 0xa0;

pub(super) fn merge(store: &[u8], anchors: &Anchors) -> Result<Vec<u8>, Unusable> {
    let mut store = Store::read(store)?;
    let mut bags = Vec::new();
    for anchor in anchors.iter() {
        if !store.clear_bags()?.iter().any(|bag| is(bag, anchor)) {
            bags.push(bag(anchor)?);
        }
    }
    if !bags.is_empty() {
        store.parts.extend(part(&bags)?);
    }
    store.write()
}

pub(super) fn remove(store: &[u8], anchors: &Anchors) -> Result<Vec<u8>, Unusable> {
    let mut store = Store::read(store)?;
    let ours = |bag: &Vec<u8>| anchors.iter().any(|anchor| is(bag, anchor));
    let mut parts = AuthenticatedSafe::new();
    let (mut removed, mut hidden) = (0, false);
    for one in std::mem::take(&mut store.parts) {
        match bags_of(one.content_type, &one.content)? {
            Some(bags) if bags.iter().any(ours) => {
                let count = bags.len();
                let kept: Vec<_> = bags.into_iter().filter(|bag| !ours(bag)).collect();
                removed += count - kept.len();
                if !kept.is_empty() {
                    parts.extend(part(&kept)?);
                }
            }
            other => {
                hidden |= other.is_none();
                parts.push(one);
            }
        }
    }
    // Whoever rewrote the store may have put it among what is encrypted.
    if removed == 0 && hidden {
        let names: Vec<_> = anchors.iter().map(Anchor::name).collect();
        return Err(Unusable::Encrypted(names.join(" or ")));
    }
    store.parts = parts;
    store.write()
}

struct Store {
    pfx: Pfx,
    parts: AuthenticatedSafe<'static>,
    password: &'static str,
}

impl Store {
    fn read(bytes: &[u8]) -> Result<Self, Unusable> {
        let pfx = Pfx::from_der(bytes).map_err(damaged)?;
        if pfx.auth_safe.content_type != DATA {
            return Err(Unusable::Form);
        }
        let content = contents(&pfx.auth_safe.content)?;
        let parts = AuthenticatedSafe::from_der(&content).map_err(damaged)?;
        let password = match &pfx.mac_data {
            Some(mac) => fitting(mac, &content)?,
            None => "",
        };
        let store = Self { pfx, parts, password };
        // Then what is written differs by our part alone.
        if store.encoded()? != content {
            return Err(Unusable::Damaged);
        }
        Ok(store)
    }

    fn clear_bags(&self) -> Result<Vec<Vec<u8>>, Unusable> {
        let mut bags = Vec::new();
        for part in &self.parts {
            bags.extend(bags_of(part.content_type, &part.content)?.unwrap_or_default());
        }
        Ok(bags)
    }

    fn encoded(&self) -> Result<Vec<u8>, Unusable> {
        self.parts.to_der().map_err(damaged)
    }

    fn write(mut self) -> Result<Vec<u8>, Unusable> {
        let content = self.encoded()?;
        if let Some(mac) = &mut self.pfx.mac_data {
            mac.mac.digest = OctetString::new(code(mac, self.password, &content)?).map_err(damaged)?;
        }
        self.pfx.auth_safe.content = Any::new(Tag::OctetString, content).map_err(damaged)?;
        self.pfx.to_der().map_err(damaged)
    }
}

/// What is in an OCTET STRING.
fn contents(any: &Any) -> Result<Vec<u8>, Unusable> {
    let octets = any.decode_as::<OctetString>().map_err(damaged)?;
    Ok(octets.into_bytes())
}

/// The bags of a part that is not encrypted.
fn bags_of(kind: ObjectIdentifier, content: &Any) -> Result<Option<Vec<Vec<u8>>>, Unusable> {
    if kind != DATA {
        return Ok(None);
    }
    let content = contents(content)?;
    let sequence = AnyRef::from_der(&content).map_err(damaged)?;
    let mut reader = SliceReader::new(sequence.value()).map_err(damaged)?;
    let mut bags = Vec::new();
    while !reader.is_finished() {
        bags.push(reader.tlv_bytes().map_err(damaged)?.to_owned());
    }
    Ok(Some(bags))
}

fn is(bag: &[u8], anchor: &Anchor) -> bool {
    let kind = CERT_BAG.to_der().unwrap_or_default();
    let body = AnyRef::from_der(bag).map(|bag| bag.value()).unwrap_or_default();
    body.starts_with(&kind)
        && body
            .windows(anchor.der().len())
            .any(|window| window == anchor.der())
}

/// SafeBag { certBag, [0] { x509Certificate, [0] OCTET STRING }, SET OF attribute }.
fn bag(anchor: &Anchor) -> Result<Vec<u8>, Unusable> {
    let oid = |oid: ObjectIdentifier| oid.to_der().map_err(damaged);
    let attribute = |kind, value: Vec<u8>| -> Result<Vec<u8>, Unusable> {
        Ok(tlv(SEQUENCE, &[oid(kind)?, tlv(SET, &value)].concat()))
    };
    let name: Vec<u8> = anchor.name().encode_utf16().flat_map(u16::to_be_bytes).collect();
    let mut attributes = [
        attribute(FRIENDLY_NAME, tlv(BMP, &name))?,
        attribute(TRUSTED_KEY_USAGE, oid(ANY_USAGE)?)?,
    ];
    // DER sorts the members of a SET OF (X.690 §11.6).
    attributes.sort();
    let certificate = tlv(EXPLICIT, &tlv(OCTETS, anchor.der()));
    let value = tlv(SEQUENCE, &[oid(X509)?, certificate].concat());
    let parts = [
        oid(CERT_BAG)?,
        tlv(EXPLICIT, &value),
        tlv(SET, &attributes.concat()),
    ];
    Ok(tlv(SEQUENCE, &parts.concat()))
}

/// A part with these bags, as a list of one.
fn part(bags: &[Vec<u8>]) -> Result<AuthenticatedSafe<'static>, Unusable> {
    let content = tlv(OCTETS, &tlv(SEQUENCE, &bags.concat()));
    let kind = DATA.to_der().map_err(damaged)?;
    let one = tlv(SEQUENCE, &[kind, tlv(EXPLICIT, &content)].concat());
    AuthenticatedSafe::from_der(&tlv(SEQUENCE, &one)).map_err(damaged)
}

fn fitting(mac: &MacData, content: &[u8]) -> Result<&'static str, Unusable> {
    for password in PASSWORDS {
        if code(mac, password, content)? == mac.mac.digest.as_bytes() {
            return Ok(password);
        }
    }
    Err(Unusable::Password)
}

/// RFC 7292 appendix B: the key is derived from the password, the code is an HMAC.
fn code(mac: &MacData, password: &str, content: &[u8]) -> Result<Vec<u8>, Unusable> {
    let (salt, rounds) = (mac.mac_salt.as_bytes(), mac.iterations);
    if !(1..=limits::TRUST_KEYSTORE_ROUNDS).contains(&rounds) {
        return Err(Unusable::Rounds(rounds));
    }
    let id = Pkcs12KeyType::Mac;
    let (algorithm, key) = match mac.mac.algorithm.oid.to_string().as_str() {
        "1.3.14.3.2.26" => (
            hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            derive_key_utf8::<Sha1>(password, salt, id, rounds, 20),
        ),
        "2.16.840.1.101.3.4.2.1" => (
            hmac::HMAC_SHA256,
            derive_key_utf8::<Sha256>(password, salt, id, rounds, 32),
        ),
        "2.16.840.1.101.3.4.2.2" => (
            hmac::HMAC_SHA384,
            derive_key_utf8::<Sha384>(password, salt, id, rounds, 48),
        ),
        "2.16.840.1.101.3.4.2.3" => (
            hmac::HMAC_SHA512,
            derive_key_utf8::<Sha512>(password, salt, id, rounds, 64),
        ),
        other => return Err(Unusable::Mac(other.to_owned())),
    };
    let key = hmac::Key::new(algorithm, &key.map_err(damaged)?);
    Ok(hmac::sign(&key, content).as_ref().to_owned())
}

fn damaged(_: der::Error) -> Unusable {
    Unusable::Damaged
}
