//! Payloads as their publishers meant them, and no larger than the settings allow.
//!
//! A header `content-encoding` (`content_encoding` in AMQP) of `gzip` or `zstd` says that a payload is compressed. What is
//! damaged, or of another encoding, stays as it came. Checks in positions are of the bytes as the broker has them: adapters
//! have made them before.

use std::io::Read as _;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::Item;
use crate::event::Message;

/// Names of the header.
const ENCODING: [&str; 2] = ["content-encoding", "content_encoding"];
/// Frames of one zstd payload. Each costs time, even an empty one.
const FRAMES: usize = 64;
/// Bytes that are unpacked at a time, about.
const PIECE: usize = 1 << 20;

/// What became of the first items of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fitted {
    /// So many items are ready. Those behind them are as they came.
    pub items: usize,
    /// So many of these were larger than allowed.
    pub oversized: usize,
}

/// Unpacks compressed payloads and replaces each message whose payload has more than `max` bytes, before or after that, by
/// [`Item::Oversized`]. Stops where about 1 MiB was unpacked: a batch may unpack to hundreds of times its size, and takes time even where
/// it unpacks to nothing. So the caller hands on what is ready, and lets others have their turn, before it goes on. The supervisor calls
/// it for live batches, a reader of history for its own.
pub fn fit(items: &mut [Item], max: usize) -> Fitted {
    let (mut fitted, mut unpacked) = (Fitted::default(), 0);
    for item in items {
        if unpacked >= PIECE {
            break;
        }
        fitted.items += 1;
        let Item::Message(message) = item else { continue };
        let before = message.payload.len();
        let decoder = decoder(message);
        let fits = before <= max && decoder.is_none_or(|decoder| unpack(message, decoder, max));
        if decoder.is_some() {
            unpacked += before.max(message.payload.len());
        }
        if !fits {
            message.payload = Bytes::new();
            *item = Item::Oversized(message.clone());
            fitted.oversized += 1;
        }
    }
    fitted
}

type Decoder = fn(&[u8], usize) -> Unpacked;

/// What unpacks a message's payload, if it is packed in a way that is known.
fn decoder(message: &Message) -> Option<Decoder> {
    let encoding = ENCODING.iter().find_map(|name| message.headers.get(name))?;
    match &*encoding.trim().to_ascii_lowercase() {
        "gzip" | "x-gzip" => Some(gzip),
        "zstd" => Some(zstd),
        _ => None,
    }
}

/// Returns whether what it unpacks to fits.
fn unpack(message: &mut Message, decoder: Decoder, max: usize) -> bool {
    match decoder(&message.payload, max) {
        Unpacked::Whole(bytes) => {
            message.payload = bytes.into();
            message.headers.remove(&ENCODING);
            true
        }
        Unpacked::Damaged => true,
        Unpacked::TooLarge => false,
    }
}

/// What became of a compressed payload.
#[derive(Debug, PartialEq)]
enum Unpacked {
    Whole(Vec<u8>),
    Damaged,
    TooLarge,
}

impl Unpacked {
    fn within(bytes: Vec<u8>, max: usize) -> Self {
        if bytes.len() > max { Self::TooLarge } else { Self::Whole(bytes) }
    }
}

fn gzip(payload: &[u8], max: usize) -> Unpacked {
    let mut out = Vec::new();
    let read = MultiGzDecoder::new(payload).take(max as u64 + 1).read_to_end(&mut out);
    if read.is_err() { Unpacked::Damaged } else { Unpacked::within(out, max) }
}

fn zstd(payload: &[u8], max: usize) -> Unpacked {
    let (mut rest, mut out) = (payload, Vec::new());
    for _ in 0..FRAMES {
        if rest.is_empty() {
            return Unpacked::within(out, max);
        }
        // Used again, a decoder would reserve as much memory as a frame says it needs.
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(u64::MAX);
        match decoder.reset(&mut rest) {
            Ok(()) => {}
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                let Some(behind) = rest.get(length as usize..) else { return Unpacked::Damaged };
                rest = behind;
                continue;
            }
            Err(_) => return Unpacked::Damaged,
        }
        let room = max - out.len();
        // All of the frame stays in the decoder: no more than fits, and a block.
        let Ok(ended) = decoder.decode_blocks(&mut rest, BlockDecodingStrategy::UptoBytes(room + 1)) else { return Unpacked::Damaged };
        if !ended {
            return Unpacked::TooLarge;
        }
        out.extend(decoder.collect().unwrap_or_default());
        if decoder.get_checksum_from_data().is_some_and(|sum| decoder.get_calculated_checksum() != Some(sum)) {
            return Unpacked::Damaged;
        }
        if out.len() > max {
            return Unpacked::TooLarge;
        }
    }
    Unpacked::Damaged
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;
    use crate::cursor::Position;
    use crate::event::Timestamp;

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).expect("gzip");
        encoder.finish().expect("gzip")
    }

    fn zstded(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    fn compressed(encoding: &str, payload: impl Into<Bytes>) -> Item {
        let position = Some(Position::unverified(7));
        let mut message = Message::new("a".parse().expect("a subject"), payload.into(), Timestamp::now(), position);
        message.headers.push("Content-Encoding", encoding);
        message.headers.push("x", "kept");
        Item::Message(message)
    }

    /// The payload, and whether the message still says that it is compressed.
    fn of(mut item: Item, max: usize) -> Option<(Bytes, bool)> {
        fit(std::slice::from_mut(&mut item), max);
        let Item::Message(message) = item else { return None };
        assert_eq!(message.headers.get("x"), Some("kept"));
        Some((message.payload, message.headers.get("content-encoding").is_some()))
    }

    #[test]
    fn compressed_payloads_are_unpacked_within_the_bound() {
        let text = "some words, ".repeat(100);
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let twice = text.repeat(2);
        for (encoding, bytes, expected) in [
            ("gzip", gzipped(text.as_bytes()), &text),
            ("X-GZIP ", gzipped(text.as_bytes()), &text),
            ("zstd", zstded(text.as_bytes()), &text),
            ("gzip", gzipped(text.as_bytes()).repeat(2), &twice),
            ("zstd", [skipped, zstded(text.as_bytes()).repeat(2)].concat(), &twice),
            ("zstd", Vec::new(), &String::new()),
        ] {
            assert_eq!(of(compressed(encoding, bytes.clone()), expected.len()), Some((expected.clone().into(), false)), "{encoding}");
            if !expected.is_empty() {
                assert_eq!(of(compressed(encoding, bytes), expected.len() - 1), None, "{encoding}");
            }
        }
    }

    #[test]
    fn a_batch_that_is_much_larger_unpacked_is_ready_piece_by_piece() {
        let (large, max) = (vec![b'x'; 300 << 10], 1 << 20);
        let mut items = vec![compressed("gzip", gzipped(&large)); 64];
        let mut pieces = Vec::new();
        while !items.is_empty() {
            let Fitted { items: ready, oversized: 0 } = fit(&mut items, max) else { panic!("none is too large") };
            let packed = |item: &Item| matches!(item, Item::Message(message) if message.payload.len() < 10_000);
            assert!(!items[..ready].iter().any(packed) && items[ready..].iter().all(packed));
            items.drain(..ready);
            pieces.push(ready);
        }
        assert_eq!(pieces, [4; 16]);
        // What is not compressed takes no more memory than before.
        let plain = Message::new("a".parse().expect("a subject"), large.into(), Timestamp::now(), None);
        assert_eq!(fit(&mut vec![Item::Message(plain); 64], max), Fitted { items: 64, oversized: 0 });
    }

    #[test]
    fn a_bomb_is_oversized() {
        for bomb in [("gzip", gzipped(&vec![0; 4 << 20])), ("zstd", zstded(&vec![0; 4 << 20]))] {
            assert!(bomb.1.len() < 64 << 10);
            assert_eq!(of(compressed(bomb.0, bomb.1), 64 << 10), None);
        }
    }

    #[test]
    fn what_is_damaged_or_of_another_encoding_stays() {
        let (gz, zst) = (gzipped(b"some words"), zstded(b"some words"));
        let broken = |bytes: &[u8]| bytes[..bytes.len() - 3].to_vec();
        let empty = zstded(b"");
        for (encoding, bytes) in [
            ("gzip", broken(&gz)),
            ("zstd", broken(&zst)),
            ("gzip", zst.clone()),
            ("zstd", gz.clone()),
            ("gzip, gzip", gz.clone()),
            ("br", gz.clone()),
            ("identity", b"plain".to_vec()),
            ("gzip", [&gz[..], b"rubbish"].concat()),
            ("zstd", [&zst[..], b"rubbish"].concat()),
            ("zstd", empty.repeat(1000)),
        ] {
            assert_eq!(of(compressed(encoding, bytes.clone()), 1 << 20), Some((bytes.into(), true)), "{encoding}");
        }
    }

    #[test]
    fn what_unpacks_to_little_is_ready_piece_by_piece_too() {
        let nothing = gzipped(b"").repeat((300 << 10) / 20);
        let mut items = vec![compressed("gzip", nothing); 64];
        assert_eq!(fit(&mut items, 1 << 20), Fitted { items: 4, oversized: 0 });
    }

    proptest! {
        #[test]
        fn no_payload_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..100, at in 0_usize..100, byte: u8) {
            let mut real = zstded(&bytes.repeat(5));
            let place = at % real.len();
            real[place] = byte;
            real.truncate(real.len().saturating_sub(cut % 4));
            for payload in [&bytes[..], &[&[0x28, 0xb5, 0x2f, 0xfd], &bytes[..]].concat(), &real] {
                assert!(!matches!(zstd(payload, 100), Unpacked::Whole(bytes) if bytes.len() > 100));
                assert!(!matches!(gzip(payload, 100), Unpacked::Whole(bytes) if bytes.len() > 100));
            }
        }
    }
}
