//! A publisher that speaks AMQP's bytes itself, to send what a good library refuses: any bytes as a name.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// A connection with one open channel.
pub struct Plain(TcpStream);

impl Plain {
    /// Logs in as `guest`.
    pub fn connect(port: u16) -> Self {
        let mut plain = Self(TcpStream::connect(("127.0.0.1", port)).unwrap());
        plain.0.write_all(b"AMQP\0\0\x09\x01").unwrap();
        plain.expect(10, 10);
        let mut ok = method(10, 11);
        ok.extend(long(b""));
        ok.extend(short(b"PLAIN"));
        ok.extend(long(b"\0guest\0guest"));
        ok.extend(short(b"en_US"));
        plain.frame(1, 0, &ok);
        plain.expect(10, 30);
        let mut tuned = method(10, 31);
        tuned.extend([0, 1, 0, 2, 0, 0, 0, 0]);
        plain.frame(1, 0, &tuned);
        let mut open = method(10, 40);
        open.extend(short(b"/"));
        open.extend([0, 0]);
        plain.frame(1, 0, &open);
        plain.expect(10, 41);
        let mut channel = method(20, 10);
        channel.push(0);
        plain.frame(1, 1, &channel);
        plain.expect(20, 11);
        plain.frame(1, 1, &[method(85, 10), vec![0]].concat());
        plain.expect(85, 11);
        plain
    }

    /// Publishes and waits for the confirmation. `properties` are the flags and what they announce.
    #[track_caller]
    pub fn publish(&mut self, exchange: &[u8], key: &[u8], properties: &[u8], payload: &[u8]) {
        let mut publish = method(60, 40);
        publish.extend([0, 0]);
        publish.extend(short(exchange));
        publish.extend(short(key));
        publish.push(0);
        self.frame(1, 1, &publish);
        let mut header = vec![0, 60, 0, 0];
        header.extend((payload.len() as u64).to_be_bytes());
        header.extend(properties);
        self.frame(2, 1, &header);
        self.frame(3, 1, payload);
        self.expect(60, 80);
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        self.0.write_all(&frame).unwrap();
    }

    #[track_caller]
    fn expect(&mut self, class: u16, number: u16) {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).unwrap();
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut rest = vec![0; size + 1];
        self.0.read_exact(&mut rest).unwrap();
        assert_eq!(rest[..4], method(class, number), "{}", String::from_utf8_lossy(&rest));
    }
}

fn method(class: u16, number: u16) -> Vec<u8> {
    [class.to_be_bytes(), number.to_be_bytes()].concat()
}

pub fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

pub fn long(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text].concat()
}
