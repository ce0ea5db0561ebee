//! `tail`: a stream in the terminal. Comes back like a browser: with the last id, after the time the server named.
//!
//! Events go to standard output, a line each; gaps, closings and breaks to standard error.

use std::io::Write;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::time::sleep;

use super::client::{self, Reach};
use super::sse::{Event, Found, Parser};
use super::{Error, block_on, chain, say};
use crate::subject::Pattern;

mod line;
#[cfg(test)]
mod tests;

/// How long a browser waits by default, about.
const RETRY: Duration = Duration::from_secs(3);
/// The shortest wait before reconnecting: a server that is down must not be asked in a tight loop.
const MIN_RETRY: Duration = Duration::from_millis(100);
/// The longest wait before reconnecting, whatever the server says: somebody is watching the terminal.
const MAX_RETRY: Duration = Duration::from_secs(300);
/// The time limit for the head of an answer.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The patterns wanted, such as orders.>; none: all that the token permits
    #[arg(value_name = "SUBJECT")]
    subjects: Vec<Pattern>,
    /// Where to begin: now, all, last, a time span such as 10m, or an RFC 3339 time
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Begin after the event with this id
    #[arg(long, value_name = "ID", conflicts_with = "since")]
    last_event_id: Option<String>,
    /// How an event is printed
    #[arg(long, value_enum, default_value = "text")]
    format: line::Format,
    /// End after so many events
    #[arg(short = 'n', long, value_name = "NUMBER")]
    count: Option<u64>,
    #[command(flatten)]
    reach: Reach,
}

pub(super) fn run(files: &[PathBuf], options: Options) -> Result<ExitCode, Error> {
    let address = options.reach.address(files)?;
    let mut tail = Tail::new(&address, options, std::io::stdout())?;
    block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(|e| Error::with("cannot listen to signals", e))?;
        tokio::select! {
            ended = tail.follow() => ended.map(|Ended| ()),
            interrupted = tokio::signal::ctrl_c() => interrupted.map_err(|e| Error::with("cannot listen to signals", e)),
            _ = terminate.recv() => Ok(()),
            () = reader_gone() => Ok(()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Resolves when the reader of standard output has gone, even while there is nothing to print. Never resolves for a file.
async fn reader_gone() {
    // A duplicate of it, never written to: whether it blocks stays as it is.
    let out = std::io::stdout().as_fd().try_clone_to_owned().and_then(pipe::Sender::from_owned_fd_unchecked);
    if let Ok(out) = out
        && out.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Enough was printed, or standard output is closed.
struct Ended;

/// What became of one connection.
enum Broken {
    /// As the server or the network wanted: to be tried again.
    Again(String, Option<Duration>),
    /// For good.
    Never(Error),
}

struct Tail<W> {
    client: Client,
    url: Url,
    last_id: Option<String>,
    retry: Duration,
    /// Whether it ever streamed: before that, a fault is one of the arguments.
    streamed: bool,
    format: line::Format,
    left: Option<u64>,
    out: W,
}

impl<W: Write> Tail<W> {
    fn new(address: &Url, options: Options, out: W) -> Result<Self, Error> {
        let mut url = client::below(address, "/events");
        {
            // The envelope that says subject and time, and one kind of event for all.
            let mut query = url.query_pairs_mut();
            query.append_pair("envelope", "json");
            for subject in &options.subjects {
                query.append_pair("subject", subject.as_str());
            }
            if let Some(since) = &options.since {
                query.append_pair("since", since);
            }
        }
        let last_id = options.last_event_id;
        if last_id.as_ref().is_some_and(|id| HeaderValue::try_from(id).is_err()) {
            return Err(Error::new("--last-event-id is not a valid event id"));
        }
        let client = options.reach.client()?;
        Ok(Self { client, url, last_id, retry: RETRY, streamed: false, format: options.format, left: options.count, out })
    }

    /// Until there is nothing more to print.
    async fn follow(&mut self) -> Result<Ended, Error> {
        if self.left == Some(0) {
            return Ok(Ended);
        }
        loop {
            let (why, wait) = match self.connection().await {
                Ok(Ended) => return Ok(Ended),
                Err(Broken::Never(error)) => return Err(error),
                Err(Broken::Again(why, wait)) => (why, wait.unwrap_or(self.retry).clamp(MIN_RETRY, MAX_RETRY)),
            };
            say(format_args!("-- {why}; again in {:.1} s", wait.as_secs_f64()));
            sleep(wait).await;
        }
    }

    /// One connection, from its request to its end.
    async fn connection(&mut self) -> Result<Ended, Broken> {
        let mut request = self.client.get(self.url.clone()).header(ACCEPT, "text/event-stream");
        if let Some(id) = &self.last_id {
            request = request.header("Last-Event-ID", id);
        }
        let answer = match tokio::time::timeout(ANSWER, request.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.unreachable(error)),
            Err(_) => return Err(Broken::Again("no answer".to_owned(), None)),
        };
        let mut answer = self.accepted(answer).await?;
        let (mut parser, mut found) = (Parser::default(), Vec::new());
        loop {
            let chunk = match answer.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Err(Broken::Again("the stream has ended".to_owned(), None)),
                Err(error) => return Err(Broken::Again(format!("the connection broke: {}", chain(&error.without_url())), None)),
            };
            parser.feed(&chunk, &mut found).map_err(|e| Broken::Never(Error::with("this is not a stream of brokercast", e)))?;
            for found in found.drain(..) {
                match found {
                    Found::Id(id) => self.last_id = Some(id).filter(|id| HeaderValue::try_from(id).is_ok()),
                    Found::Retry(millis) => self.retry = Duration::from_millis(millis),
                    Found::Event(event) => {
                        if self.show(&event).map_err(Broken::Never)? {
                            return Ok(Ended);
                        }
                    }
                }
            }
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> Broken {
        let error = error.without_url();
        if self.streamed {
            Broken::Again(format!("the bridge cannot be reached: {}", chain(&error)), None)
        } else {
            Broken::Never(client::unreachable(&self.url, error))
        }
    }

    /// Whether an answer is a stream. A browser gives up at anything else; here, what waiting can mend is tried again.
    async fn accepted(&mut self, answer: Response) -> Result<Response, Broken> {
        let status = answer.status();
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if status == StatusCode::OK && kind == "text/event-stream" {
            self.streamed = true;
            return Ok(answer);
        }
        let after = answer.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let passing = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        );
        if status == StatusCode::OK {
            return Err(Broken::Never(Error::new("the answer is not an event stream: is this the address of brokercast?")));
        }
        let said = format!("the bridge refused: {}", client::refusal(answer).await);
        Err(if passing { Broken::Again(said, after) } else { Broken::Never(Error::new(said)) })
    }

    /// Prints an event; says whether it was the last.
    fn show(&mut self, event: &Event) -> Result<bool, Error> {
        if let Some(note) = line::control(event) {
            say(format_args!("-- {note}"));
            return Ok(false);
        }
        let line = line::event(event, self.format);
        match writeln!(self.out, "{line}").and_then(|()| self.out.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(true),
            Err(error) => return Err(Error::with("cannot write to standard output", error)),
        }
        self.left = self.left.map(|left| left - 1);
        Ok(self.left == Some(0))
    }
}
