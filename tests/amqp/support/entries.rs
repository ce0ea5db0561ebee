//! A publisher by RabbitMQ's stream protocol, which can write what AMQP 0-9-1 cannot carry.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// What is written to a stream.
pub enum Entry {
    /// A message: an AMQP 1.0 data section.
    Message(String),
    /// Bytes that are no AMQP 1.0 message.
    Raw(&'static [u8]),
    /// The sections of an AMQP 1.0 message.
    Sections(Vec<u8>),
    /// Bytes that are said to be so many messages, compressed. The broker does not look into them.
    Compressed(u16),
}

impl Entry {
    pub fn text(n: impl ToString) -> Self {
        Self::Message(n.to_string())
    }
}

/// A connection that publishes to one stream, which it makes.
pub struct Entries {
    socket: TcpStream,
    number: u64,
}

impl Entries {
    /// Logs in as `guest`.
    pub fn to(port: u16, stream: &str) -> Self {
        Self::with(port, stream, &[])
    }

    /// The same, for a stream with these arguments.
    pub fn with(port: u16, stream: &str, arguments: &[(&str, &str)]) -> Self {
        let mut entries = Self { socket: TcpStream::connect(("127.0.0.1", port)).unwrap(), number: 0 };
        entries.ask(0x11, &0_u32.to_be_bytes());
        entries.ask(0x12, b"");
        let login = b"\0guest\0guest";
        entries.ask(0x13, &[text("PLAIN"), (login.len() as u32).to_be_bytes().to_vec(), login.to_vec()].concat());
        let tune = entries.frame();
        assert_eq!(tune[..2], 0x14_u16.to_be_bytes());
        entries.send(0x14, &tune[4..]);
        entries.ask(0x15, &text("/"));
        let count = u32::try_from(arguments.len()).unwrap().to_be_bytes().to_vec();
        let arguments = arguments.iter().flat_map(|(name, value)| [text(name), text(value)]);
        entries.ask(0x0d, &[text(stream), count].into_iter().chain(arguments).collect::<Vec<_>>().concat());
        entries.ask(0x01, &[vec![1], text(""), text(stream)].concat());
        entries
    }

    /// Publishes, and waits for the confirmation.
    pub fn publish(&mut self, entry: &Entry) {
        let (number, size) = (self.number, |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_be_bytes());
        let section = |bytes: &[u8]| [&[0, 0x53, 0x75, 0xb0][..], &size(bytes), bytes].concat();
        let plain = |bytes: &[u8]| [&size(bytes)[..], bytes].concat();
        let body = match entry {
            Entry::Message(text) => plain(&section(text.as_bytes())),
            Entry::Raw(bytes) => plain(bytes),
            Entry::Sections(bytes) => plain(bytes),
            Entry::Compressed(count) => [&[0x80 | 1 << 4][..], &count.to_be_bytes(), &[0, 0, 1, 0, 0, 0, 0, 4], b"gzip"].concat(),
        };
        self.send(0x02, &[&[1, 0, 0, 0, 1][..], &number.to_be_bytes(), &body].concat());
        self.number += 1;
        while self.frame()[..2] != 0x03_u16.to_be_bytes() {}
    }

    fn ask(&mut self, key: u16, body: &[u8]) {
        self.send(key, &[&7_u32.to_be_bytes()[..], body].concat());
        let answer = self.frame();
        assert_eq!(answer[..2], (0x8000 | key).to_be_bytes(), "{answer:?}");
        assert_eq!(answer[8..10], 1_u16.to_be_bytes(), "request {key}: {answer:?}");
    }

    fn send(&mut self, key: u16, body: &[u8]) {
        let frame = [&key.to_be_bytes()[..], &1_u16.to_be_bytes(), body].concat();
        self.socket.write_all(&[&(frame.len() as u32).to_be_bytes()[..], &frame].concat()).unwrap();
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut size = [0; 4];
        self.socket.read_exact(&mut size).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(size) as usize];
        self.socket.read_exact(&mut frame).unwrap();
        frame
    }
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}
