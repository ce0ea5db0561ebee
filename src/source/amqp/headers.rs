//! What a message carries beside its payload: AMQP's properties by their names in the protocol (`message_id`), then its headers.
//!
//! Text, numbers and truth values become text, a header's time that of RFC 3339; of a list the first value counts. Other values
//! are left out.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};

use super::queue::OFFSET;
use crate::event::{Headers, Timestamp};

pub(super) fn of(properties: &BasicProperties) -> Headers {
    let mut headers = Headers::default();
    let texts = [
        ("content_type", properties.content_type()),
        ("content_encoding", properties.content_encoding()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("message_id", properties.message_id()),
        ("type", properties.kind()),
        ("user_id", properties.user_id()),
        ("app_id", properties.app_id()),
    ];
    for (name, value) in texts {
        if let Some(value) = value.as_ref().map(ShortString::as_str) {
            headers.push(name, value);
        }
    }
    for (name, value) in [("priority", properties.priority().map(u64::from)), ("timestamp", *properties.timestamp())] {
        if let Some(value) = value {
            headers.push(name, &value.to_string());
        }
    }
    // The broker's own note of an offset is in every message of a stream.
    let table = properties.headers().iter().flat_map(|table| table.inner());
    for (name, value) in table.filter(|(name, _)| name.as_str() != OFFSET) {
        if let Some(value) = text(value) {
            headers.push(name.as_str(), &value);
        }
    }
    headers
}

fn text(value: &AMQPValue) -> Option<String> {
    Some(match value {
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Timestamp(seconds) => Timestamp::from_micros(seconds.checked_mul(1_000_000)?).to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        AMQPValue::ShortString(value) => value.as_str().to_owned(),
        AMQPValue::LongString(value) => std::str::from_utf8(value.as_bytes()).ok()?.to_owned(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().find_map(text)?,
        AMQPValue::DecimalValue(_) | AMQPValue::ByteArray(_) | AMQPValue::FieldTable(_) | AMQPValue::Void => return None,
    })
}

#[cfg(test)]
mod tests {
    use lapin::types::{FieldArray, FieldTable};

    use super::*;

    #[test]
    fn values_become_text() {
        let mut table = FieldTable::default();
        for (name, value) in [
            ("cloudEvents:time", AMQPValue::Timestamp(1_700_000_000)),
            ("late", AMQPValue::Timestamp(u64::MAX)),
            ("n", AMQPValue::LongInt(-5)),
            ("list", AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Void, AMQPValue::Boolean(true)]))),
            ("bytes", AMQPValue::LongString(vec![0xff].into())),
            (OFFSET, AMQPValue::LongLongInt(7)),
        ] {
            table.insert(name.into(), value);
        }
        let headers = of(&BasicProperties::default().with_headers(table).with_timestamp(1_700_000_000).with_priority(3));
        let mut found: Vec<_> = headers.iter().collect();
        found.sort_unstable();
        let expected = [
            ("cloudEvents:time", "2023-11-14T22:13:20.000000Z"),
            ("list", "true"),
            ("n", "-5"),
            ("priority", "3"),
            ("timestamp", "1700000000"),
        ];
        assert_eq!(found, expected);
    }
}
