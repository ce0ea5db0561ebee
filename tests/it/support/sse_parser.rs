//! A parser of Server-Sent Events, written from the WHATWG standard alone: it shares nothing with the server.

use std::collections::VecDeque;

use serde_json::Value;

/// What a stream is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// `: text`
    Comment(String),
    /// `retry: milliseconds`
    Retry(u64),
    /// A block without data that moved the id.
    Id(String),
    /// What a browser dispatches.
    Event(Event),
}

/// What a browser dispatches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The last event id at that moment.
    pub id: String,
    /// `message` where the stream names none.
    pub name: String,
    pub data: String,
}

impl Event {
    /// The data, parsed.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e} in the data of {self:?}"))
    }

    /// `data` inside the json envelope.
    pub fn payload(&self) -> Value {
        self.json()["data"].clone()
    }

    pub fn subject(&self) -> String {
        self.json()["subject"].as_str().unwrap_or_else(|| panic!("no subject in {self:?}")).to_owned()
    }

    pub fn is_control(&self) -> bool {
        self.name.starts_with("brokercast.")
    }

    /// The reason of a control event.
    pub fn reason(&self) -> String {
        assert!(self.is_control(), "{self:?} is no control event");
        self.json()["reason"].as_str().unwrap().to_owned()
    }
}

/// The standard's parser (section 9.2.6), fed in pieces of any size.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    begun: bool,
    data: String,
    has_data: bool,
    name: String,
    id_seen: bool,
    pub last_id: String,
    pub items: VecDeque<Item>,
}

impl Parser {
    pub fn feed(&mut self, mut bytes: &[u8]) {
        if !bytes.is_empty() && std::mem::take(&mut self.after_cr) {
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = bytes.iter().position(|b| matches!(b, b'\n' | b'\r')) {
            self.line.extend_from_slice(&bytes[..end]);
            let line = std::mem::take(&mut self.line);
            self.line(&line);
            let (ending, rest) = (bytes[end], &bytes[end + 1..]);
            self.after_cr = ending == b'\r' && rest.is_empty();
            bytes = if ending == b'\r' { rest.strip_prefix(b"\n").unwrap_or(rest) } else { rest };
        }
        self.line.extend_from_slice(bytes);
    }

    /// Whether a block has begun and not ended.
    pub fn in_block(&self) -> bool {
        !self.line.is_empty() || self.has_data || !self.name.is_empty() || self.id_seen
    }

    fn line(&mut self, line: &[u8]) {
        let mut line = std::str::from_utf8(line).unwrap_or_else(|_| panic!("a line that is no UTF-8: {line:?}"));
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix('\u{feff}').unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.items.push_back(Item::Comment(value.to_owned())),
            "data" => {
                self.has_data = true;
                self.data.push_str(value);
                self.data.push('\n');
            }
            "event" => value.clone_into(&mut self.name),
            "id" if !value.contains('\0') => {
                self.id_seen = true;
                value.clone_into(&mut self.last_id);
            }
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                self.items.push_back(Item::Retry(value.parse().unwrap()));
            }
            _ => panic!("a line that the standard ignores: {line:?}"),
        }
    }

    fn dispatch(&mut self) {
        let id_seen = std::mem::take(&mut self.id_seen);
        let name = std::mem::take(&mut self.name);
        if !std::mem::take(&mut self.has_data) {
            if id_seen {
                self.items.push_back(Item::Id(self.last_id.clone()));
            }
            return;
        }
        let mut data = std::mem::take(&mut self.data);
        data.pop();
        let name = if name.is_empty() { "message".to_owned() } else { name };
        self.items.push_back(Item::Event(Event { id: self.last_id.clone(), name, data }));
    }
}
