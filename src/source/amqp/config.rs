//! `amqp: { … }`: the settings of an AMQP 0-9-1 source.
//!
//! Opens no connection and reads no file but secrets'.

use std::time::Duration;

use super::broker::Broker;
use crate::event::SourceName;
use crate::settings::{Choice, Key, Section, Slot};
use crate::subject::Subject;

/// The longest name of a queue, an exchange or a routing key: AMQP's short string.
pub(in crate::source) const MAX_NAME: usize = 255;

/// `amqp.exchange_type`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExchangeType {
    /// By words of the routing key.
    Topic,
    /// By the whole routing key.
    Direct,
    /// Everything.
    Fanout,
    /// By headers; brokercast asks for none, so it gets everything.
    Headers,
    /// A plugin's. What it gives for which key is not known here.
    Other(String),
}

impl From<String> for ExchangeType {
    fn from(name: String) -> Self {
        match &*name {
            "topic" => Self::Topic,
            "direct" => Self::Direct,
            "fanout" => Self::Fanout,
            "headers" => Self::Headers,
            _ => Self::Other(name),
        }
    }
}

impl ExchangeType {
    /// Whether it gives each message to one of its queues.
    fn splits(&self) -> bool {
        matches!(self, Self::Other(name) if ["x-consistent-hash", "x-modulus-hash", "x-random"].contains(&&**name))
    }

    /// The name as the broker knows it.
    pub(in crate::source) fn as_str(&self) -> &str {
        match self {
            Self::Topic => "topic",
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Headers => "headers",
            Self::Other(name) => name,
        }
    }
}

/// `amqp.queue_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueType {
    /// On one node.
    Classic,
    /// Replicated.
    Quorum,
    /// A log: what was read stays.
    Stream,
    /// Several logs.
    SuperStream,
}

impl Choice for QueueType {
    const WORDS: &'static [(&'static str, Self)] =
        &[("classic", Self::Classic), ("quorum", Self::Quorum), ("stream", Self::Stream), ("super_stream", Self::SuperStream)];
}

/// `amqp`
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where the broker is.
    pub broker: Broker,
    /// What is read.
    pub origin: Origin,
    /// Whether what is read is a stream.
    pub stream: bool,
    /// The streams of a super stream.
    pub partitions: Option<Partitions>,
    /// Messages that may be on the way to us, unacknowledged.
    pub prefetch: u16,
}

/// What is read.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// What an exchange gives an exclusive queue of this process.
    Exclusive(Binding),
    /// A queue with a name (`None`: `brokercast.` and the source's).
    Named {
        /// Its name.
        queue: Option<String>,
        /// How to make it; `None`: it is somebody else's and waited for.
        declare: Option<Declare>,
    },
}

/// Which streams a super stream has.
#[derive(Debug, Clone)]
pub(crate) enum Partitions {
    /// These: the first, and the others.
    Named(String, Vec<String>),
    /// Those whose names are this one and a number, from 0 until one is missing.
    Counted(String),
}

/// An exchange and what of it is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Binding {
    /// Its name.
    pub exchange: String,
    /// Its type.
    pub kind: ExchangeType,
    /// At least one.
    pub keys: Vec<String>,
    /// Whether the keys were written. The default suits exchanges that read words, not those that read weights.
    pub chosen: bool,
}

/// How to make a named queue.
#[derive(Debug, Clone)]
pub(crate) struct Declare {
    /// Of which type.
    pub queue_type: QueueType,
    /// Bound to what, if to anything.
    pub binding: Option<Binding>,
    /// How long a stream keeps messages, in whole seconds.
    pub max_age: Duration,
    /// How many bytes a stream keeps.
    pub max_bytes: u64,
}

impl Config {
    /// Whether each replica gets its own part: several readers of one queue share it, except of a stream, and some exchanges give each
    /// message to one of their queues.
    #[must_use]
    pub(crate) fn splits(&self) -> bool {
        match &self.origin {
            Origin::Named { .. } => !self.stream,
            Origin::Exclusive(binding) => binding.kind.splits(),
        }
    }

    /// The same for one routing key, where the exchange can choose by it. A stream is the same one, and is not made. None of a
    /// queue, whose readers share its messages.
    pub(in crate::source) fn narrowed(&self, key: &Subject, source: &SourceName) -> Option<Self> {
        let origin = match &self.origin {
            Origin::Exclusive(binding) if matches!(binding.kind, ExchangeType::Topic | ExchangeType::Direct) => {
                Origin::Exclusive(Binding { keys: vec![key.as_str().to_owned()], chosen: true, ..binding.clone() })
            }
            Origin::Named { .. } if self.stream => Origin::Named { queue: self.queue(source), declare: None },
            _ if self.splits() => return None,
            origin => origin.clone(),
        };
        Some(Self { origin, ..self.clone() })
    }

    /// For how long the stream keeps a message, as far as the settings say.
    pub(in crate::source) fn keeps_for(&self) -> Option<Duration> {
        match &self.origin {
            Origin::Named { declare: Some(declare), .. } if self.stream => Some(declare.max_age),
            _ => None,
        }
    }

    /// The name of the queue, where it has one of its own.
    pub(in crate::source) fn queue(&self, source: &SourceName) -> Option<String> {
        match &self.origin {
            Origin::Exclusive(_) => None,
            Origin::Named { queue, .. } => Some(queue.clone().unwrap_or_else(|| format!("brokercast.{source}"))),
        }
    }

    /// The exchange that feeds the queue and the keys it is bound with, as far as that is known here.
    pub(in crate::source) fn binding(&self) -> Option<&Binding> {
        match &self.origin {
            Origin::Exclusive(binding) => Some(binding),
            Origin::Named { declare, .. } => declare.as_ref().and_then(|declare| declare.binding.as_ref()),
        }
    }
}

impl Config {
    /// Takes the keys of `amqp`.
    pub(super) fn read(amqp: &Section<'_>) -> Option<Self> {
        let broker = Broker::read(amqp);
        let whole = amqp.key("queue_type").choice().optional() == Some(QueueType::SuperStream);
        let origin = if whole { super_stream(amqp) } else { Origin::read(amqp).map(|(origin, stream)| (origin, stream, None)) };
        let prefetch = amqp.key("prefetch").number().within(1, u16::MAX.into()).or(1000);
        let (origin, stream, partitions) = origin?;
        Some(Self { broker: broker?, origin, stream, partitions, prefetch: u16::try_from(prefetch).unwrap_or(u16::MAX) })
    }
}

impl Origin {
    /// What is read, and whether that is a stream.
    fn read(amqp: &Section<'_>) -> Option<(Self, bool)> {
        let (exchange, queue) = (name(amqp, "exchange").optional(), name(amqp, "queue").optional());
        let declare = amqp.key("declare").flag().optional() == Some(true);
        let queue_type = amqp.key("queue_type").choice();
        let given = |name| amqp.has(name);
        // What brokercast makes has defaults; of what is used as it is, nothing more is known.
        let made = declare || !given("queue");
        let queue_type = if given("queue") && made { Some(queue_type.or(QueueType::Classic)) } else { queue_type.optional() };
        let stream = queue_type == Some(QueueType::Stream);
        combinations(amqp, declare, queue_type);
        let binding = Binding::read(amqp, exchange);
        let whole = |age: &Duration| age.as_secs() > 0 && age.subsec_nanos() == 0;
        let max_age = amqp.key("max_age").duration().check(whole, "must be whole seconds, at least 1s");
        let max_bytes = amqp.key("max_bytes").size().at_least(1);
        let (age, bytes) = (Duration::from_secs(24 * 3600), 1 << 30);
        // Queues of other types have no such bounds, so none are shown.
        let (max_age, max_bytes) = if stream && made {
            (max_age.or(age), max_bytes.or(bytes))
        } else {
            (max_age.optional().unwrap_or(age), max_bytes.optional().unwrap_or(bytes))
        };
        if !given("queue") && !stream {
            return Some((Self::Exclusive(binding?), false));
        }
        let max_bytes = max_bytes as u64;
        let declare = made.then(|| Declare { queue_type: queue_type.unwrap_or(QueueType::Classic), binding, max_age, max_bytes });
        Some((Self::Named { queue, declare }, stream))
    }
}

/// Reads what is written of a super stream: `queue` is its name.
fn super_stream(amqp: &Section<'_>) -> Option<(Origin, bool, Option<Partitions>)> {
    let queue = name(amqp, "queue").optional();
    let named = amqp.key("partitions").texts(|item| item.text().check(|name| is_name(name), NAME).required());
    let named = named.check(|names| !names.is_empty(), "must list at least one stream such as invoices-0").optional();
    if !amqp.has("queue") && !amqp.has("partitions") {
        amqp.problem("queue", "must be the super stream's name (or `partitions` lists its streams)");
    }
    for key in ["exchange", "exchange_type", "binding_keys", "declare", "max_age", "max_bytes"] {
        if amqp.has(key) {
            amqp.problem(key, "goes without `queue_type: super_stream`, which reads partitions that are there");
        }
    }
    if let Some(names) = &named
        && names.iter().enumerate().any(|(at, name)| names[..at].contains(name))
    {
        amqp.problem("partitions", "must list each stream once");
        return None;
    }
    let partitions = match (named, queue.clone()) {
        (Some(names), _) => {
            let mut names = names.into_iter();
            Partitions::Named(names.next()?, names.collect())
        }
        (None, Some(base)) if base.len() + 4 <= MAX_NAME => Partitions::Counted(base),
        (None, Some(_)) => {
            amqp.problem("queue", "must be at most 251 bytes, as partitions have longer names");
            return None;
        }
        (None, None) => return None,
    };
    Some((Origin::Named { queue, declare: None }, true, Some(partitions)))
}

/// A name of something at the broker.
fn name<'t>(amqp: &Section<'t>, key: &str) -> Key<'t, String> {
    amqp.key(key).text().check(|name| is_name(name), NAME)
}

const NAME: &str = "must be a name of 1 to 255 bytes without control characters";

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.contains(char::is_control)
}

/// Notes keys that do not go together.
fn combinations(amqp: &Section<'_>, declare: bool, queue_type: Option<QueueType>) {
    let given = |name: &str| amqp.has(name);
    match (given("exchange"), given("queue")) {
        (false, false) => amqp.problem_here("must have an `exchange` or a `queue`"),
        (true, true) if !declare => {
            amqp.problem("queue", "is used as it is, so it goes without `exchange`; `declare: true` makes the queue and binds it");
        }
        _ => {}
    }
    if given("declare") && !given("queue") {
        amqp.problem("declare", "belongs to `queue`; what an `exchange` needs is declared anyway");
    }
    if queue_type.is_some_and(|kind| kind != QueueType::Stream) && !given("queue") {
        amqp.problem("queue_type", "must be `stream`, or be left out: an exchange's queue is this process's own");
    }
    for key in ["exchange_type", "binding_keys"] {
        if given(key) && !given("exchange") {
            amqp.problem(key, "belongs to `exchange`");
        }
    }
    if given("partitions") {
        amqp.problem("partitions", "belongs to `queue_type: super_stream`");
    }
    for key in ["max_age", "max_bytes"] {
        if given(key) && !(queue_type == Some(QueueType::Stream) && (declare || !given("queue"))) {
            amqp.problem(key, "belongs to a stream that brokercast declares (`queue_type: stream`)");
        }
    }
}

impl Binding {
    fn read(amqp: &Section<'_>, exchange: Option<String>) -> Option<Self> {
        let has = |key: &str, wildcard: &str| key.split('.').any(|word| word == wildcard);
        let kind = name(amqp, "exchange_type");
        let kind = if exchange.is_some() { Some(kind.or("topic".to_owned())) } else { kind.optional() };
        let kind = kind.map(ExchangeType::from);
        let (topic, direct) = (kind == Some(ExchangeType::Topic), kind == Some(ExchangeType::Direct));
        let key = |item: Slot<'_>| {
            let key = item.text().check(|key| key.len() <= MAX_NAME, "must be at most 255 bytes");
            let key = key.check(|key| !(topic && has(key, ">")), "must not have `>`, which is NATS's: AMQP's `#` stands for any words");
            key.check(|key| !(direct && (has(key, "#") || has(key, "*"))), "must have no wildcard: a direct exchange has none").required()
        };
        let keys = amqp.key("binding_keys").texts(key);
        let keys = keys.check(|keys| !keys.is_empty(), "must list at least one key such as `orders.#`");
        let (exchange, kind, chosen) = (exchange?, kind?, amqp.has("binding_keys"));
        if direct && !chosen {
            amqp.problem("binding_keys", "must list keys: a direct exchange has no wildcard for all of them");
        }
        Some(Self { exchange, kind, keys: keys.or(vec!["#".to_owned()]), chosen })
    }
}
