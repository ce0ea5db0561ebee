//! A [`Client`] in a process of its own, because the subscribers of two servers are more than one may have open.
//!
//! It is told what to do by lines on its standard input, and answers each with a line when it is done.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::client::{Client, Mode, Wants};

/// The argument with which this program is such a client.
pub(super) const ARGUMENT: &str = "load";

const DONE: &str = "done";

/// The other end of such a client.
pub(super) struct Load {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Load {
    /// Starts it, and returns when all streams have begun. What is published stands in a file.
    pub(super) fn start(address: SocketAddr, subscribers: usize, wants: Wants, request: &Path) -> io::Result<Self> {
        let (kind, number) = match wants {
            Wants::Same => ("same", 0),
            Wants::Filters(number) => ("filters", number),
            Wants::Other(number) => ("other", number),
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.args([ARGUMENT, &address.to_string(), &subscribers.to_string(), kind, &number.to_string()]).arg(request);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let none = || io::Error::other("a child has no pipes");
        let mut load = Self { child, orders: orders.ok_or_else(none)?, answers: BufReader::new(answers.ok_or_else(none)?) };
        load.done()?;
        Ok(load)
    }

    /// See [`Client::open`].
    pub(super) fn open(&mut self, mode: Mode) -> io::Result<()> {
        self.order(&format!("open {}", word(mode)))
    }

    /// See [`Client::run`].
    pub(super) fn run(&mut self, events: usize, mode: Mode) -> io::Result<()> {
        self.order(&format!("run {} {events}", word(mode)))
    }

    /// See [`Client::close`].
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.order("close")
    }

    fn order(&mut self, order: &str) -> io::Result<()> {
        writeln!(self.orders, "{order}")?;
        self.done()
    }

    fn done(&mut self) -> io::Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.trim() == DONE { Ok(()) } else { Err(io::Error::other("a client has failed")) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn word(mode: Mode) -> &'static str {
    if mode == Mode::OneAtATime { "one" } else { "flight" }
}

/// Does what it is told until standard input ends.
pub(super) fn obey(arguments: &[String]) -> io::Result<()> {
    let bad = || io::Error::other("bad arguments");
    let [_, address, subscribers, kind, number, request] = arguments else { return Err(bad()) };
    let number = number.parse().map_err(|_| bad())?;
    let wants = match &**kind {
        "same" => Wants::Same,
        "filters" => Wants::Filters(number),
        _ => Wants::Other(number),
    };
    let (address, subscribers) = (address.parse().map_err(|_| bad())?, subscribers.parse().map_err(|_| bad())?);
    let mut client = Client::connect(address, subscribers, wants, std::fs::read(request)?)?;
    println!("{DONE}");
    for line in io::stdin().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let order = words.next();
        let mode = if words.next() == Some("one") { Mode::OneAtATime } else { Mode::InFlight };
        match order {
            Some("open") => client.open(mode)?,
            Some("run") => client.run(words.next().and_then(|n| n.parse().ok()).ok_or_else(bad)?, mode)?,
            _ => client.close(),
        }
        println!("{DONE}");
    }
    Ok(())
}
