//! Bodies of AMQP 1.0 messages, as RabbitMQ hands them to readers by AMQP 0-9-1: the encoded sections, where the body is no
//! single data section.
//!
//! Pure. The payload is what the publisher meant: text and bytes as they are, all other values as JSON. A timestamp is its
//! milliseconds since 1970, bytes within a value are text or else base64, and a decimal is text, as no JSON number is one.

use std::cell::Cell;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// The `type` property of such a message.
pub(super) const KIND: &str = "amqp-1.0";
/// Values within values.
const DEPTH: u32 = 64;
/// How much JSON is written for so many bytes of sections. Arrays of elements without bytes, and maps as keys of maps, could become any
/// number of bytes. An honest value stays far below: a decimal of four bytes becomes a text of at most 40.
fn budget(sections: usize) -> usize {
    (64 << 10) + sections + (16 * sections).min(32 << 20)
}

const DATA: u64 = 0x75;
const SEQUENCE: u64 = 0x76;
const VALUE: u64 = 0x77;

/// The payload of encoded sections; `None` where they cannot be read, or would become too large as JSON.
pub fn payload(sections: &[u8]) -> Option<Vec<u8>> {
    let left = Cell::new(budget(sections.len()));
    let mut rest = Input { bytes: sections, left: &left };
    let (mut out, mut first) = (Vec::new(), true);
    let mut kind = None;
    while !rest.bytes.is_empty() {
        let section = rest.descriptor()?;
        if kind.replace(section).is_some_and(|before| before != section) {
            return None;
        }
        let code = rest.byte()?;
        match section {
            DATA => out.extend_from_slice(rest.binary(code)?),
            SEQUENCE => rest.elements(code, &mut out, &mut first)?,
            // Of these there is one.
            VALUE if first => {
                match code {
                    0xa0 | 0xb0 | 0xa1 | 0xb1 | 0xa3 | 0xb3 => out.extend_from_slice(rest.binary(code)?),
                    _ => rest.json(code, &mut out, 0)?,
                }
                first = false;
            }
            _ => return None,
        }
    }
    if kind? == SEQUENCE {
        out.insert(0, b'[');
        out.push(b']');
    }
    Some(out)
}

/// What is left to read.
struct Input<'a> {
    bytes: &'a [u8],
    /// How many bytes of JSON may still be written.
    left: &'a Cell<usize>,
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn unsigned(&mut self, width: usize) -> Option<u64> {
        Some(self.take(width)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn signed(&mut self, width: usize) -> Option<i64> {
        let unused = 64 - 8 * u32::try_from(width).ok()?;
        Some((self.unsigned(width)? << unused).cast_signed() >> unused)
    }

    fn size(&mut self, width: usize) -> Option<usize> {
        usize::try_from(self.unsigned(width)?).ok()
    }

    /// The code of a section.
    fn descriptor(&mut self) -> Option<u64> {
        match (self.byte()?, self.byte()?) {
            (0, 0x53) => self.unsigned(1),
            (0, 0x80) => self.unsigned(8),
            _ => None,
        }
    }

    /// A binary, string or symbol.
    fn binary(&mut self, code: u8) -> Option<&'a [u8]> {
        let width = match code {
            0xa0 | 0xa1 | 0xa3 => 1,
            0xb0 | 0xb1 | 0xb3 => 4,
            _ => return None,
        };
        let size = self.size(width)?;
        self.take(size)
    }

    fn spend(&self, count: usize) -> Option<()> {
        self.left.set(self.left.get().checked_sub(count)?);
        Some(())
    }

    /// What a list, map or array holds, and of how many values it is said to be.
    fn compound(&mut self, width: usize) -> Option<(Input<'a>, usize)> {
        let size = self.size(width)?;
        let mut within = Input { bytes: self.take(size)?, left: self.left };
        let count = within.size(width)?;
        Some((within, count))
    }

    /// The elements of a list, behind others.
    fn elements(&mut self, code: u8, out: &mut Vec<u8>, first: &mut bool) -> Option<()> {
        let (mut within, count) = match code {
            0x45 => return Some(()),
            0xc0 => self.compound(1)?,
            0xd0 => self.compound(4)?,
            _ => return None,
        };
        for _ in 0..count {
            if !std::mem::take(first) {
                out.push(b',');
            }
            let code = within.byte()?;
            within.json(code, out, 1)?;
        }
        Some(())
    }

    /// Appends a value as JSON.
    fn json(&mut self, code: u8, out: &mut Vec<u8>, depth: u32) -> Option<()> {
        if depth > DEPTH {
            return None;
        }
        match code {
            0x00 => {
                // What describes a value has no place in JSON.
                let code = self.byte()?;
                self.json(code, &mut Vec::new(), depth + 1)?;
                let code = self.byte()?;
                return self.json(code, out, depth + 1);
            }
            0x45 => {
                self.spend(2)?;
                out.extend(b"[]");
            }
            0xc0 | 0xc1 | 0xe0 => return self.nested(code, 1, out, depth),
            0xd0 | 0xd1 | 0xf0 => return self.nested(code, 4, out, depth),
            _ => {
                let (scalar, before) = (self.scalar(code)?, out.len());
                serde_json::to_writer(&mut *out, &scalar).ok()?;
                self.spend(out.len() - before)?;
            }
        }
        Some(())
    }

    fn nested(&mut self, code: u8, width: usize, out: &mut Vec<u8>, depth: u32) -> Option<()> {
        let (mut within, count) = self.compound(width)?;
        let is_map = matches!(code, 0xc1 | 0xd1);
        let element = if matches!(code, 0xe0 | 0xf0) { Some(within.byte()?) } else { None };
        out.push(if is_map { b'{' } else { b'[' });
        for n in 0..count {
            if n > 0 {
                out.push(if is_map && n % 2 == 1 { b':' } else { b',' });
            }
            let code = match element {
                Some(code) => code,
                None => within.byte()?,
            };
            if is_map && n % 2 == 0 {
                within.key(code, out, depth + 1)?;
            } else {
                within.json(code, out, depth + 1)?;
            }
        }
        out.push(if is_map { b'}' } else { b']' });
        (!is_map || count.is_multiple_of(2)).then_some(())
    }

    /// A key of a map, which is text in JSON.
    fn key(&mut self, code: u8, out: &mut Vec<u8>, depth: u32) -> Option<()> {
        let mut key = Vec::new();
        self.json(code, &mut key, depth)?;
        if key.first() == Some(&b'"') {
            out.extend(key);
        } else {
            self.spend(key.len())?;
            serde_json::to_writer(out, std::str::from_utf8(&key).ok()?).ok()?;
        }
        Some(())
    }

    fn scalar(&mut self, code: u8) -> Option<serde_json::Value> {
        Some(match code {
            0x40 => serde_json::Value::Null,
            0x41 => true.into(),
            0x42 => false.into(),
            0x43 | 0x44 => 0.into(),
            0x50 | 0x52 | 0x53 => self.unsigned(1)?.into(),
            0x51 | 0x54 | 0x55 => self.signed(1)?.into(),
            0x56 => (self.byte()? != 0).into(),
            0x60 => self.unsigned(2)?.into(),
            0x61 => self.signed(2)?.into(),
            0x70 => self.unsigned(4)?.into(),
            0x71 => self.signed(4)?.into(),
            // The shortest text that means the same, not that of the nearest double.
            0x72 => f32::from_be_bytes(self.take(4)?.try_into().ok()?).to_string().parse::<f64>().ok()?.into(),
            0x73 => char::from_u32(u32::try_from(self.unsigned(4)?).ok()?)?.to_string().into(),
            0x74 => decimal(self.take(4)?, 8).into(),
            0x84 => decimal(self.take(8)?, 10).into(),
            0x94 => decimal(self.take(16)?, 14).into(),
            0x80 => self.unsigned(8)?.into(),
            0x81 | 0x83 => self.signed(8)?.into(),
            0x82 => f64::from_be_bytes(self.take(8)?.try_into().ok()?).into(),
            0x98 => {
                let hex: Vec<String> = self.take(16)?.iter().map(|byte| format!("{byte:02x}")).collect();
                [&hex[..4], &hex[4..6], &hex[6..8], &hex[8..10], &hex[10..]].map(<[String]>::concat).join("-").into()
            }
            _ => {
                let bytes = self.binary(code)?;
                std::str::from_utf8(bytes).map_or_else(|_| BASE64_STANDARD.encode(bytes), str::to_owned).into()
            }
        })
    }
}

/// A decimal of IEEE 754 in its binary encoding (AMQP 1.0, section 1.6.13), with so many bits of an exponent. `None`: it is
/// infinite or no number.
fn decimal(bytes: &[u8], exponent_bits: usize) -> Option<String> {
    let bits = bytes.iter().fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
    let size = 8 * bytes.len();
    if bits >> (size - 5) & 0b1111 == 0b1111 {
        return None;
    }
    let wide = bits >> (size - 3) & 0b11 == 0b11;
    let low = size - 1 - exponent_bits - if wide { 2 } else { 0 };
    let digits = match bytes.len() {
        4 => 7,
        8 => 16,
        _ => 34,
    };
    let number = bits & ((1 << low) - 1) | if wide { 0b100 << low } else { 0 };
    // What has too many digits is zero.
    let number = if number < 10_u128.pow(digits) { number } else { 0 };
    let bias = (3 << (exponent_bits - 3)) + i64::from(digits) - 2;
    let exponent = i64::try_from(bits >> low & ((1 << exponent_bits) - 1)).ok()? - bias;
    let sign = if bits >> (size - 1) == 1 { "-" } else { "" };
    Some(match exponent {
        0 => format!("{sign}{number}"),
        -34..0 => {
            let fraction = usize::try_from(-exponent).ok()?;
            let text = format!("{number:0>width$}", width = fraction + 1);
            let (whole, part) = text.split_at(text.len() - fraction);
            format!("{sign}{whole}.{part}")
        }
        _ => format!("{sign}{number}e{exponent}"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(sections: &[u8]) -> Option<String> {
        payload(sections).map(|bytes| String::from_utf8(bytes).expect("text"))
    }

    fn value(encoded: &[u8]) -> Vec<u8> {
        [&[0, 0x53, 0x77], encoded].concat()
    }

    #[test]
    fn texts_and_bytes_are_taken_as_they_are() {
        assert_eq!(text(&value(b"\xa1\x09{\"a\": 1 }")).as_deref(), Some("{\"a\": 1 }"));
        assert_eq!(text(&value(b"\xb1\0\0\0\x02hi")).as_deref(), Some("hi"));
        assert_eq!(payload(&value(b"\xa0\x02\xff\0")), Some(vec![0xff, 0]));
        let data = |bytes: &[u8]| [&[0, 0x53, 0x75, 0xa0, u8::try_from(bytes.len()).expect("short")], bytes].concat();
        assert_eq!(text(&[data(b"one "), data(b""), data(b"two")].concat()).as_deref(), Some("one two"));
        assert_eq!(text(b"\0\x80\0\0\0\0\0\0\0\x75\xb0\0\0\0\x01x").as_deref(), Some("x"));
    }

    #[test]
    fn other_values_are_json() {
        for (encoded, expected) in [
            (&b"\x40"[..], "null"),
            (b"\x41", "true"),
            (b"\x56\x00", "false"),
            (b"\x45", "[]"),
            (b"\x54\xfe", "-2"),
            (b"\x71\xff\xff\xff\xff", "-1"),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615"),
            (b"\x72\x3d\xcc\xcc\xcd", "0.1"),
            (b"\x82\x7f\xf0\0\0\0\0\0\0", "null"),
            (b"\x83\0\0\0\0\0\0\x03\xe8", "1000"),
            (b"\x73\0\0\x00\xe9", "\"\u{e9}\""),
            (b"\x98\0\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff", "\"00112233-4455-6677-8899-aabbccddeeff\""),
            // As other implementations write 1.25, -7, 9999999e90, 0.001, 12e30, infinity; and 0.1 with 16 and with 34 digits.
            (b"\x74\x31\x80\0\x7d", "\"1.25\""),
            (b"\x74\xb2\x80\0\x07", "\"-7\""),
            (b"\x74\x77\xf8\x96\x7f", "\"9999999e90\""),
            (b"\x74\x31\0\0\x01", "\"0.001\""),
            (b"\x74\x41\x80\0\x0c", "\"12e30\""),
            (b"\x74\x78\0\0\0", "null"),
            (b"\x74\x6c\xbf\xff\xff", "\"0\""),
            (b"\x84\x31\xa0\0\0\0\0\0\x01", "\"0.1\""),
            (b"\x94\x30\x3e\0\0\0\0\0\0\0\0\0\0\0\0\0\x01", "\"0.1\""),
            (b"\xc0\x06\x03\x40\xa1\x01a\x43", "[null,\"a\",0]"),
            (b"\xc1\x0c\x04\xa1\x01a\x54\x01\xa3\x01b\xa0\x01\xff", "{\"a\":1,\"b\":\"/w==\"}"),
            (b"\xc1\x05\x02\x54\x01\x41\x41", "{\"1\":true}"),
            (b"\xe0\x04\x02\x54\x01\x02", "[1,2]"),
            (b"\0\xa3\x01d\x54\x07", "7"),
        ] {
            // The sizes are not what is tested: a compound may say more than it needs.
            assert_eq!(text(&value(encoded)).as_deref(), Some(expected), "{encoded:x?}");
        }
        let sequence = b"\0\x53\x76\xc0\x05\x02\x54\x01\x54\x02";
        assert_eq!(text(&[&sequence[..], sequence].concat()).as_deref(), Some("[1,2,1,2]"));
        assert_eq!(text(b"\0\x53\x76\x45").as_deref(), Some("[]"));
    }

    #[test]
    fn what_cannot_be_read_is_left() {
        let mut deep = vec![0x40];
        for _ in 0..70 {
            deep = [&b"\xd0"[..], &u32::try_from(deep.len() + 4).expect("short").to_be_bytes(), &[0, 0, 0, 1], &deep].concat();
        }
        let compound = |code: u8, count: u32, within: &[u8]| {
            let size = u32::try_from(within.len() + 4).expect("short");
            [&[code][..], &size.to_be_bytes(), &count.to_be_bytes(), within].concat()
        };
        let mut keys = b"\xa1\x01\x01".to_vec();
        for _ in 0..60 {
            keys = compound(0xd1, 2, &[&keys[..], b"\x40"].concat());
        }
        let empty = compound(0xf0, 1000, &[&b"\xf0"[..], &b"\0\0\0\x05\0\0\x04\0\x45".repeat(1000)].concat());
        for sections in [
            &b""[..],
            b"plain text",
            b"\0\x53\x77",
            b"\0\x53\x70\x45",
            &value(b"\xa1\x05ab"),
            &value(b"\x74\0\0\0"),
            &value(b"\x75\0\0\0\0"),
            &value(b"\xc1\x03\x01\x40"),
            // Four thousand million elements in eleven bytes.
            &value(b"\xf0\0\0\0\x05\xff\xff\xff\xff\x40"),
            &value(&deep),
            // A key doubles at each level: 2^60 backslashes.
            &value(&keys),
            // A thousand arrays, each of a thousand empty lists.
            &value(&empty),
            &[value(b"\x40"), value(b"\x40")].concat(),
        ] {
            assert_eq!(payload(sections), None, "{sections:x?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_in_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0x75_u8..0x78) {
            payload(&[&[0, 0x53, kind], &*bytes].concat());
        }
    }
}
