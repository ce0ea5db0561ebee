//! Tries what [`super::topology`] does, and makes nothing. All that is wrong is found at once.
//!
//! The broker checks rights, names and types first, and what a declaration says after that. So a declaration with an argument
//! that it must refuse shows whether it could make the thing, and one that refuses this argument only would have.

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError::{ACCESSREFUSED, NOTFOUND, PRECONDITIONFAILED};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::Amqp;
use super::config::{Binding, Declare, ExchangeType, Origin};
use super::error::{failed, is, is_lack_of_replica, said};
use super::link::{Link, short};
use super::queue::{OFFSET, consume};
use super::topology::{
    arguments, bind_keys, declare_exchange, declare_queue, exchange, find_exchange, find_queue, not_bound, not_made, refuse_stream,
};
use crate::source::{ErrorKind, SourceError};
use crate::support::causes::chain;

/// A name like those that the broker gives exclusive queues.
const GENERATED: &str = "amq.gen-brokercast-check";

/// Each of a source's questions to the broker, and what was wrong.
struct Check<'a> {
    source: &'a Amqp,
    link: Link,
    faults: Vec<SourceError>,
}

impl Amqp {
    /// All that is wrong with what a reader of this source needs.
    pub(in crate::source) async fn faults(&self) -> Vec<SourceError> {
        let link = match Link::open(&self.config.broker, &self.name).await {
            Ok(link) => link,
            Err(error) => return vec![error],
        };
        let mut check = Check { source: self, link, faults: Vec::new() };
        if let Err(error) = check.all().await {
            check.found(error);
        }
        let Check { link, faults, .. } = check;
        link.close().await;
        faults
    }
}

impl Check<'_> {
    /// Returns an error where no more can be asked.
    async fn all(&mut self) -> Result<(), SourceError> {
        let config = &self.source.config;
        if let Some(binding) = config.binding() {
            let result = self.exchange(binding).await;
            self.note(result).await?;
        }
        match &config.origin {
            Origin::Exclusive(binding) => {
                let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
                let result = self.could_make_queue("", options, "exchange", FieldTable::default()).await;
                self.note(result).await?;
                self.could_read(GENERATED, Some(binding)).await
            }
            Origin::Named { declare, .. } => {
                let name = config.queue(&self.source.name).unwrap_or_default();
                self.named(&name, declare.as_ref()).await
            }
        }
    }

    /// Keeps what is wrong, once: several questions may fail for the same reason.
    fn found(&mut self, error: SourceError) {
        let said = chain(&error);
        if !self.faults.iter().any(|known| chain(known) == said) {
            self.faults.push(error);
        }
    }

    /// Keeps what is wrong, and connects again where the broker ended the connection over it.
    async fn note(&mut self, result: Result<(), SourceError>) -> Result<(), SourceError> {
        if let Err(error) = result {
            self.found(error);
        }
        if !self.link.works() {
            self.link = Link::open(&self.source.config.broker, &self.source.name).await?;
        }
        Ok(())
    }

    async fn exchange(&self, binding: &Binding) -> Result<(), SourceError> {
        let name = &binding.exchange;
        if binding.kind == ExchangeType::Other("x-consistent-hash".to_owned())
            && let Some(key) = binding.keys.iter().find(|key| binding.chosen && key.parse::<u32>().is_err())
        {
            let what = format!("`{key}` is no weight: an `x-consistent-hash` exchange takes numbers (`binding_keys`)");
            return Err(SourceError::configuration(what));
        }
        if find_exchange(&self.link, binding).await? {
            return exchange(&self.link, binding, self.source).await.map(drop);
        }
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        match declare_exchange(&self.link, binding, options, impossible("alternate-exchange")).await? {
            Err(e) if is(&e, PRECONDITIONFAILED) && said(&e).contains("invalid type") => Ok(()),
            Err(e) if is(&e, ACCESSREFUSED) => {
                let what = format!("exchange `{name}` is not there, and this user may not make it (`exchange`)");
                Err(failed(what, e))
            }
            Err(e) => Err(not_made(binding, e)),
            // Not seen of any broker.
            Ok(()) => Err(SourceError::protocol(format!("the broker made exchange `{name}`, though it was asked for what cannot be"))),
        }
    }

    async fn named(&mut self, name: &str, declare: Option<&Declare>) -> Result<(), SourceError> {
        let found = match find_queue(&self.link, name, self.source, declare.is_some()).await {
            Ok(found) => found,
            Err(error) => return self.note(Err(error)).await,
        };
        if found {
            let mut result = self.readable(&short(name)).await;
            // A reader goes on to the next node too.
            for _ in 1..self.source.config.broker.count() {
                if !result.as_ref().is_err_and(is_lack_of_replica) {
                    break;
                }
                self.link = Link::open(&self.source.config.broker, &self.source.name).await?;
                result = self.readable(&short(name)).await;
            }
            return self.note(result).await;
        }
        let Some(declare) = declare else { return Ok(()) };
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let result = self.could_make_queue(name, options, "queue", arguments(declare).into()).await;
        self.note(result).await?;
        self.could_read(name, declare.binding.as_ref()).await
    }

    /// Whether a queue that is there can be read, as what it is said to be.
    async fn readable(&self, queue: &ShortString) -> Result<(), SourceError> {
        if !self.source.config.stream {
            return refuse_stream(&self.link, queue).await;
        }
        let channel = self.link.channel().await?;
        let mut table = FieldTable::default();
        table.insert(ShortString::from(OFFSET), AMQPValue::LongString("next".into()));
        consume(&self.link, &channel, queue, 1, table).await.map(drop)
    }

    /// Whether the queue could be made, which is not there.
    async fn could_make_queue(
        &self,
        name: &str,
        options: QueueDeclareOptions,
        key: &str,
        mut table: FieldTable,
    ) -> Result<(), SourceError> {
        for (argument, value) in impossible("x-dead-letter-exchange").inner() {
            table.insert(argument.clone(), value.clone());
        }
        let what = if name.is_empty() { "a queue of this process".to_owned() } else { format!("queue `{name}`") };
        match declare_queue(&self.link, name, options, table).await? {
            Err(e) if is(&e, PRECONDITIONFAILED) && said(&e).contains("invalid type") => Ok(()),
            Err(e) if is(&e, ACCESSREFUSED) => Err(failed(format!("{what} is not there, and this user may not make it (`{key}`)"), e)),
            Err(e) => Err(failed(format!("cannot make {what} (`{key}`)"), e)),
            Ok(_) => Err(SourceError::protocol(format!("the broker made {what}, though it was asked for what cannot be"))),
        }
    }

    /// Whether this user might bind and read a queue of this name, which is not there: rights are looked at before that.
    async fn could_read(&mut self, name: &str, binding: Option<&Binding>) -> Result<(), SourceError> {
        let queue = short(name);
        if let Some(binding) = binding {
            // One by one: topic permissions may allow some keys only, and the queue is not found for the first one that is allowed.
            for key in &binding.keys {
                let one = Binding { keys: vec![key.clone()], ..binding.clone() };
                let result = match bind_keys(&self.link, &queue, &one).await? {
                    Err(e) if !is(&e, NOTFOUND) => Err(not_bound(binding, e)),
                    _ => Ok(()),
                };
                self.note(result).await?;
            }
        }
        let channel = self.link.channel().await?;
        let read = consume(&self.link, &channel, &queue, 1, FieldTable::default()).await;
        self.note(read.map(drop).or_else(|e| if e.kind() == ErrorKind::Missing { Ok(()) } else { Err(e) })).await
    }
}

/// An argument that must be a name, and is none.
fn impossible(argument: &str) -> FieldTable {
    let mut table = FieldTable::default();
    table.insert(short(argument), AMQPValue::Boolean(true));
    table
}
