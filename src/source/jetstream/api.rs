//! JetStream's API: what is asked, what is answered. Requests and answers are JSON.
//!
//! Most questions must be answered; the one for a single message is done without where the user may not ask it.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::line::{ANSWER, Line};
use crate::cursor::Check;
use crate::event::Headers;
use crate::source::SourceError;
use crate::source::nats::answer::{is_refusal, read};
use crate::source::nats::headers;

/// For a consumer to be made: a busy cluster takes its time. Below the time that the supervisor gives a connection.
pub(super) const CREATED: Duration = Duration::from_secs(25);

/// A stream: what it is, what it holds.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: StreamConfig,
    /// Another text: another stream of the same name.
    #[serde(default)]
    pub(super) created: String,
    pub(super) state: StreamState,
}

/// The part of a stream's configuration that matters here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamConfig {
    pub(super) subjects: Option<Vec<String>>,
    pub(super) retention: String,
    pub(super) discard: String,
    pub(super) max_msgs: i64,
    pub(super) max_bytes: i64,
    /// Nanoseconds.
    pub(super) max_age: u64,
    pub(super) max_msgs_per_subject: i64,
    pub(super) allow_msg_ttl: bool,
    /// A message may replace all earlier ones of its subject.
    pub(super) allow_rollup_hdrs: bool,
    pub(super) mirror: Option<Feed>,
    pub(super) sources: Option<Vec<Feed>>,
    pub(super) subject_transform: Option<serde::de::IgnoredAny>,
    pub(super) consumer_limits: ConsumerLimits,
}

/// The most that a stream's consumers may ask for; 0: no limit.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConsumerLimits {
    /// Nanoseconds.
    pub(super) inactive_threshold: u64,
}

/// Another stream, from which one gets its messages.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Feed {
    pub(super) name: String,
    pub(super) subject_transforms: Option<Vec<Transform>>,
}

/// How subjects are called anew.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Transform {
    /// Empty: as they were.
    pub(super) dest: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    /// When that came, though it may be gone.
    pub(super) last_ts: String,
}

/// How a stream is made.
#[derive(Debug, Serialize)]
pub(super) struct NewStream<'a> {
    pub(super) name: &'a str,
    pub(super) subjects: Vec<&'a str>,
    pub(super) retention: &'static str,
    pub(super) storage: &'static str,
    pub(super) discard: &'static str,
    pub(super) max_consumers: i64,
    pub(super) max_msgs: i64,
    pub(super) max_bytes: u64,
    /// Nanoseconds.
    pub(super) max_age: u64,
    pub(super) num_replicas: usize,
    pub(super) allow_direct: bool,
}

/// How a consumer is made: a reader's place in the stream, kept in memory by the server while it is used.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct NewConsumer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) deliver_policy: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) opt_start_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) opt_start_time: Option<String>,
    pub(super) ack_policy: &'static str,
    pub(super) replay_policy: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) filter_subject: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) filter_subjects: Vec<String>,
    /// Nanoseconds.
    pub(super) inactive_threshold: u64,
    pub(super) num_replicas: usize,
    pub(super) mem_storage: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct ConsumerInfo {
    pub(super) name: String,
    #[serde(default)]
    pub(super) delivered: Delivered,
    #[serde(default)]
    pub(super) num_pending: u64,
    #[serde(default)]
    pub(super) config: ConsumerConfig,
}

/// The part of a consumer's configuration that the server decides.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConsumerConfig {
    /// Messages that may be asked for at a time; 0: no limit.
    pub(super) max_batch: usize,
}

/// Up to where a consumer has delivered.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Delivered {
    /// Messages.
    pub(super) consumer_seq: u64,
    /// The last one's sequence in the stream.
    pub(super) stream_seq: u64,
}

/// A stored message.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) seq: u64,
    /// Each byte that is not UTF-8 has become a replacement character.
    pub(super) subject: String,
    pub(super) payload: Bytes,
    pub(super) headers: Headers,
    /// The library may not be able to read it.
    pub(super) odd: bool,
    /// Nanoseconds since 1970.
    pub(super) time: u64,
    pub(super) check: Check,
}

#[derive(Deserialize)]
struct MessageAnswer {
    message: RawMessage,
}

#[derive(Deserialize)]
struct RawMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    data: String,
    #[serde(default)]
    hdrs: String,
    time: String,
}

/// Nanoseconds since 1970.
pub(super) fn nanos(text: &str) -> Option<u64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_nanosecond()).ok()
}

/// 24 bits of what every reader of a message sees alike.
pub(super) fn check(subject: &[u8], payload: &[u8], nanos: u64) -> Check {
    Check::of(&[subject, payload, &nanos.to_be_bytes()])
}

pub(super) fn info_question(stream: &str) -> String {
    format!("STREAM.INFO.{stream}")
}

pub(super) fn next_question(stream: &str, consumer: &str) -> String {
    format!("CONSUMER.MSG.NEXT.{stream}.{consumer}")
}

pub(super) fn message_question(stream: &str) -> String {
    format!("STREAM.MSG.GET.{stream}")
}

pub(super) fn delete_question(stream: &str, consumer: &str) -> String {
    format!("CONSUMER.DELETE.{stream}.{consumer}")
}

pub(super) fn read_info(answer: &[u8]) -> Result<Option<StreamInfo>, SourceError> {
    read(answer, "the stream")
}

pub(super) fn read_consumer(answer: &[u8]) -> Result<Option<ConsumerInfo>, SourceError> {
    read(answer, "the consumer")
}

pub(super) async fn stream_info(line: &mut Line, stream: &str) -> Result<Option<StreamInfo>, SourceError> {
    let question = info_question(stream);
    read_info(&line.request(&question, "", &question).await?)
}

pub(super) async fn create_stream(line: &mut Line, new: &NewStream<'_>) -> Result<(), SourceError> {
    let json = serde_json::to_string(new).map_err(|e| SourceError::protocol("could not describe the stream").because(e))?;
    let question = format!("STREAM.CREATE.{}", new.name);
    let answer = line.request(&question, &json, &question).await?;
    match read::<serde::de::IgnoredAny>(&answer, "to make the stream")? {
        Some(_) => Ok(()),
        None => Err(SourceError::missing("JetStream refuses to make the stream")),
    }
}

/// Makes a consumer, which is deleted when the line is dropped. `None`: there is no such stream (any more).
///
/// The name is ours, so that a consumer can be deleted though the answer has not come. A user who may only make consumers
/// without a name, as clients did before server 2.9, gets one by the server.
pub(super) async fn create_consumer(line: &mut Line, stream: &str, new: NewConsumer) -> Result<Option<ConsumerInfo>, SourceError> {
    let ours = NewConsumer { name: Some(line.new_consumer_name()), ..new.clone() };
    if let Some(answer) = try_create(line, stream, &ours).await? {
        return read_consumer(&answer);
    }
    let unnamed = create_question(stream, &new);
    let Some(answer) = line.try_request_once(&unnamed, &create_json(stream, &new), CREATED).await? else {
        return Err(line.denied(&format!("{unnamed}.>")));
    };
    let made = read_consumer(&answer)?;
    if let Some(made) = &made {
        line.at_the_end(&delete_question(stream, &made.name));
    }
    Ok(made)
}

/// Makes a consumer under the name that it has in `new`, or finds the one that was made so before.
pub(super) async fn named_consumer(line: &mut Line, stream: &str, new: &NewConsumer) -> Result<ConsumerInfo, SourceError> {
    let Some(answer) = try_create(line, stream, new).await? else {
        return Err(line.denied(&format!("CONSUMER.CREATE.{stream}.>")));
    };
    read_consumer(&answer)?.ok_or_else(|| SourceError::missing(format!("the stream `{stream}` has just gone")))
}

async fn try_create(line: &mut Line, stream: &str, new: &NewConsumer) -> Result<Option<Bytes>, SourceError> {
    if let Some(name) = &new.name {
        line.at_the_end(&delete_question(stream, name));
    }
    line.try_request(&create_question(stream, new), &create_json(stream, new), CREATED).await
}

fn create_question(stream: &str, new: &NewConsumer) -> String {
    match (&new.name, &new.filter_subject) {
        (None, _) => format!("CONSUMER.CREATE.{stream}"),
        (Some(name), None) => format!("CONSUMER.CREATE.{stream}.{name}"),
        (Some(name), Some(filter)) => format!("CONSUMER.CREATE.{stream}.{name}.{filter}"),
    }
}

fn create_json(stream: &str, new: &NewConsumer) -> String {
    serde_json::json!({ "stream_name": stream, "config": new }).to_string()
}

/// A stream that takes messages of a subject, if there is one and this user may ask.
pub(super) async fn stream_of(line: &mut Line, subject: &str) -> Result<Option<String>, SourceError> {
    #[derive(Deserialize)]
    struct Names {
        #[serde(default)]
        streams: Option<Vec<String>>,
    }
    let what = serde_json::json!({ "subject": subject }).to_string();
    let Some(answer) = line.try_request("STREAM.NAMES", &what, ANSWER).await? else { return Ok(None) };
    let names: Option<Names> = read(&answer, "the streams")?;
    Ok(names.and_then(|names| names.streams?.into_iter().next()))
}

/// The message at a sequence; with `or_next` the first one from there on. `None` too where this user may not ask.
pub(super) async fn message(line: &mut Line, stream: &str, seq: u64, or_next: bool) -> Result<Option<Stored>, SourceError> {
    let what = if or_next { first_from(seq, ">") } else { format!(r#"{{"seq":{seq}}}"#) };
    let question = message_question(stream);
    match line.try_request(&question, &what, ANSWER).await? {
        Some(answer) => read_message(&answer),
        None => {
            line.does_without(
                &question,
                "positions are not compared with the messages there: a stream that was cut and has grown again is not noticed",
            );
            Ok(None)
        }
    }
}

pub(super) fn read_message(answer: &[u8]) -> Result<Option<Stored>, SourceError> {
    let Some(MessageAnswer { message }) = read(answer, "a message")? else { return Ok(None) };
    let bad = |what: &str| SourceError::protocol(format!("JetStream's answer about a message has no {what}"));
    let payload = STANDARD.decode(&message.data).map_err(|_| bad("payload"))?;
    let time = nanos(&message.time).ok_or_else(|| bad("time"))?;
    let check = check(message.subject.as_bytes(), &payload, time);
    let headers = STANDARD.decode(&message.hdrs).map_err(|_| bad("headers"))?;
    let odd = message.subject.contains(char::REPLACEMENT_CHARACTER) || !(headers.is_empty() || plain(&message.subject, &headers));
    let headers = headers::parse(&headers);
    Ok(Some(Stored { seq: message.seq, subject: message.subject, payload: payload.into(), headers, odd, time, check }))
}

/// Whether headers are what every client can read: a line for each, of a name and a value. With headers, white space of any
/// kind in the subject is too much.
fn plain(subject: &str, headers: &[u8]) -> bool {
    let Some(lines) = std::str::from_utf8(headers).ok().and_then(|text| text.strip_prefix("NATS/1.0\r\n")) else { return false };
    let readable =
        |line: &str| line.split_once(':').is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()));
    !subject.contains(char::is_whitespace) && lines.lines().all(|line| line.is_empty() || readable(line))
}

/// What there is from a sequence on.
pub(super) enum Found {
    Nothing,
    Message(Stored),
    /// One that cannot be read, and the sequences between which it is, both included.
    Unreadable(u64, u64),
}

/// Asks for the first message from a sequence on that a filter takes.
pub(super) fn first_from(seq: u64, filter: &str) -> String {
    serde_json::json!({ "seq": seq, "next_by_subj": filter }).to_string()
}

/// The first message from a sequence on that one of the filters takes; `None`: this user may not ask.
pub(super) async fn find(line: &mut Line, stream: &str, seq: u64, filters: &[String]) -> Result<Option<Found>, SourceError> {
    let mut first: Option<Stored> = None;
    for filter in filters {
        let Some(answer) = line.try_request(&message_question(stream), &first_from(seq, filter), ANSWER).await? else { return Ok(None) };
        match read_message(&answer) {
            Ok(found) => first = first.into_iter().chain(found).min_by_key(|stored| stored.seq),
            Err(error) if is_refusal(&answer) => return Err(error),
            // JetStream's answer makes no sense.
            Err(_) => return Ok(Some(Found::Unreadable(seq, seq))),
        }
    }
    Ok(Some(first.map_or(Found::Nothing, Found::Message)))
}

/// The newest message of a subject; `None`: this user may not ask.
pub(super) async fn newest(line: &mut Line, stream: &str, subject: &str) -> Result<Option<Found>, SourceError> {
    let what = serde_json::json!({ "last_by_subj": subject }).to_string();
    let Some(answer) = line.try_request(&message_question(stream), &what, ANSWER).await? else { return Ok(None) };
    match read_message(&answer) {
        Ok(found) => Ok(Some(found.map_or(Found::Nothing, Found::Message))),
        Err(error) if is_refusal(&answer) => Err(error),
        Err(_) => Ok(Some(Found::Unreadable(0, 0))),
    }
}

/// The stream's subjects that a filter takes, if they are no more than `most`. Of a subject that is not UTF-8 each wrong byte has become
/// a replacement character.
pub(super) async fn subjects(line: &mut Line, stream: &str, filter: &str, most: usize) -> Result<Option<Vec<String>>, SourceError> {
    #[derive(Deserialize)]
    struct Answer {
        state: State,
        #[serde(default)]
        total: usize,
    }
    #[derive(Deserialize)]
    struct State {
        #[serde(default)]
        subjects: Option<HashMap<String, u64>>,
    }
    let (question, what) = (info_question(stream), serde_json::json!({ "subjects_filter": filter }).to_string());
    let answer = line.request(&question, &what, &question).await?;
    let Some(Answer { state, total }) = read(&answer, "the stream")? else { return Ok(None) };
    let subjects = state.subjects.unwrap_or_default();
    // A server gives 100,000 in one answer, and counts those apart that have become the same text.
    Ok((total.max(subjects.len()) <= most).then(|| subjects.into_keys().collect()))
}

/// What the reply subject of a delivered message says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) seq: u64,
    /// Nanoseconds since 1970.
    pub(super) time: u64,
    /// Messages that the consumer has yet to deliver.
    pub(super) pending: u64,
}

pub(super) fn placed(reply: &[u8]) -> Result<Place, SourceError> {
    place(reply).ok_or_else(|| SourceError::protocol("a message of the stream says no sequence"))
}

/// `$JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<time>.<pending>`, or, from newer servers, with a domain
/// and an account before the stream, and perhaps more behind.
pub(super) fn place(reply: &[u8]) -> Option<Place> {
    let rest = reply.strip_prefix(b"$JS.ACK.")?;
    let skipped = match rest.iter().filter(|b| **b == b'.').count() {
        6 => 3,
        8.. => 5,
        _ => return None,
    };
    let mut numbers = rest.split(|b| *b == b'.').skip(skipped).map(number);
    let (seq, _, time, pending) = (numbers.next()??, numbers.next()?, numbers.next()??, numbers.next()??);
    Some(Place { seq, time, pending })
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 { None } else { number.checked_mul(10)?.checked_add(digit.into()) }
    })
}
