//! The access log: lines about what clients did, on standard error, whatever `log.filter` says.
//!
//! Whoever has something to say only puts it into a bounded queue; one thread makes lines of it and writes them. Knows
//! nothing of what is said.

use std::io::Write as _;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::settings::AccessFormat;
use crate::support::clock;
use crate::support::plain::quote;

/// Lines that wait to be written.
const QUEUE: usize = 16 << 10;
/// Bytes that are written at once.
const PIECE: usize = 64 << 10;
/// Characters of one text in a line.
const MOST: usize = 512;
/// How often is told, at most, that lines were left out.
const TELL: Duration = Duration::from_secs(1);

/// Says what a line says.
type Say = Box<dyn FnOnce(&mut Line) + Send>;

enum Order {
    Say(jiff::Timestamp, Say),
    /// Answered when all before it is written.
    Flush(SyncSender<()>),
}

/// Where lines go.
#[derive(Debug)]
pub(crate) struct Access {
    /// An [`AccessFormat`].
    format: AtomicU8,
    queue: SyncSender<Order>,
    left_out: AtomicU64,
}

/// What waits to be written.
#[derive(Debug)]
pub(crate) struct Lines(Receiver<Order>);

impl Access {
    /// In this form, and what [`Self::write`] has to be called with.
    #[must_use]
    pub(crate) fn new(format: AccessFormat) -> (Self, Lines) {
        let (queue, lines) = sync_channel(QUEUE);
        (Self { format: AtomicU8::new(format as u8), queue, left_out: AtomicU64::new(0) }, Lines(lines))
    }

    /// Lines are written in another form from now on.
    pub(crate) fn set(&self, format: AccessFormat) {
        self.format.store(format as u8, Ordering::Relaxed);
    }

    /// Whether lines are written at all.
    #[must_use]
    pub(crate) fn is_on(&self) -> bool {
        self.format.load(Ordering::Relaxed) != AccessFormat::Off as u8
    }

    /// Lines that were left out so far, as they were written more slowly than they came.
    #[must_use]
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Adds a line. Never waits.
    pub(crate) fn say(&self, say: impl FnOnce(&mut Line) + Send + 'static) {
        if !self.is_on() {
            return;
        }
        let now = clock::now().try_into().unwrap_or_default();
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Order::Say(now, Box::new(say))) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was said so far is written, at most so long. Blocks.
    pub(crate) fn flush(&self, patience: Duration) {
        let (done, written) = sync_channel(1);
        if self.queue.try_send(Order::Flush(done)).is_ok() {
            written.recv_timeout(patience).unwrap_or_default();
        }
    }

    /// Writes lines, for as long as the process runs. Blocks.
    pub(crate) fn write(&self, lines: &Lines) {
        let (mut out, mut told) = (String::new(), 0);
        loop {
            let first = match lines.0.recv_timeout(TELL) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut flushed = Vec::new();
            for order in first.into_iter().chain(lines.0.try_iter()) {
                match order {
                    Order::Say(time, say) => self.line(&mut out, time, say),
                    Order::Flush(done) => flushed.push(done),
                }
                if out.len() >= PIECE || !flushed.is_empty() {
                    break;
                }
            }
            // If standard error is closed, the lines are lost.
            std::io::stderr().lock().write_all(out.as_bytes()).unwrap_or_default();
            out.clear();
            // Whoever waits may have gone.
            flushed.into_iter().for_each(|done| done.try_send(()).unwrap_or_default());
            let left_out = self.left_out();
            if left_out > told {
                tracing::warn!(left_out = left_out - told, "lines of the access log were left out: standard error takes them too slowly");
                told = left_out;
            }
        }
    }

    fn line(&self, out: &mut String, time: jiff::Timestamp, say: Say) {
        let json = self.format.load(Ordering::Relaxed) != AccessFormat::Text as u8;
        let mut line = Line { out: std::mem::take(out), json };
        line.out.push_str(&if json { format!("{{\"timestamp\":\"{time:.6}\"") } else { format!("{time:.6} access") });
        say(&mut line);
        *out = line.out;
        out.push_str(if json { "}\n" } else { "\n" });
    }
}

/// A line that is being made: names and values. A name is a word of ours, a text may be anything.
#[derive(Debug)]
pub(crate) struct Line {
    out: String,
    json: bool,
}

impl Line {
    fn name(&mut self, name: &str) {
        if self.json {
            self.out.push_str(",\"");
            self.out.push_str(name);
            self.out.push_str("\":");
        } else {
            self.out.push(' ');
            self.out.push_str(name);
            self.out.push('=');
        }
    }

    /// Adds a text, if there is one.
    pub(crate) fn text(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.name(name);
            quote(&mut self.out, text, MOST);
        }
    }

    /// Adds texts as a list.
    pub(crate) fn texts<'a>(&mut self, name: &str, texts: impl Iterator<Item = &'a str>) {
        self.name(name);
        self.out.push('[');
        for (n, text) in texts.enumerate() {
            if n > 0 {
                self.out.push(',');
            }
            quote(&mut self.out, text, MOST);
        }
        self.out.push(']');
    }

    /// Adds a number.
    pub(crate) fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        self.out.push_str(&number.to_string());
    }

    /// Adds a time span in seconds.
    pub(crate) fn seconds(&mut self, name: &str, span: Duration) {
        self.name(name);
        self.out.push_str(&format!("{:.3}", span.as_secs_f64()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(format: AccessFormat) -> String {
        let (access, _lines) = Access::new(format);
        let mut out = String::new();
        let say = |line: &mut Line| {
            line.text("who", Some("a\n\"b\" forged=1\u{2028}"));
            line.text("absent", None);
            line.texts("patterns", ["a.>", "b\r"].into_iter());
            line.number("events", 3);
            line.seconds("seconds", Duration::from_micros(1_500_400));
        };
        access.line(&mut out, "2030-01-31T12:00:00Z".parse().unwrap(), Box::new(say));
        out
    }

    #[test]
    fn a_line_is_one_line_whatever_is_in_it() {
        let text = one(AccessFormat::Text);
        let expected =
            "2030-01-31T12:00:00.000000Z access who=\"a\\n\\\"b\\\" forged=1\\u2028\" patterns=[\"a.>\",\"b\\r\"] events=3 seconds=1.500\n";
        assert_eq!(text, expected);
        let json: serde_json::Value = serde_json::from_str(&one(AccessFormat::Json)).unwrap();
        assert_eq!(json["who"], "a\n\"b\" forged=1\u{2028}");
        assert_eq!((&json["events"], &json["seconds"]), (&3.into(), &1.5.into()));
    }

    #[test]
    fn a_queue_that_is_full_leaves_lines_out_and_counts_them() {
        let (access, lines) = Access::new(AccessFormat::Off);
        access.say(|_| {});
        assert!(lines.0.try_recv().is_err(), "it is off");
        access.set(AccessFormat::Text);
        (0..QUEUE + 5).for_each(|_| access.say(|_| {}));
        assert_eq!((access.left_out(), lines.0.try_iter().count()), (5, QUEUE));
    }
}
