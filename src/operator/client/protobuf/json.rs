//! From an answer in protobuf to the JSON that the API server would have sent.

use jiff::Timestamp;
use quick_protobuf::{BytesReader, Error as Malformed};

use super::fields::{Field, Fields, Kind, Message, Shape};

/// What an object in protobuf starts with, as the API server sends it.
const MAGIC: &[u8] = b"k8s\0";

/// An answer that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the API server's answer does not start as protobuf of Kubernetes does")]
    Magic,
    #[error("the API server's answer in protobuf is {0:?}, expected Pods, Nodes or a status")]
    Kind(String),
    #[error("the API server's answer in protobuf is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("the API server's answer in protobuf has text that is not UTF-8")]
    Text(#[from] std::str::Utf8Error),
    #[error("the API server's answer in protobuf has a time that does not exist")]
    Time(#[from] jiff::Error),
}

/// A value as it is sent.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    fn is_zero(self) -> bool {
        matches!(self, Self::Number(0) | Self::Bytes([]))
    }

    /// The bytes; none where a number stands.
    fn bytes(self) -> &'a [u8] {
        match self {
            Self::Number(_) => &[],
            Self::Bytes(bytes) => bytes,
        }
    }

    fn number(self) -> u64 {
        match self {
            Self::Number(number) => number,
            Self::Bytes(_) => 0,
        }
    }

    fn text(self) -> Result<&'a str, Error> {
        Ok(std::str::from_utf8(self.bytes())?)
    }
}

/// Calls back with the number and the value of every field of a message.
fn each<'a>(bytes: &'a [u8], mut field: impl FnMut(u32, Value<'a>)) -> Result<(), Error> {
    let mut reader = BytesReader::from_bytes(bytes);
    while !reader.is_eof() {
        let tag = reader.next_tag(bytes)?;
        match tag & 7 {
            0 => field(tag >> 3, Value::Number(reader.read_varint64(bytes)?)),
            2 => field(tag >> 3, Value::Bytes(reader.read_bytes(bytes)?)),
            // Kubernetes has no other, so that whatever it is cannot be a field of the table.
            _ => reader.read_unknown(bytes, tag)?,
        }
    }
    Ok(())
}

/// The values of the first two fields of a small message.
fn pair(bytes: &[u8]) -> Result<[Value<'_>; 2], Error> {
    let mut pair = [Value::Bytes(&[]); 2];
    each(bytes, |number, value| match number {
        1 => pair[0] = value,
        2 => pair[1] = value,
        _ => {}
    })?;
    Ok(pair)
}

/// The JSON of a list, an object or a status.
pub(super) fn from_protobuf(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    // What is read of a Pod is shorter as JSON than all of it is in protobuf.
    let mut json = Vec::with_capacity(bytes.len());
    write(bytes, &mut json)?;
    Ok(json)
}

/// Adds the JSON of a watch's event.
pub(super) fn write_event(bytes: &[u8], json: &mut Vec<u8>) -> Result<(), Error> {
    let [kind, object] = pair(bytes)?;
    // The object is in a message of its own that has nothing else.
    let [object, _] = pair(object.bytes())?;
    json.extend_from_slice(b"{\"type\":");
    write_text(kind.text()?, json);
    json.extend_from_slice(b",\"object\":");
    write(object.bytes(), json)?;
    json.push(b'}');
    Ok(())
}

fn write(bytes: &[u8], json: &mut Vec<u8>) -> Result<(), Error> {
    let envelope = bytes.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let [type_meta, object] = pair(envelope)?;
    let [version, kind] = pair(type_meta.bytes())?;
    let (version, kind) = (version.text()?, kind.text()?);
    let fields = Fields::of(kind).ok_or_else(|| Error::Kind(kind.to_owned()))?;
    let mut writer = Writer { fields, json };
    writer.json.extend_from_slice(b"{\"kind\":");
    writer.text(kind);
    writer.json.extend_from_slice(b",\"apiVersion\":");
    writer.text(version);
    writer.fields(fields.root(), object.bytes())?;
    writer.json.push(b'}');
    Ok(())
}

fn write_text(text: &str, json: &mut Vec<u8>) {
    // Writing into memory does not fail.
    let _ = serde_json::to_writer(json, text);
}

struct Writer<'a> {
    fields: &'static Fields,
    json: &'a mut Vec<u8>,
}

impl Writer<'_> {
    /// Writes an object.
    fn object(&mut self, message: &Message, bytes: &[u8]) -> Result<(), Error> {
        self.json.push(b'{');
        self.fields(message, bytes)?;
        self.json.push(b'}');
        Ok(())
    }

    /// Writes the fields of an object that was begun.
    fn fields(&mut self, message: &Message, bytes: &[u8]) -> Result<(), Error> {
        let mut found: smallvec::SmallVec<[(u32, Value<'_>); 24]> = smallvec::SmallVec::new();
        each(bytes, |number, value| found.push((number, value)))?;
        // Go sends them in this order. The format allows any, and that a list comes in parts.
        found.sort_by_key(|(number, _)| *number);
        for values in found.chunk_by(|a, b| a.0 == b.0) {
            let number = values[0].0;
            if let Ok(at) = message.binary_search_by_key(&number, |field| field.number) {
                self.field(&message[at], values)?;
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, values: &[(u32, Value<'_>)]) -> Result<(), Error> {
        match field.shape {
            Shape::One => {
                let Some((_, value)) = values.last() else { return Ok(()) };
                self.one(field, *value)
            }
            Shape::List => {
                self.name(field.name);
                for (index, (_, value)) in values.iter().enumerate() {
                    self.json.push(if index == 0 { b'[' } else { b',' });
                    self.value(field.kind, *value)?;
                }
                self.json.push(b']');
                Ok(())
            }
            Shape::Map => {
                self.name(field.name);
                for (index, (_, entry)) in values.iter().enumerate() {
                    self.json.push(if index == 0 { b'{' } else { b',' });
                    let [key, value] = pair(entry.bytes())?;
                    self.text(key.text()?);
                    self.json.push(b':');
                    self.value(field.kind, value)?;
                }
                self.json.push(b'}');
                Ok(())
            }
        }
    }

    fn one(&mut self, field: &Field, value: Value<'_>) -> Result<(), Error> {
        let kind = field.kind;
        if let (Kind::Message(at), "") = (kind, field.name) {
            return self.fields(self.fields.message(at), value.bytes());
        }
        // A message that is empty stands in JSON all the same; a time without seconds is none.
        let unset = match kind {
            Kind::Message(_) => false,
            Kind::Time => value.is_zero(),
            _ => field.unset_if_zero && value.is_zero(),
        };
        if unset {
            return Ok(());
        }
        self.name(field.name);
        self.value(kind, value)
    }

    /// Begins a field; there is none in an object that was just begun.
    fn name(&mut self, name: &str) {
        if self.json.last() != Some(&b'{') {
            self.json.push(b',');
        }
        self.text(name);
        self.json.push(b':');
    }

    fn text(&mut self, text: &str) {
        write_text(text, self.json);
    }

    fn number(&mut self, number: u64) {
        // Negative numbers are sent as the 64 bits that they have.
        let _ = serde_json::to_writer(&mut *self.json, &number.cast_signed());
    }

    fn value(&mut self, kind: Kind, value: Value<'_>) -> Result<(), Error> {
        match kind {
            Kind::Text => self.text(value.text()?),
            Kind::Number => self.number(value.number()),
            Kind::Boolean => {
                let text: &[u8] = if value.number() == 0 { b"false" } else { b"true" };
                self.json.extend_from_slice(text);
            }
            Kind::Time => {
                // JSON has no parts of a second.
                let [seconds, _] = pair(value.bytes())?;
                let time = Timestamp::from_second(seconds.number().cast_signed())?;
                self.text(&time.to_string());
            }
            Kind::Quantity => {
                let [amount, _] = pair(value.bytes())?;
                let amount = amount.text()?;
                self.text(if amount.is_empty() { "0" } else { amount });
            }
            Kind::IntOrText => self.int_or_text(value.bytes())?,
            Kind::Message(at) => self.object(self.fields.message(at), value.bytes())?,
        }
        Ok(())
    }

    fn int_or_text(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let (mut is_text, mut number, mut text) = (false, 0, Value::Bytes(&[]));
        each(bytes, |field, value| match field {
            1 => is_text = value.number() == 1,
            2 => number = value.number(),
            3 => text = value,
            _ => {}
        })?;
        if is_text {
            self.text(text.text()?);
        } else {
            self.number(number);
        }
        Ok(())
    }
}
