//! A parser of event streams, byte by byte as they come (HTML standard, section 9.2.6).
//!
//! Pure. Knows nothing of where bytes come from.

/// The longest line, in bytes: brokercast sends no longer one.
const MAX_LINE: usize = 64 << 20;

/// One dispatched event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    /// Empty: `message`.
    pub(super) name: String,
    pub(super) data: String,
}

/// What came of a piece of the stream, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// An event to be shown.
    Event(Event),
    /// The id to come back with has changed, with or without an event.
    Id(String),
    /// Wait so many milliseconds before coming back.
    Retry(u64),
}

/// A line or an event that outgrows every bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {MAX_LINE} bytes")]
pub(super) struct TooLong;

/// Where in the stream we are.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    /// The last byte was a CR: a LF right after it belongs to it.
    after_cr: bool,
    /// A byte order mark can only be before the first line.
    started: bool,
    name: String,
    data: String,
    /// The id of the event that is being read: it counts when the event ends.
    id: Option<String>,
}

impl Parser {
    /// Takes the next bytes, and appends what they complete.
    pub(super) fn feed(&mut self, mut bytes: &[u8], found: &mut Vec<Found>) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|b| matches!(b, b'\r' | b'\n')) else {
                return self.append(bytes);
            };
            self.append(&bytes[..end])?;
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            let mut line = std::mem::take(&mut self.line);
            self.end_of_line(&line, found);
            line.clear();
            self.line = line;
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.line.len() + self.data.len() + bytes.len() > MAX_LINE {
            return Err(TooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_of_line(&mut self, line: &[u8], found: &mut Vec<Found>) {
        let line = match line.strip_prefix(b"\xef\xbb\xbf") {
            Some(rest) if !self.started => rest,
            _ => line,
        };
        self.started = true;
        if line.is_empty() {
            return self.dispatch(found);
        }
        let (field, value) = match line.iter().position(|b| *b == b':') {
            // A comment.
            Some(0) => return,
            Some(at) => (&line[..at], line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..])),
            None => (line, &[][..]),
        };
        let value = String::from_utf8_lossy(value);
        match field {
            b"data" => {
                self.data.push_str(&value);
                self.data.push('\n');
            }
            b"event" => self.name = value.into_owned(),
            b"id" if !value.contains('\0') => self.id = Some(value.into_owned()),
            b"retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                found.extend(value.parse().ok().map(Found::Retry));
            }
            _ => {}
        }
    }

    fn dispatch(&mut self, found: &mut Vec<Found>) {
        found.extend(self.id.take().map(Found::Id));
        let (name, mut data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        if data.pop().is_some() {
            found.push(Found::Event(Event { name, data }));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<Found> {
        let (mut parser, mut found) = (Parser::default(), Vec::new());
        for piece in pieces {
            parser.feed(piece, &mut found).unwrap();
        }
        found
    }

    fn event(name: &str, data: &str) -> Found {
        Found::Event(Event { name: name.into(), data: data.into() })
    }

    #[test]
    fn events_end_at_empty_lines_of_any_kind() {
        let expected = [event("", "a\nb"), event("x", "c"), event("", "")];
        for end in ["\n", "\r", "\r\n"] {
            let text = "data: a\ndata:b\n\n:comment\nevent: x\ndata: c\n\ndata\n\ndata: never ended\n".replace('\n', end);
            assert_eq!(parse(&[text.as_bytes()]), expected, "{end:?}");
        }
    }

    #[test]
    fn an_id_counts_at_the_end_of_its_event_with_or_without_data() {
        let found = parse(&[b"id: 1\n\nid: 2\ndata: x\n\nid\n\nid: a\0b\n\nid: 9\n"]);
        assert_eq!(found, [Found::Id("1".into()), Found::Id("2".into()), event("", "x"), Found::Id(String::new())]);
    }

    #[test]
    fn retry_takes_digits_only() {
        assert_eq!(parse(&[b"retry: 250\nretry: 1s\nretry:\nretry: -1\nretry: 99999999999999999999999\n"]), [Found::Retry(250)]);
    }

    #[test]
    fn a_byte_order_mark_counts_only_at_the_start() {
        assert_eq!(parse(&[b"\xef", b"\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n"]), [event("", "a")]);
    }

    #[test]
    fn one_space_after_the_colon_is_not_part_of_the_value() {
        assert_eq!(parse(&[b"data:  a: b\nnonsense\nfoo: bar\n\n"]), [event("", " a: b")]);
    }

    #[test]
    fn an_event_name_without_data_is_forgotten() {
        assert_eq!(parse(&[b"event: x\n\ndata: y\n\n"]), [event("", "y")]);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let (mut parser, mut found) = (Parser::default(), Vec::new());
        let piece = vec![b'x'; 1 << 20];
        let fed = (0..65).map(|_| parser.feed(&piece, &mut found)).find(Result::is_err);
        assert_eq!(fed, Some(Err(TooLong)));
    }

    proptest! {
        /// Where the pieces are cut changes nothing.
        #[test]
        fn cuts_change_nothing(
            tokens in prop::collection::vec(
                prop::sample::select(vec!["\r", "\n", "\r\n", "data", ":", " ", "id", "event", "retry", "7", "ü", "\u{feff}", "\0"]),
                0..60,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let text: Vec<u8> = tokens.concat().into_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(text.len() + 1)).chain([0, text.len()]).collect();
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            prop_assert_eq!(parse(&pieces), reference(&text));
        }
    }

    /// The standard's text, read as naively as can be: the whole stream first, then its lines.
    fn reference(text: &[u8]) -> Vec<Found> {
        let text = String::from_utf8_lossy(text).into_owned();
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text).replace("\r\n", "\n").replace('\r', "\n");
        let mut lines: Vec<&str> = text.split('\n').collect();
        // What no line end follows is no line.
        lines.pop();
        let (mut found, mut data, mut name, mut id) = (Vec::new(), Vec::new(), String::new(), None);
        for line in lines {
            if line.is_empty() {
                found.extend(id.take().map(Found::Id));
                if !data.is_empty() {
                    found.push(event(&name, &data.join("\n")));
                }
                data.clear();
                name.clear();
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => data.push(value.to_owned()),
                "event" => name = value.to_owned(),
                "id" if !value.contains('\0') => id = Some(value.to_owned()),
                "retry" if !value.is_empty() && value.chars().all(|c| c.is_ascii_digit()) => {
                    found.extend(value.parse().ok().map(Found::Retry));
                }
                _ => {}
            }
        }
        found
    }
}
