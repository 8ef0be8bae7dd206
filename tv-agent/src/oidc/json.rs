//! JSON objects from outside: bounded in depth, no member named twice. Pure.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};

use crate::limits;

/// Why bytes are no acceptable JSON object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotJson {
    #[error("is no JSON")]
    Syntax,
    #[error("is JSON, but no object")]
    NotObject,
    #[error("nests deeper than {} levels", limits::JSON_DEPTH)]
    TooDeep,
    #[error("names a member twice")]
    Duplicate,
}

const DEEP: &str = "tv: too deep";
const TWICE: &str = "tv: twice";
const NO_OBJECT: &str = "tv: no object";

impl NotJson {
    /// What kept an [`Object`] from being read.
    pub fn of(error: &serde_json::Error) -> Self {
        match error.to_string() {
            text if text.starts_with(DEEP) || text.starts_with("recursion limit") => Self::TooDeep,
            text if text.starts_with(TWICE) => Self::Duplicate,
            text if text.starts_with(NO_OBJECT) => Self::NotObject,
            _ => Self::Syntax,
        }
    }
}

/// Parses one object. A member named twice is refused: two readers may take different ones (RFC 8259 §4).
///
/// # Errors
/// See [`NotJson`].
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, NotJson> {
    match serde_json::from_slice(bytes) {
        Ok(Object(members)) => Ok(members),
        Err(error) => Err(NotJson::of(&error)),
    }
}

/// What [`object`] gives, for parsers that call serde themselves.
pub struct Object(pub Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Strict(limits::JSON_DEPTH).deserialize(deserializer)? {
            Value::Object(members) => Ok(Self(members)),
            _ => Err(D::Error::custom(NO_OBJECT)),
        }
    }
}

/// A value that may have as many levels.
struct Strict(usize);

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let below = self.0.checked_sub(1).ok_or_else(|| A::Error::custom(DEEP))?;
        let mut all = Vec::new();
        while let Some(value) = list.next_element_seed(Strict(below))? {
            all.push(value);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let below = self.0.checked_sub(1).ok_or_else(|| A::Error::custom(DEEP))?;
        let mut all = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(Strict(below))?;
            if all.insert(name, value).is_some() {
                return Err(A::Error::custom(TWICE));
            }
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize) -> String {
        format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels))
    }

    #[test]
    fn objects_come_through_unchanged() {
        let text = r#"{"a":[1,-2,3.5,"x",null,true,{"b":{}}],"c":18446744073709551615}"#;
        let expected: Map<String, Value> = serde_json::from_str(text).unwrap();
        assert_eq!(object(text.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn each_fault_has_its_own_name() {
        for (text, fault) in [
            ("", NotJson::Syntax),
            ("{", NotJson::Syntax),
            ("{} x", NotJson::Syntax),
            ("{\"a\":1e999}", NotJson::Syntax),
            ("\u{fffd}", NotJson::Syntax),
            ("null", NotJson::NotObject),
            ("[{}]", NotJson::NotObject),
            ("\"eyJ\"", NotJson::NotObject),
            (r#"{"sub":"a","sub":"b"}"#, NotJson::Duplicate),
            (r#"{"x":{"sub":"a","\u0073ub":"b"}}"#, NotJson::Duplicate),
        ] {
            assert_eq!(object(text.as_bytes()), Err(fault), "{text}");
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), Err(NotJson::Syntax));
    }

    #[test]
    fn depth_is_bounded() {
        assert!(object(nested(limits::JSON_DEPTH).as_bytes()).is_ok());
        let deeper = nested(limits::JSON_DEPTH + 1);
        assert_eq!(object(deeper.as_bytes()), Err(NotJson::TooDeep));
        let arrays = format!("{{\"a\":{}", "[".repeat(100_000));
        assert_eq!(object(arrays.as_bytes()), Err(NotJson::TooDeep));
    }
}
