//! Values as they are written in the configuration: durations (`15s`), sizes (`1MiB`), secrets.
//!
//! Their errors never echo the value: it may be a secret in the wrong place.

use std::fmt;
use std::time::Duration;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use super::Secret;

/// A duration: a number with `ms`, `s`, `m`, `h` or `d`; `0` needs no unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationText(pub Duration);

/// A size: a number of bytes, or one with `KiB`, `MiB`, `GiB` (1024), `kB`, `MB`, `GB` (1000) or `B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeText(pub u64);

/// Reads a [`DurationText`].
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..at].parse().ok()?;
    let millis = match text[at..].trim_start() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    // Bounded, so that adding one to a clock cannot overflow.
    let millis = number.checked_mul(millis).filter(|m| *m <= 100 * 366 * 86_400_000)?;
    Some(Duration::from_millis(millis))
}

/// Reads a [`SizeText`].
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..at].parse().ok()?;
    let unit: u64 = match text[at..].trim_start() {
        "" | "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit).filter(|n| *n <= i64::MAX as u64)
}

struct Text<T>(fn(&str) -> Option<T>, &'static str);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).ok_or_else(|| E::custom(format_args!("must be {}", self.1)))
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text(parse_duration, "a duration such as 500ms, 15s, 10m or 24h")).map(Self)
    }
}

impl<'de> Deserialize<'de> for SizeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text(parse_size, "a size such as 65536, 64KiB or 16MiB")).map(Self)
    }
}

impl<'de> Deserialize<'de> for Secret {
    /// Any scalar: the environment may have made a number or a truth value of a secret.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyScalar;
        impl Visitor<'_> for AnyScalar {
            type Value = Secret;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::new(text.as_bytes()))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Secret, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Secret, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Secret, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_bool<E: Error>(self, truth: bool) -> Result<Secret, E> {
                self.visit_str(if truth { "true" } else { "false" })
            }
        }
        deserializer.deserialize_any(AnyScalar)
    }
}
