//! `auth.revocations`: revocations as messages of a broker, so that one call reaches all replicas.
//!
//! Reads them beside the source that they come through, on a connection of its own that asks for nothing else: a log is read from
//! its beginning, however short the window is. Routing hides them from clients ([`hidden`]).

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout};

use super::REVOKED_WITHIN;
use super::sources::{Running, Tokio, run};
use crate::auth::{Control, Criteria, Order, Revocation, RevocationError, Revocations};
use crate::event::{Message, Timestamp};
use crate::frame::Closing;
use crate::http::admin::Wire;
use crate::route::Rule;
use crate::settings::Written;
use crate::source::settings::Source;
use crate::source::supervisor::Supervisor;
use crate::source::{Adapter, Handle, Intake, Item, Start};
use crate::stream::{Selection, Streams};
use crate::subject::Subject;
use crate::support::causes::chain;
use crate::support::seldom::Seldom;

/// The key path.
pub(super) const KEY: &str = "auth.revocations";

/// How long a broker may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The log tells of nonsense at most so often.
const NONSENSE: Duration = Duration::from_secs(10);

/// The rule that hides these messages from clients.
pub(super) fn hidden(control: &Control) -> Option<Rule> {
    Some(Rule::hide(control.source.parse().ok()?, control.subject.as_str().parse().ok()?, KEY))
}

/// Ends the streams that a revocation means. Returns how many.
pub(super) fn end(streams: &Streams, criteria: &Criteria) -> usize {
    streams.end(Selection::Revoked(criteria), Closing::Revoked, Timestamp::now(), REVOKED_WITHIN)
}

/// Follows `auth.revocations`.
pub(super) struct Follower {
    revocations: Arc<Revocations>,
    streams: Arc<Streams>,
    wire: Arc<ArcSwapOption<Wire>>,
    /// What is read at the moment, and by which settings.
    reading: Option<(Control, Written, Running)>,
}

impl Follower {
    /// Follows nothing yet.
    pub(super) fn new(revocations: Arc<Revocations>, streams: Arc<Streams>) -> Self {
        Self { revocations, streams, wire: Arc::default(), reading: None }
    }

    /// What reaches the other replicas, at the moment.
    pub(super) fn wire(&self) -> &Arc<ArcSwapOption<Wire>> {
        &self.wire
    }

    /// Begins, where the process does.
    pub(super) fn begin(&mut self, control: Option<&Control>, sources: &[Source]) {
        if let Some((control, source)) = find(control, sources) {
            self.wire.store(Some(Arc::new(wire(&source.adapter, &control.subject))));
            self.read(control, source);
        }
    }

    /// Follows other settings, or goes on where they are the same. What was revoked so far stays so.
    pub(super) async fn follow(&mut self, control: Option<&Control>, sources: &[Source]) {
        let wanted = find(control, sources);
        let same = |(control, written, _): &(Control, Written, Running)| {
            wanted.is_some_and(|(wanted, source)| wanted == control && source.written == *written)
        };
        if self.reading.as_ref().is_some_and(same) {
            return;
        }
        // First: what is revoked while the other reading ends goes where it is read from now on.
        self.wire.store(wanted.map(|(control, source)| Arc::new(wire(&source.adapter, &control.subject))));
        self.stop().await;
        match wanted {
            Some((control, source)) => self.read(control, source),
            // The log that was read before is not waited for any more.
            None => self.revocations.set_known(true),
        }
    }

    /// Reads no more. What is revoked is still published: the admin listener answers until the process ends.
    pub(super) async fn stop(&mut self) {
        if let Some((_, _, running)) = &mut self.reading {
            running.stop().await;
        }
        self.reading = None;
    }

    fn read(&mut self, control: &Control, source: &Source) {
        let Some(adapter) = source.adapter.narrowed(&control.subject) else { return };
        // Until a log has been read, also one that a reload has changed, it is not known what was revoked.
        self.revocations.set_known(!source.adapter.durable());
        let intake = Taking {
            subject: control.subject.clone(),
            revocations: self.revocations.clone(),
            streams: self.streams.clone(),
            tell: Seldom::every(NONSENSE),
        };
        let mut handle = Handle::new(source.name.clone(), &*adapter, true);
        // So the log tells it from the source's own reader.
        handle.kind = "revocations";
        let handle = Arc::new(handle);
        let supervisor =
            Supervisor { adapter, intake: Arc::new(intake), handle, warm_up: Start::Earliest, max_payload: source.max_payload };
        self.reading = Some((control.clone(), source.written.clone(), run(&Tokio, supervisor)));
    }
}

fn find<'a>(control: Option<&'a Control>, sources: &'a [Source]) -> Option<(&'a Control, &'a Source)> {
    let control = control?;
    Some((control, sources.iter().find(|source| source.name.as_str() == control.source)?))
}

/// The source's own adapter: what it publishes reaches all who read it.
fn wire(adapter: &Arc<dyn Adapter>, subject: &Subject) -> Wire {
    let (publisher, subject) = (adapter.clone(), subject.clone());
    let publish = move |payload: Bytes| -> BoxFuture<'static, Result<(), String>> {
        let (adapter, subject) = (publisher.clone(), subject.clone());
        Box::pin(async move {
            let done = timeout(PATIENCE, adapter.publish(subject.as_str(), payload)).await;
            done.map_err(|_| "it did not answer in time".to_owned())?.map_err(|error| chain(&error))
        })
    };
    let log = adapter.clone();
    let keeps_for = move || -> BoxFuture<'static, Option<Duration>> {
        let log = log.clone();
        // Where the broker does not answer, publishing will fail and say so.
        Box::pin(async move { timeout(PATIENCE, log.keeps_for()).await.ok()?.ok()? })
    };
    Wire { durable: adapter.durable(), publish: Box::new(publish), keeps_for: Box::new(keeps_for) }
}

/// Where the messages are handed in.
struct Taking {
    subject: Subject,
    revocations: Arc<Revocations>,
    streams: Arc<Streams>,
    /// When the log tells of nonsense.
    tell: Seldom,
}

impl Intake for Taking {
    fn take<'a>(&'a self, items: &'a mut Vec<Item>) -> BoxFuture<'a, String> {
        for item in items.drain(..) {
            match item {
                Item::Message(message) if message.subject == self.subject => self.message(&message),
                Item::Oversized(message) if message.subject == self.subject => self.nonsense("it is larger than `max_payload`"),
                Item::Tail(_) => self.caught_up(),
                Item::Message(_) | Item::Oversized(_) | Item::Gap(_) => {}
            }
        }
        Box::pin(async { String::new() })
    }
}

impl Taking {
    fn message(&self, message: &Message) {
        let now = Timestamp::now();
        let taken = Revocation::read_message(&message.payload, message.time, now).and_then(|order| self.obey(order, now));
        match taken {
            Ok(()) => self.revocations.count_message(true),
            Err(error @ RevocationError::Full) => {
                self.revocations.count_message(false);
                if self.tell.may(Instant::now()) {
                    tracing::error!(%error, "a revocation of auth.revocations is left out: the tokens that it means stay good");
                }
            }
            Err(error) => self.nonsense(&format!("it {error}")),
        }
    }

    fn obey(&self, order: Order, now: Timestamp) -> Result<(), RevocationError> {
        match order {
            Order::Revoke(revocation) => {
                let Revocation { id, criteria, .. } = revocation.clone();
                // First: what is opened from here on is refused, what was opened before is found. While a log is read from its
                // beginning, what was revoked may have been taken back further on.
                if self.revocations.add(revocation, now)? && self.revocations.are_known() {
                    let ended = end(&self.streams, &criteria);
                    tracing::info!(id, ended, "tokens revoked by a message");
                }
            }
            Order::Delete(id) => {
                if self.revocations.remove(&id) {
                    tracing::info!(id, "revocation taken back by a message");
                }
            }
            // Nothing to tell: whoever read it in time has forgotten it by now.
            Order::Over(id) => {
                self.revocations.remove(&id);
            }
        }
        Ok(())
    }

    fn nonsense(&self, why: &str) {
        self.revocations.count_message(false);
        if self.tell.may(Instant::now()) {
            tracing::warn!(why, "a message of auth.revocations is passed over");
        }
    }

    fn caught_up(&self) {
        if self.revocations.are_known() {
            return;
        }
        // Nothing is opened until all are known.
        let now = Timestamp::now();
        let ended = self.streams.end(Selection::RevokedBy(&self.revocations, now), Closing::Revoked, now, REVOKED_WITHIN);
        tracing::info!(revocations = self.revocations.count(), ended, "all revocations are loaded");
        self.revocations.set_known(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Owner;
    use crate::stream::{Request, Wanted};

    #[tokio::test]
    async fn nonsense_is_counted_and_all_else_is_obeyed() {
        let revocations = Arc::<Revocations>::default();
        let subject: Subject = "control.revoked".parse().unwrap();
        let streams = crate::stream::tests::demo(1 << 20);
        let taking = Taking { subject: subject.clone(), revocations: revocations.clone(), streams, tell: Seldom::every(NONSENSE) };
        revocations.set_known(false);
        let item = |subject: &str, payload: &'static str| {
            Item::Message(Message::new(subject.parse().unwrap(), Bytes::from_static(payload.as_bytes()), Timestamp::now(), None))
        };
        let mut items = vec![
            item("control.revoked", r#"{"id":"one","identity":"ada","until":"1h"}"#),
            item("control.other", r#"{"id":"two","identity":"ada","until":"1h"}"#),
            item("control.revoked", "nonsense"),
            item("control.revoked", r#"{"id":"three","identity":"eve","until":"2001-01-01T00:00:00Z"}"#),
            item("control.revoked", r#"{"id":"four","token_id":"4","until":"1h"}"#),
        ];
        taking.take(&mut items).await;
        assert!(items.is_empty() && !revocations.are_known());
        let ids = |revocations: &Revocations| revocations.list(Timestamp::now()).iter().map(|one| one.id.to_string()).collect::<Vec<_>>();
        assert_eq!((ids(&revocations), revocations.messages()), (vec!["one".to_owned(), "four".to_owned()], [3, 1]));
        taking.take(&mut vec![item("control.revoked", r#"{"deleted":"one"}"#), Item::Tail(None)]).await;
        assert_eq!((ids(&revocations), revocations.are_known()), (vec!["four".to_owned()], true));
    }

    #[tokio::test]
    async fn a_log_that_is_read_again_ends_no_stream_by_what_was_taken_back() {
        let revocations = Arc::<Revocations>::default();
        let subject: Subject = "control.revoked".parse().unwrap();
        let streams = crate::stream::tests::demo(1 << 20);
        let open = |identity: &str| {
            let owner = Owner { identity: Some(identity.into()), ..Owner::default() };
            let request = Request { owner: Some(Arc::new(owner)), ..crate::stream::tests::request("a") };
            streams.open(request, Timestamp::now())
        };
        let (_ada, _eve, _bob) = (open("ada"), open("eve"), open("bob"));
        let ending = || {
            let listed = streams.list(&Wanted::default(), None, 10).0.into_iter().filter(|stream| stream.end.is_some());
            listed.filter_map(|stream| Some(stream.owner?.identity.clone()?.to_string())).collect::<Vec<_>>()
        };
        let taking =
            Taking { subject: subject.clone(), revocations: revocations.clone(), streams: streams.clone(), tell: Seldom::every(NONSENSE) };
        let item = |payload: &'static str| {
            Item::Message(Message::new(subject.clone(), Bytes::from_static(payload.as_bytes()), Timestamp::now(), None))
        };
        revocations.set_known(false);
        let log =
            [r#"{"id":"one","identity":"ada","until":"1h"}"#, r#"{"id":"two","identity":"eve","until":"1h"}"#, r#"{"deleted":"one"}"#];
        taking.take(&mut log.map(item).into()).await;
        assert_eq!(ending(), [""; 0]);
        taking.take(&mut vec![Item::Tail(None)]).await;
        assert_eq!(ending(), ["eve"]);
        taking.take(&mut vec![item(r#"{"id":"three","identity":"bob","until":"1h"}"#)]).await;
        assert_eq!(ending(), ["eve", "bob"]);
    }
}
