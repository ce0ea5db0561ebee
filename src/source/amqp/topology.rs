//! What a source reads: looked for first and used as it is, made only where it is missing, and bound.
//!
//! Each question has a channel of its own, since the broker closes the channel with a refusal. Knows nothing of reading, but
//! for the one question that tells a stream from a queue.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::AMQPSoftError::{ACCESSREFUSED, NOTFOUND, PRECONDITIONFAILED};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{ExchangeKind, Queue};
use parking_lot::Mutex;

use super::Amqp;
use super::config::{Binding, Declare, ExchangeType, Origin, Partitions, QueueType};
use super::error::{failed, is, lacks_replica, said};
use super::link::{Link, answer, short};
use super::queue::OFFSET;
use crate::settings::Choice as _;
use crate::source::SourceError;
use crate::subject::Pattern;

/// What is read, ready to be consumed from.
pub(in crate::source) struct Place {
    pub(in crate::source) queue: ShortString,
    /// With the keys that the queue was bound with, and has to stay bound with. `None`: nothing is known to feed it.
    pub(in crate::source) binding: Option<Binding>,
}

/// What is remembered of a source from one connection to the next.
#[derive(Default)]
pub(in crate::source) struct Memory {
    /// The differences that the log names already.
    told: Mutex<Vec<String>>,
    /// The queue was read before.
    read: AtomicBool,
    /// Messages that wait in the queue, plus one; 0: not known.
    ready: AtomicU64,
    /// The queue was found missing since, or the broker ended reading from it.
    gone: AtomicBool,
    /// The exchange, as it was found the last time.
    exchange: Mutex<Option<Found>>,
}

/// An exchange that was there.
#[derive(Clone)]
struct Found {
    /// How it differs from the settings.
    differences: Vec<String>,
    /// How to declare the same. `None`: that is not known in full.
    same: Option<(Binding, ExchangeDeclareOptions)>,
}

impl Memory {
    /// The queue is gone, or is only not within reach.
    pub(in crate::source) fn is_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }

    /// Reading begins. Returns whether the queue is not the one that was read before.
    pub(in crate::source) fn begins(&self) -> bool {
        let gone = self.gone.swap(false, Ordering::Relaxed);
        self.read.swap(true, Ordering::Relaxed) && gone
    }

    /// Messages that wait in the queue, as far as known.
    pub(super) fn ready(&self) -> Option<u64> {
        self.ready.load(Ordering::Relaxed).checked_sub(1)
    }

    /// So many messages wait in the queue.
    pub(super) fn waits(&self, ready: Option<u64>) {
        self.ready.store(ready.map_or(0, |ready| ready.saturating_add(1)), Ordering::Relaxed);
    }

    /// Logs how what is there differs from the settings, once.
    fn tell(&self, source: &Amqp, differences: Vec<String>) {
        let mut told = self.told.lock();
        if *told != differences {
            if !differences.is_empty() {
                let differences = differences.join("; ");
                tracing::warn!(source = %source.name, differences, "what is there differs from the settings and is used as it is");
            }
            *told = differences;
        }
    }
}

/// Finds or makes what `source` reads.
pub(in crate::source) async fn set_up(link: &Link, source: &Amqp) -> Result<Place, SourceError> {
    let config = &source.config;
    let mut differences = Vec::new();
    if let Some(binding) = config.binding() {
        differences.extend(exchange(link, binding, source).await?);
    }
    let (queue, made) = match &config.origin {
        Origin::Exclusive(_) => {
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let declared = declare_queue(link, "", options, FieldTable::default()).await?;
            (declared.map_err(|e| failed("cannot declare a queue of this process (`exchange`)", e))?.name().clone(), true)
        }
        Origin::Named { declare, .. } => {
            let name = config.queue(&source.name).unwrap_or_default();
            let found = find_queue(link, &name, source, declare.is_some()).await?;
            match declare {
                Some(declare) if found => differences.extend(compare_queue(link, &name, declare).await?),
                Some(declare) => make_queue(link, &name, declare).await?,
                None => {}
            }
            let queue = short(&name);
            if found && !config.stream {
                refuse_stream(link, &queue).await?;
            }
            (queue, !found)
        }
    };
    let binding = match config.binding() {
        Some(binding) => match bind(link, &queue, binding, made, &mut differences).await {
            Err(error) if made && matches!(config.origin, Origin::Named { .. }) => {
                // Else the next attempt would find it, and read it as it is bound: to nothing.
                delete_queue(link, &queue).await?;
                return Err(error);
            }
            bound => bound?,
        },
        None => None,
    };
    source.memory.tell(source, differences);
    Ok(Place { queue, binding })
}

/// Finds the exchange, or makes it: as it was, if it was there before. The broker deletes one with `auto_delete` when our queue, as its
/// last one, goes with the connection, and whoever publishes to it could not declare another one of this name. Returns how one that
/// is or was there differs from the settings.
pub(in crate::source) async fn exchange(link: &Link, binding: &Binding, source: &Amqp) -> Result<Vec<String>, SourceError> {
    let (before, mut refused) = (source.memory.exchange.lock().clone(), None);
    // Without looking first: it may go between the two.
    if let Some(Found { differences, same: Some((same, options)) }) = &before {
        match declare_exchange(link, same, *options, FieldTable::default()).await? {
            Ok(()) => return Ok(differences.clone()),
            Err(e) => refused = Some(e),
        }
    }
    if find_exchange(link, binding).await? {
        let found = compare_exchange(link, binding).await?;
        check_type(binding, &found.differences, &source.names.reach)?;
        *source.memory.exchange.lock() = Some(found.clone());
        return Ok(found.differences);
    }
    if let Some(e) = refused {
        return Err(not_made(binding, e));
    }
    if before.is_some() {
        let name = &binding.exchange;
        let what = format!("exchange `{name}` is not there any more (`exchange`), and how it was made is not known in full");
        return Err(SourceError::missing(what));
    }
    let declared = declare_exchange(link, binding, DURABLE, FieldTable::default()).await?;
    declared.map(|()| Vec::new()).map_err(|e| not_made(binding, e))
}

/// Whether an exchange of another type than the settings say gives what they promise, messages of `reach`.
fn check_type(binding: &Binding, differences: &[String], reach: &[Pattern]) -> Result<(), SourceError> {
    let name = &binding.exchange;
    let Some(said) = differences.iter().find(|said| said.contains("arg 'type'")) else { return Ok(()) };
    let (kind, direct) = (binding.kind.as_str(), said.ends_with("'direct'"));
    if direct && !binding.chosen {
        let what = format!("exchange `{name}` is a direct one: `binding_keys` must name the keys, and `exchange_type` must be `direct`");
        return Err(SourceError::configuration(format!("{what} ({said})")));
    }
    // The settings promise what subjects there are: by the words of a topic exchange, a direct one gives no others.
    let promised = direct && binding.kind == ExchangeType::Topic;
    if reach != [Pattern::all()] && !promised {
        let what = format!("exchange `{name}` does not read `binding_keys` as a {kind} exchange does: `exchange_type` must be its type");
        return Err(SourceError::configuration(format!("{what} ({said})")));
    }
    Ok(())
}

const DURABLE: ExchangeDeclareOptions =
    ExchangeDeclareOptions { passive: false, durable: true, auto_delete: false, internal: false, nowait: false };

/// How an exchange that is there differs from the one that would be made. As with queues, the broker names one difference at
/// a time.
async fn compare_exchange(link: &Link, binding: &Binding) -> Result<Found, SourceError> {
    let (mut asked, mut options, mut differences, mut agreed) = (binding.clone(), DURABLE, Vec::new(), false);
    for _ in 0..MOST {
        let said = match declare_exchange(link, &asked, options, FieldTable::default()).await? {
            Err(e) if is_unknown_type(&e) => return Err(not_made(binding, e)),
            declared => {
                agreed = declared.is_ok();
                difference(declared)?
            }
        };
        let Some(said) = said else { break };
        let more = adopt_property(&mut asked, &mut options, &said);
        differences.push(said);
        if !more {
            break;
        }
    }
    // The arguments of a plugin's type are not compared.
    let known = agreed && (differences.is_empty() || !matches!(asked.kind, ExchangeType::Other(_)));
    Ok(Found { differences, same: known.then_some((asked, options)) })
}

/// Takes over the property of an exchange that the broker named. Returns whether that could be read.
pub(super) fn adopt_property(asked: &mut Binding, options: &mut ExchangeDeclareOptions, said: &str) -> bool {
    let read = || {
        let (property, _) = said.split_once("inequivalent arg '")?.1.split_once('\'')?;
        // A plugin's type comes in quotes of its own.
        Some((property, said.rsplit_once(" but current is '")?.1.trim_matches('\'')))
    };
    match read() {
        Some(("type", kind)) => asked.kind = kind.to_owned().into(),
        Some(("durable", _)) => options.durable ^= true,
        Some(("auto_delete", _)) => options.auto_delete ^= true,
        Some(("internal", _)) => options.internal ^= true,
        _ => return false,
    }
    true
}

/// Whether the exchange is there.
pub(super) async fn find_exchange(link: &Link, binding: &Binding) -> Result<bool, SourceError> {
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    match declare_exchange(link, binding, passive, FieldTable::default()).await? {
        Ok(()) => Ok(true),
        Err(e) if is(&e, NOTFOUND) => Ok(false),
        Err(e) => Err(failed(format!("cannot use exchange `{}` (`exchange`)", binding.exchange), e)),
    }
}

fn is_unknown_type(error: &lapin::Error) -> bool {
    said(error).contains("unknown exchange type")
}

/// Why an exchange cannot be made.
pub(super) fn not_made(binding: &Binding, error: lapin::Error) -> SourceError {
    if !is_unknown_type(&error) {
        return failed(format!("cannot declare exchange `{}` (`exchange`)", binding.exchange), error);
    }
    let kind = binding.kind.as_str();
    let what = format!("the broker knows no exchange type `{kind}` (`exchange_type`; is its plugin enabled?)");
    SourceError::configuration(what).because(error)
}

pub(super) async fn declare_exchange(
    link: &Link,
    binding: &Binding,
    options: ExchangeDeclareOptions,
    arguments: FieldTable,
) -> Result<lapin::Result<()>, SourceError> {
    let kind = ExchangeKind::Custom(binding.kind.as_str().to_owned());
    let channel = link.channel().await?;
    answer("declaring an exchange", channel.exchange_declare(short(&binding.exchange), kind, options, arguments)).await
}

/// The broker's words about what is there, when it was asked for it with other properties. Who may not make things gets
/// no answer to that.
fn difference<T>(declared: lapin::Result<T>) -> Result<Option<String>, SourceError> {
    match declared {
        Ok(_) => Ok(None),
        Err(e) if is(&e, PRECONDITIONFAILED) => {
            let said = said(&e);
            Ok(Some(said.strip_prefix("PRECONDITION_FAILED - ").unwrap_or(said).to_owned()))
        }
        Err(e) if is(&e, ACCESSREFUSED) => Ok(None),
        Err(e) => Err(failed("cannot compare what is there with the settings", e)),
    }
}

pub(super) async fn declare_queue(
    link: &Link,
    name: &str,
    options: QueueDeclareOptions,
    arguments: FieldTable,
) -> Result<lapin::Result<Queue>, SourceError> {
    let channel = link.channel().await?;
    answer("declaring a queue", channel.queue_declare(short(name), options, arguments)).await
}

/// Whether the queue is there. One that is missing and not to be made is an error.
pub(super) async fn find_queue(link: &Link, name: &str, source: &Amqp, make: bool) -> Result<bool, SourceError> {
    let error = match look_for_queue(link, name).await? {
        Ok(_) => return Ok(true),
        Err(e) => e,
    };
    let missing = is_missing(&error);
    if is(&error, NOTFOUND) {
        source.memory.is_gone(missing);
    }
    let (key, made) = match &source.config.partitions {
        Some(Partitions::Named(..)) => ("partitions", "`rabbitmq-streams add_super_stream`"),
        Some(Partitions::Counted(_)) => ("queue", "`rabbitmq-streams add_super_stream`"),
        None => ("queue", "`declare: true`"),
    };
    match (missing, make) {
        (true, true) => Ok(false),
        (true, false) => Err(SourceError::missing(format!("queue `{name}` is not there yet (`{key}`; {made} would make it)"))),
        (false, _) => Err(failed(format!("cannot use queue `{name}` (`{key}`)"), error)),
    }
}

/// Whether a queue of somebody else's is there.
pub(in crate::source) async fn is_there(link: &Link, name: &str) -> Result<bool, SourceError> {
    match look_for_queue(link, name).await? {
        Ok(_) => Ok(true),
        Err(e) if is_missing(&e) => Ok(false),
        Err(e) => Err(failed(format!("cannot see whether queue `{name}` is there"), e)),
    }
}

/// Asks for a queue as it is.
pub(super) async fn look_for_queue(link: &Link, name: &str) -> Result<lapin::Result<Queue>, SourceError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    declare_queue(link, name, passive, FieldTable::default()).await
}

/// A queue whose node is down is not found either, but comes back with what it holds.
fn is_missing(error: &lapin::Error) -> bool {
    is(error, NOTFOUND) && said(error).contains("no queue")
}

async fn make_queue(link: &Link, name: &str, declare: &Declare) -> Result<(), SourceError> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let made = declare_queue(link, name, options, arguments(declare).into()).await?;
    made.map(drop).map_err(|e| failed(format!("cannot declare queue `{name}` (`queue`)"), e))
}

/// Takes back a queue that was made just now.
async fn delete_queue(link: &Link, queue: &ShortString) -> Result<(), SourceError> {
    let channel = link.channel().await?;
    let deleting = answer("deleting a queue", channel.queue_delete(queue.clone(), QueueDeleteOptions::default())).await?;
    deleting.map(drop).map_err(|e| failed(format!("cannot take queue `{queue}` back, which could not be bound"), e))
}

/// How a queue that is there differs from the one that would be made. The broker names one difference at a time, so the next
/// question takes over what it said.
async fn compare_queue(link: &Link, name: &str, declare: &Declare) -> Result<Vec<String>, SourceError> {
    let (mut asked, mut differences) = (arguments(declare), Vec::new());
    let mut options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    for _ in 0..MOST {
        let Some(said) = difference(declare_queue(link, name, options, asked.clone().into()).await?)? else { break };
        let more = match current(&said) {
            Some(("durable", _)) => flip(&mut options.durable),
            Some(("auto_delete", _)) => flip(&mut options.auto_delete),
            _ => adopt(&mut asked, &said),
        };
        // The size of segments is no setting: only what brokercast makes has it.
        if !said.contains(SEGMENT) {
            differences.push(said);
        }
        if !more {
            break;
        }
    }
    Ok(differences)
}

/// Asks for the opposite.
fn flip(option: &mut bool) -> bool {
    *option ^= true;
    true
}

/// For how long a stream keeps messages, as far as the broker says; where it does not, what the settings say. `None`: no limit is
/// known. A policy's limit is not among an argument's differences.
pub(in crate::source) async fn kept(link: &Link, name: &str, assumed: Option<Duration>) -> Result<Option<Duration>, SourceError> {
    // No stream can have this age. So the broker names the one that there is, and makes no stream where one has just gone.
    let mut asked: BTreeMap<_, _> =
        [("x-queue-type", "stream"), (MAX_AGE, "never")].map(|(key, value)| (short(key), AMQPValue::LongString(value.into()))).into();
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    for _ in 0..MOST {
        let Some(said) = difference(declare_queue(link, name, options, asked.clone().into()).await?)? else { break };
        match current(&said) {
            Some((MAX_AGE, "none")) => return Ok(None),
            Some((MAX_AGE, current)) => return Ok(current.split('\'').nth(1).and_then(age).or(assumed)),
            _ if !adopt(&mut asked, &said) => break,
            _ => {}
        }
    }
    Ok(assumed)
}

/// An age as RabbitMQ writes it: a number and one of `Y`, `M`, `D`, `h`, `m`, `s`.
pub(super) fn age(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let day = 24 * 3600;
    let seconds = match unit {
        "Y" => 365 * day,
        "M" => 30 * day,
        "D" => day,
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        _ => return None,
    };
    Some(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?))
}

/// The argument that the broker named, and its words on what that is now.
fn current(said: &str) -> Option<(&str, &str)> {
    let (argument, _) = said.split_once("inequivalent arg '")?.1.split_once('\'')?;
    Some((argument, said.rsplit_once(" but current is ")?.1))
}

/// Takes over the argument that the broker named. Returns whether that could be read.
pub(super) fn adopt(arguments: &mut BTreeMap<ShortString, AMQPValue>, said: &str) -> bool {
    let named = current(said).filter(|(argument, _)| argument.starts_with("x-"));
    let Some((argument, current)) = named.map(|(argument, current)| (short(argument), current)) else { return false };
    if current == "none" {
        return arguments.remove(&argument).is_some();
    }
    let Some(value) = current.split('\'').nth(1) else { return false };
    let is_text = current.contains("'longstr'") || matches!(arguments.get(&argument), Some(AMQPValue::LongString(_)));
    let value = match (value.parse(), value.parse()) {
        (Ok(number), _) if !is_text => AMQPValue::LongLongInt(number),
        (_, Ok(flag)) if !is_text => AMQPValue::Boolean(flag),
        _ => AMQPValue::LongString(value.into()),
    };
    arguments.insert(argument, value.clone()) != Some(value)
}

/// How long a stream keeps messages.
const MAX_AGE: &str = "x-max-age";
/// The size of a stream's segments.
const SEGMENT: &str = "x-stream-max-segment-size-bytes";
/// So many differences of a queue are named.
const MOST: usize = 8;

pub(super) fn arguments(declare: &Declare) -> BTreeMap<ShortString, AMQPValue> {
    let mut table = BTreeMap::new();
    let mut text = |key: &str, value: &str| {
        table.insert(short(key), AMQPValue::LongString(value.into()));
    };
    // Always sent: left out, it would be the vhost's default type.
    text("x-queue-type", declare.queue_type.word());
    if declare.queue_type == QueueType::Stream {
        text(MAX_AGE, &format!("{}s", declare.max_age.as_secs()));
        let mut number = |key: &str, value: u64| {
            table.insert(short(key), AMQPValue::LongLongInt(i64::try_from(value).unwrap_or(i64::MAX)));
        };
        number("x-max-length-bytes", declare.max_bytes);
        // Only whole segments are dropped, and never the last: small ones keep the limits close.
        number(SEGMENT, (declare.max_bytes / 8).clamp(64 << 10, 500_000_000));
    }
    table
}

/// Asks to begin at an offset, which only a stream allows: read as a queue, a stream would lose what comes while nobody reads.
pub(super) async fn refuse_stream(link: &Link, queue: &ShortString) -> Result<(), SourceError> {
    let channel = link.channel().await?;
    let mut table = FieldTable::default();
    table.insert(ShortString::from(OFFSET), AMQPValue::LongString("next".into()));
    let failed = |e| failed(format!("cannot see whether queue `{queue}` is a stream, which takes the right to read it (`queue`)"), e);
    let is_stream = || SourceError::configuration(format!("queue `{queue}` is a stream: `queue_type: stream` reads it as one"));
    answer("setting the prefetch", channel.basic_qos(1, BasicQosOptions::default())).await?.map_err(failed)?;
    let consuming = channel.basic_consume(queue.clone(), ShortString::default(), BasicConsumeOptions::default(), table);
    match answer("consuming", consuming).await? {
        Ok(_) => Err(is_stream()),
        // Only a stream needs a replica on this very node.
        Err(e) if lacks_replica(&e) => Err(is_stream()),
        Err(e) if is(&e, PRECONDITIONFAILED) => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

/// Binds the queue. Returns the binding that it has then.
async fn bind(
    link: &Link,
    queue: &ShortString,
    binding: &Binding,
    made: bool,
    differences: &mut Vec<String>,
) -> Result<Option<Binding>, SourceError> {
    let error = match bind_keys(link, queue, binding).await? {
        Ok(()) => return Ok(Some(binding.clone())),
        Err(e) => e,
    };
    if is(&error, PRECONDITIONFAILED) && !binding.chosen {
        // An exchange that spreads messages by weight, such as `x-consistent-hash`, takes numbers only.
        let weight = Binding { keys: vec!["1".to_owned()], ..binding.clone() };
        if bind_keys(link, queue, &weight).await?.is_ok() {
            return Ok(Some(weight));
        }
    }
    if is(&error, ACCESSREFUSED) && !made {
        differences.push(format!("it is read as it is bound: {}", said(&error)));
        return Ok(None);
    }
    Err(not_bound(binding, error))
}

/// Why a queue cannot be bound.
pub(super) fn not_bound(binding: &Binding, error: lapin::Error) -> SourceError {
    failed(format!("cannot bind a queue to exchange `{}` (`binding_keys`)", binding.exchange), error)
}

pub(super) async fn bind_keys(link: &Link, queue: &ShortString, binding: &Binding) -> Result<lapin::Result<()>, SourceError> {
    let channel = link.channel().await?;
    for key in &binding.keys {
        let (exchange, options) = (short(&binding.exchange), QueueBindOptions::default());
        let bound = channel.queue_bind(queue.clone(), exchange, short(key), options, FieldTable::default());
        if let Err(e) = answer("binding", bound).await? {
            return Ok(Err(e));
        }
    }
    Ok(Ok(()))
}
