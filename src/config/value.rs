//! Values as they are written in the configuration: durations (`15s`), sizes (`1MiB`), secrets.
//!
//! Their errors never echo the value: it may be a secret in the wrong place.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serializer};

use super::{Problems, Secret};

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

/// A value that `false` switches off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch<T> {
    /// Not at all.
    Off,
    /// With this value.
    On(T),
}

impl<T> Switch<T> {
    /// The value, unless switched off.
    pub fn on(self) -> Option<T> {
        match self {
            Self::Off => None,
            Self::On(value) => Some(value),
        }
    }
}

impl<'de, T: FromStr> Deserialize<'de> for Switch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(std::marker::PhantomData<T>);
        impl<T: FromStr> Visitor<'_> for Either<T> {
            type Value = Switch<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(if std::any::type_name::<T>() == "usize" { "a whole number, or false" } else { "a text, or false" })
            }
            fn visit_bool<E: Error>(self, truth: bool) -> Result<Switch<T>, E> {
                if truth { Err(E::invalid_type(Unexpected::Bool(true), &self)) } else { Ok(Switch::Off) }
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Switch<T>, E> {
                text.parse().map(Switch::On).map_err(|_| E::invalid_type(Unexpected::Other("text"), &self))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Switch<T>, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Either(std::marker::PhantomData))
    }
}

/// Writes a duration as [`parse_duration`] reads it, in the largest unit that is exact.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let unit = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)].into_iter().find(|(_, unit)| millis.is_multiple_of(*unit));
    match unit {
        Some((_, _)) if millis == 0 => "0s".to_owned(),
        Some((name, unit)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

/// Writes a size as [`parse_size`] reads it, in the largest binary unit that is exact.
#[must_use]
pub fn show_size(bytes: usize) -> String {
    let unit = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)].into_iter().find(|(_, unit)| bytes.is_multiple_of(*unit));
    match unit {
        Some((name, unit)) if bytes > 0 => format!("{}{name}", bytes / unit),
        _ => format!("{bytes}"),
    }
}

/// [`show_duration`] for serde.
///
/// # Errors
/// The serializer's own.
pub fn serialize_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&show_duration(*duration))
}

/// [`show_size`] for serde; what has no unit stays a number.
///
/// # Errors
/// The serializer's own.
pub fn serialize_size<S: Serializer>(bytes: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    let text = show_size(*bytes);
    match text.parse() {
        Ok(number) => serializer.serialize_u64(number),
        Err(_) => serializer.serialize_str(&text),
    }
}

/// A path's steps as they are written.
///
/// # Errors
/// The serializer's own.
pub fn serialize_path<S: Serializer>(steps: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&steps.join("."))
}

/// `false` for what is off: nothing would be its default.
///
/// # Errors
/// The serializer's own.
pub fn serialize_switch<S: Serializer>(value: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(text) => serializer.serialize_str(text),
        None => serializer.serialize_bool(false),
    }
}

/// The name by which [`Secret`] makes itself known to the configuration's own deserializer, which then keeps the value
/// out of everything that is printed.
pub(crate) const SECRET: &str = "$brokercast::Secret";

impl<'de> Deserialize<'de> for Secret {
    /// Any scalar: the environment or YAML may have made a number or a truth value of a secret.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyScalar;
        impl<'de> Visitor<'de> for AnyScalar {
            type Value = Secret;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Secret, D::Error> {
                deserializer.deserialize_any(AnyScalar)
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
        deserializer.deserialize_newtype_struct(SECRET, AnyScalar)
    }
}

/// The longest file that is read as a secret or a key, in bytes.
const MAX_SECRET_FILE: u64 = 1 << 20;

/// The secret `name` at key path `path`, from its value or from the file that `<name>_file` names, less one line
/// break at its end. `None` where neither is set, and where a problem has been noted: both set, a file that cannot be
/// read, nothing in it.
pub fn resolve_secret(inline: Option<Secret>, file: Option<PathBuf>, path: &str, name: &str, problems: &mut Problems) -> Option<Secret> {
    let (key, secret) = match (inline, file) {
        (None, None) => return None,
        (Some(_), Some(_)) => {
            problems.add(join(path, name), format!("only one of `{name}` and `{name}_file` may be set"));
            return None;
        }
        (Some(secret), None) => (join(path, name), secret),
        (None, Some(file)) => {
            let key = join(path, &format!("{name}_file"));
            let mut bytes = match read_bounded(&file) {
                Ok(bytes) => bytes,
                Err(what) => {
                    problems.add(key, format!("must name a readable file: {what}"));
                    return None;
                }
            };
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
                if bytes.last() == Some(&b'\r') {
                    bytes.pop();
                }
            }
            (key, Secret::new(bytes))
        }
    };
    if secret.expose().is_empty() {
        problems.add(key, "must not be empty");
        return None;
    }
    Some(secret)
}

/// The text of a file that is no secret (a certificate, a key set), or a problem at `path`.
pub fn read_text_file(file: &Path, path: &str, problems: &mut Problems) -> Option<String> {
    match read_bounded(file).and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())) {
        Ok(text) => Some(text),
        Err(what) => {
            problems.add(path, format!("must name a readable file: {what}"));
            None
        }
    }
}

/// Why a file cannot be read, without its name.
pub(crate) fn why(file: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        // Mostly it is there, but not below where somebody happened to stand.
        std::io::ErrorKind::NotFound if file.is_relative() => {
            "there is none of this name (a relative path begins where brokercast is started)".to_owned()
        }
        std::io::ErrorKind::NotFound => "there is none of this name".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        kind => kind.to_string(),
    }
}

/// A file's bytes, or why there are none, without the file's name.
fn read_bounded(file: &Path) -> Result<Vec<u8>, String> {
    let opened = std::fs::File::open(file).map_err(|e| why(file, &e))?;
    let mut bytes = Vec::new();
    opened.take(MAX_SECRET_FILE + 1).read_to_end(&mut bytes).map_err(|e| why(file, &e))?;
    if bytes.len() as u64 > MAX_SECRET_FILE { Err("it is larger than 1 MiB".to_owned()) } else { Ok(bytes) }
}

/// `path.name`, or `name` alone at the top.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
