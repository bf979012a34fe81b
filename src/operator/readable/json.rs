//! A JSON value that borrows its texts from the answer it was read from.
//!
//! Every listed and watched object passes through one. `serde_json`'s own value allocates each key
//! and each text, and hashes each key: of the time to list a large cluster that was the most.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Number, Value};

use super::Unread;

/// A JSON value. Fields are in the order of the text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Positive(u64),
    Negative(i64),
    Float(f64),
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(Vec<(Cow<'a, str>, Json<'a>)>),
}

impl<'a> Json<'a> {
    /// Gives an object an empty field where it has none, or null.
    pub(super) fn fill(&mut self, field: &'static str) {
        let Self::Object(fields) = self else { return };
        let empty = Self::Object(Vec::new());
        match fields.iter_mut().find(|(name, _)| name == field) {
            Some((_, value)) if *value == Self::Null => *value = empty,
            Some(_) => {}
            None => fields.push((Cow::Borrowed(field), empty)),
        }
    }
}

impl From<Json<'_>> for Value {
    fn from(json: Json<'_>) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(value),
            Json::Positive(value) => Self::from(value),
            Json::Negative(value) => Self::from(value),
            Json::Float(value) => Number::from_f64(value).map_or(Self::Null, Self::Number),
            Json::Text(text) => Self::String(text.into_owned()),
            Json::List(items) => items.into_iter().collect(),
            Json::Object(fields) => {
                fields.into_iter().map(|(name, value)| (name.into_owned(), value)).collect()
            }
        }
    }
}

impl<'de> IntoDeserializer<'de, Error> for &'de Json<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for &'de Json<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Json::Null => visitor.visit_unit(),
            Json::Bool(value) => visitor.visit_bool(*value),
            Json::Positive(value) => visitor.visit_u64(*value),
            Json::Negative(value) => visitor.visit_i64(*value),
            Json::Float(value) => visitor.visit_f64(*value),
            Json::Text(text) => visitor.visit_borrowed_str(text),
            Json::List(items) => {
                let mut items = SeqDeserializer::new(items.iter());
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Json::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| (&**name, value));
                let mut fields = MapDeserializer::new(fields);
                let value = visitor.visit_map(&mut fields)?;
                fields.end().map(|()| value)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Json::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(Variant(self))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier
    }
}

/// A variant without content, by its name: no watched kind has others.
struct Variant<'de, 'a>(&'de Json<'a>);

impl<'de> EnumAccess<'de> for Variant<'de, '_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        Ok((seed.deserialize(self.0)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de, '_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        Err(with_content("newtype variant"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(with_content("tuple variant"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        Err(with_content("struct variant"))
    }
}

fn with_content(expected: &str) -> Error {
    serde::de::Error::invalid_type(Unexpected::UnitVariant, &expected)
}

/// Reads a JSON value without the fields that are passed over. A list is passed through to its
/// elements.
pub(super) struct Pruned<'a>(pub(super) Option<&'a Unread>);

impl<'de> DeserializeSeed<'de> for Pruned<'_> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pruned<'_> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'de>, E> {
        // One form for each number, so that equal values compare equal.
        Ok(u64::try_from(value).map_or(Json::Negative(value), Json::Positive))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'de>, E> {
        Ok(Json::Positive(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json<'de>, E> {
        Ok(Json::Float(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(value)))
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_none<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Pruned(self.0))? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json<'de>, A::Error> {
        let mut object = Vec::new();
        while let Some(Key(key)) = entries.next_key()? {
            match self.0.and_then(|u| u.field(&key)) {
                Some(unread) if unread.whole => drop(entries.next_value::<IgnoredAny>()?),
                unread => object.push((key, entries.next_value_seed(Pruned(unread))?)),
            }
        }
        Ok(Json::Object(object))
    }
}

/// The name of a field, borrowed where it stands in the text as it is.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Borrowed(name)))
    }

    fn visit_str<E>(self, name: &str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Owned(name.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pruned(text: &str) -> Json<'_> {
        let mut reader = serde_json::Deserializer::from_str(text);
        Pruned(None).deserialize(&mut reader).unwrap()
    }

    #[test]
    fn a_value_is_read_as_it_was_written() {
        let value = json!({"null": null, "flag": true, "list": [1, -2, 0.5, u64::MAX, i64::MIN],
            "text": "a \"quoted\" line\n", "k\u{e9}y \"q\"": {"deep": [{}, [], ""]}});
        let text = value.to_string();
        assert_eq!(Value::from(pruned(&text)), value);
        assert_eq!(Value::deserialize(&pruned(&text)).unwrap(), value);
    }

    #[test]
    fn texts_and_names_are_borrowed_unless_they_were_escaped() {
        let Json::Object(fields) = pruned(r#"{"a": "plain", "b\n": "two\nlines"}"#) else {
            panic!("an object")
        };
        let borrowed = fields.iter().map(|(name, value)| {
            let Json::Text(text) = value else { panic!("{value:?}") };
            (matches!(name, Cow::Borrowed(_)), matches!(text, Cow::Borrowed(_)))
        });
        assert_eq!(borrowed.collect::<Vec<_>>(), [(true, true), (false, false)]);
    }

    #[test]
    fn an_empty_field_stands_in_for_one_that_is_missing_or_null() {
        for (text, filled) in [
            (r#"{"a": 1}"#, json!({"a": 1, "spec": {}})),
            (r#"{"spec": null}"#, json!({"spec": {}})),
            (r#"{"spec": 7}"#, json!({"spec": 7})),
            ("[]", json!([])),
        ] {
            let mut json = pruned(text);
            json.fill("spec");
            assert_eq!(Value::from(json), filled);
        }
    }
}
