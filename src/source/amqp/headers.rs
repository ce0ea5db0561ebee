//! What a message carries beside its payload: AMQP's properties by their names in the protocol (`message_id`), then its headers.
//!
//! Text, numbers and truth values become text, a header's time that of RFC 3339. Other values
//! are left out.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};

use super::queue::OFFSET;
use crate::event::{Headers, Timestamp};

/// `converted`: the body was encoded sections of AMQP 1.0. Then the `type` is the broker's own note of that.
pub(super) fn of(properties: &BasicProperties, converted: bool) -> Headers {
    let mut headers = Headers::default();
    let kind = if converted { &None } else { properties.kind() };
    let texts = [
        ("content_type", properties.content_type()),
        ("content_encoding", properties.content_encoding()),
        ("correlation_id", properties.correlation_id()),
        ("reply_to", properties.reply_to()),
        ("expiration", properties.expiration()),
        ("message_id", properties.message_id()),
        ("type", kind),
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
        let Some(text) = text(value) else { continue };
        if is_literal(value) {
            headers.push_literal(name.as_str(), &text);
        } else {
            headers.push(name.as_str(), &text);
        }
    }
    headers
}

/// Whether a value is an integer or a truth value as CloudEvents has them: integers are of 32 bits there.
fn is_literal(value: &AMQPValue) -> bool {
    match value {
        AMQPValue::Boolean(_)
        | AMQPValue::ShortShortInt(_)
        | AMQPValue::ShortShortUInt(_)
        | AMQPValue::ShortInt(_)
        | AMQPValue::ShortUInt(_)
        | AMQPValue::LongInt(_) => true,
        AMQPValue::LongUInt(value) => i32::try_from(*value).is_ok(),
        AMQPValue::LongLongInt(value) => i32::try_from(*value).is_ok(),
        _ => false,
    }
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
        // Lists and tables come as bytes (`super::scrub`).
        AMQPValue::DecimalValue(_) | AMQPValue::ByteArray(_) | AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) | AMQPValue::Void => {
            return None;
        }
    })
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldTable;

    use super::*;

    #[test]
    fn values_become_text() {
        let mut table = FieldTable::default();
        for (name, value) in [
            ("cloudEvents:time", AMQPValue::Timestamp(1_700_000_000)),
            ("late", AMQPValue::Timestamp(u64::MAX)),
            ("n", AMQPValue::LongInt(-5)),
            ("bytes", AMQPValue::LongString(vec![0xff].into())),
            (OFFSET, AMQPValue::LongLongInt(7)),
        ] {
            table.insert(name.into(), value);
        }
        let properties = BasicProperties::default().with_headers(table).with_timestamp(1_700_000_000).with_priority(3);
        let headers = of(&properties, false);
        assert_eq!(headers.typed().filter(|(.., literal)| *literal).map(|(name, ..)| name).collect::<Vec<_>>(), ["n"]);
        let typed = properties.with_type("amqp-1.0".into());
        assert_eq!([false, true].map(|converted| of(&typed, converted).get("type").map(str::to_owned)), [Some("amqp-1.0".into()), None]);
        let mut found: Vec<_> = headers.iter().collect();
        found.sort_unstable();
        let expected = [("cloudEvents:time", "2023-11-14T22:13:20.000000Z"), ("n", "-5"), ("priority", "3"), ("timestamp", "1700000000")];
        assert_eq!(found, expected);
    }
}
