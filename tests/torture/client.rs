//! A client as a process of its own: reads streams, writes down what it got, and only then moves its cursor.
//!
//! Sockets of the standard library and the tests' own SSE parser: nothing is shared with the bridge.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::sse::{Event, Item, Parser};

/// What a client does wrong on purpose, so that the checker is seen to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sabotage {
    /// Leaves one out.
    Skip,
    /// Notes one twice.
    Repeat,
    /// Notes two in the wrong order.
    Swap,
    /// Keeps gaps to itself.
    SwallowGap,
    /// Asks for more than it says.
    WrongFilter,
}

/// What a client process is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Bridges as `host:port`; one is chosen for each connection.
    #[arg(long, value_delimiter = ',')]
    pub bridges: Vec<String>,
    /// Patterns to subscribe to.
    #[arg(long, value_delimiter = ',')]
    pub subjects: Vec<String>,
    #[arg(long)]
    pub token: String,
    /// Where it writes.
    #[arg(long)]
    pub notes: PathBuf,
    #[arg(long)]
    pub seed: u64,
    /// Longest time on one connection, in milliseconds.
    #[arg(long, default_value_t = 20_000)]
    pub stay: u64,
    #[arg(long)]
    pub sabotage: Option<Sabotage>,
}

/// Runs until it is killed.
pub fn run(options: &Options) -> ! {
    let mut rng = SmallRng::seed_from_u64(options.seed ^ u64::from(std::process::id()));
    let mut notes = Notes::open(&options.notes);
    notes.sabotage = options.sabotage;
    loop {
        let bridge = &options.bridges[rng.random_range(0..options.bridges.len())];
        let stay = Duration::from_millis(rng.random_range(200..options.stay.max(201)));
        if let Err(error) = stream(options, bridge, &mut notes, stay) {
            notes.write(&format!("X\t{bridge}\t{}\n", error.to_string().replace(['\n', '\t'], " ")));
        }
        sleep(Duration::from_millis(rng.random_range(20..400)));
    }
}

/// One connection, to its end.
fn stream(options: &Options, bridge: &str, notes: &mut Notes, stay: Duration) -> std::io::Result<()> {
    let until = Instant::now() + stay;
    let mut socket = TcpStream::connect(bridge)?;
    let mut target = "/events?since=all".to_owned();
    for subject in &options.subjects {
        let subject = if options.sabotage == Some(Sabotage::WrongFilter) { ">" } else { subject };
        target.push_str(&format!("&subject={}", subject.replace('>', "%3E")));
    }
    let cursor = if notes.cursor.is_empty() { String::new() } else { format!("Last-Event-ID: {}\r\n", notes.cursor) };
    write!(
        socket,
        "GET {target} HTTP/1.1\r\nHost: {bridge}\r\nAccept: text/event-stream\r\nAuthorization: Bearer {}\r\n{cursor}\r\n",
        options.token
    )?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut reader = Patient { socket, until };
    let mut reader = BufReader::with_capacity(64 * 1024, &mut reader);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.starts_with("HTTP/1.1 200") {
        // 401, 403 and 400 are never right here; 503 and 429 do not come to one that takes only a stream.
        return Err(std::io::Error::other(format!("refused: {}", line.trim())));
    }
    notes.write(&format!("O\t{bridge}\t{}\n", notes.cursor));
    while line.trim_end() != "" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    let mut parser = Parser::default();
    parser.last_id.clone_from(&notes.cursor);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Ok(size) = usize::from_str_radix(line.trim(), 16) else {
            return Err(std::io::Error::other("the stream was cut"));
        };
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk)?;
        if size == 0 {
            return Ok(());
        }
        parser.feed(&chunk[..size]);
        notes.take(&mut parser.items);
    }
}

/// A socket that is read until a moment: whoever leaves in the middle of an event has not had it.
struct Patient {
    socket: TcpStream,
    until: Instant,
}

impl std::io::Read for &mut Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.socket.read(buffer) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < self.until => {}
                // Somebody who always has something to read must leave too.
                Ok(_) if Instant::now() > self.until + Duration::from_secs(5) => return Err(std::io::Error::other("left")),
                other => return other,
            }
        }
    }
}

/// What it has seen, in a file; the cursor is the last complete line's.
struct Notes {
    file: File,
    cursor: String,
    sabotage: Option<Sabotage>,
    count: u64,
    held: Option<String>,
}

impl Notes {
    fn open(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let cursor = text[..whole].lines().rev().find_map(|line| {
            let mut fields = line.split('\t');
            matches!(fields.next(), Some("E" | "G" | "C" | "I")).then(|| fields.next().unwrap().to_owned())
        });
        let file = File::options().create(true).append(true).open(path).unwrap();
        // What a kill cut off was never noted.
        file.set_len(whole as u64).unwrap();
        Self { file, cursor: cursor.unwrap_or_default(), sabotage: None, count: 0, held: None }
    }

    fn write(&mut self, lines: &str) {
        self.file.write_all(lines.as_bytes()).unwrap();
    }

    /// Notes what came, in one piece; the cursor follows.
    fn take(&mut self, items: &mut VecDeque<Item>) {
        let mut lines = String::new();
        let mut cursor = None;
        for item in items.drain(..) {
            match item {
                Item::Id(id) => {
                    lines.push_str(&format!("I\t{id}\n"));
                    cursor = Some(id);
                }
                Item::Event(event) => {
                    self.event(&event, &mut lines);
                    cursor = Some(event.id);
                }
                Item::Comment(_) | Item::Retry(_) => {}
            }
        }
        self.write(&lines);
        if let Some(cursor) = cursor {
            self.cursor = cursor;
        }
    }

    fn event(&mut self, event: &Event, lines: &mut String) {
        let line = match event.name.as_str() {
            "brokercast.gap" if self.sabotage == Some(Sabotage::SwallowGap) => format!("I\t{}\n", event.id),
            "brokercast.gap" => format!("G\t{}\t{}\n", event.id, event.data),
            "brokercast.closing" => format!("C\t{}\t{}\n", event.id, event.data),
            _ => {
                let (data, subject) = (event.payload(), event.subject());
                format!("E\t{}\t{}\t{}\t{}\t{subject}\n", event.id, data["s"].as_str().unwrap(), data["w"], data["n"])
            }
        };
        if !line.starts_with('E') {
            return lines.push_str(&line);
        }
        self.count += 1;
        let turn = self.count.is_multiple_of(20);
        match self.sabotage {
            Some(Sabotage::Skip) if turn => {}
            Some(Sabotage::Repeat) if turn => lines.push_str(&line.repeat(2)),
            Some(Sabotage::Swap) if turn && self.held.is_none() => self.held = Some(line),
            _ => {
                lines.push_str(&line);
                // Events of two sources have no order that could be wrong.
                let source = |line: &str| line.split('\t').nth(2).map(str::to_owned);
                if let Some(held) = self.held.take_if(|held| source(held) == source(&line)) {
                    lines.push_str(&held);
                }
            }
        }
    }
}
