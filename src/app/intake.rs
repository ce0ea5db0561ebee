//! Where one source hands in: routing, then the hub. Knows no broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use crate::event::{Gap, SourceKey, Timestamp};
use crate::hub::{Hub, Input};
use crate::route::Router;
use crate::source::{self, Item};

/// Routes each message of a source and publishes what goes on.
pub(crate) struct Intake {
    /// Locked for each batch, so that no batch is between two ways.
    way: Mutex<Way>,
    hub: Arc<Hub>,
    counts: Arc<Counts>,
}

/// Where messages go.
struct Way {
    source: SourceKey,
    router: Arc<Router>,
    /// The batch that is handed in. Kept, as memory that was used a moment ago is the fastest.
    inputs: Vec<Input>,
}

/// What became of a source's messages.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Events that went to the hub.
    pub(crate) events: AtomicU64,
    /// Messages that a route dropped.
    pub(crate) dropped: AtomicU64,
}

impl Intake {
    pub(crate) fn new(source: SourceKey, router: Arc<Router>, hub: Arc<Hub>, counts: Arc<Counts>) -> Self {
        Self { way: Mutex::new(Way { source, router, inputs: Vec::new() }), hub, counts }
    }

    /// What routes its messages at the moment.
    #[cfg(test)]
    pub(crate) fn router(&self) -> Arc<Router> {
        self.way.lock().router.clone()
    }

    /// Messages go by another router from now on, to the source that `replace` puts in the place of the one before. Between
    /// two batches, and only if `is_ready` says so then. Returns whether it did.
    pub(crate) fn reroute(&self, router: &Arc<Router>, is_ready: impl FnOnce() -> bool, replace: impl FnOnce() -> SourceKey) -> bool {
        let mut way = self.way.lock();
        let ready = is_ready();
        if ready {
            (way.source, way.router) = (replace(), router.clone());
        }
        ready
    }

    /// Waits while the writers' loops are behind: sockets never hold publishing up, but what nobody has written yet must
    /// be kept, and that is bounded.
    async fn room(&self) {
        while self.hub.crowded() {
            let room = self.hub.room().notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if !self.hub.crowded() {
                return;
            }
            room.await;
        }
    }
}

impl source::Intake for Intake {
    fn take<'a>(&'a self, items: &'a mut Vec<Item>) -> BoxFuture<'a, String> {
        Box::pin(async move {
            // What waits for room has come before.
            let received = Timestamp::now();
            self.room().await;
            let mut way = self.way.lock();
            let Way { source, router, inputs } = &mut *way;
            // Of a batch that panicked.
            inputs.clear();
            let (mut events, mut dropped) = (0, 0);
            for item in items.drain(..) {
                inputs.push(match item {
                    Item::Message(message) => {
                        let position = message.position;
                        match router.route(message) {
                            Some(event) => {
                                events += 1;
                                Input::Event(event)
                            }
                            None => {
                                dropped += 1;
                                let Some(position) = position else { continue };
                                Input::Skip(position)
                            }
                        }
                    }
                    Item::Oversized(message) => {
                        let position = message.position;
                        match (router.route(message), position) {
                            (Some(event), _) => Input::Oversized(event.subject, Gap::oversized(position)),
                            (None, Some(position)) => Input::Skip(position),
                            (None, None) => continue,
                        }
                    }
                    Item::Gap(gap) => Input::Gap(gap),
                    Item::Tail(position) => Input::Tail(position),
                });
            }
            let id = self.hub.publish(*source, inputs, received);
            self.counts.events.fetch_add(events, Ordering::Relaxed);
            self.counts.dropped.fetch_add(dropped, Ordering::Relaxed);
            id.as_ref().to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cursor::{Cursor, Point, Position, Tag};
    use crate::event::{GapReason, Message};
    use crate::hub::{Concerns, Limits, SourceSpec};
    use crate::source::Intake as _;
    use crate::subject::Pattern;
    use crate::{route, settings};

    #[tokio::test]
    async fn messages_are_routed_and_what_a_route_drops_still_moves_the_cursor() {
        let name: crate::event::SourceName = "log".parse().unwrap();
        let rules = "routes: [{ match: { subject: secret.> }, drop: true }, { match: { subject: a.* }, subject: 'b.{1}' }]";
        let rules = settings::tests::read(rules, |root| Some(route::settings::read(root.key("routes"), &[]))).unwrap();
        let router = Arc::new(Router::new(&rules, &name, &[Pattern::all()], Arc::default()));
        let spec = SourceSpec { name, tag: Some(Tag::of("log")), part: false, concerns: Concerns(Arc::new(|_| true)) };
        let hub = Hub::new(Limits { bytes: 1 << 20, age: std::time::Duration::from_secs(60) }, 1);
        let source = hub.add(spec, Timestamp::now(), |_| {});
        let counts = Arc::<Counts>::default();
        let intake = Intake::new(source, router, hub.clone(), counts.clone());
        let message = |subject: &str, seq| {
            let position = Some(Position::unverified(seq));
            Item::Message(Message::new(subject.parse().unwrap(), Bytes::new(), Timestamp::now(), position))
        };
        let gap = Gap { reason: GapReason::Oversized, from: None, to: None, position: Some(Position::unverified(7)) };
        let mut items =
            vec![Item::Tail(Some(Position::unverified(5))), message("a.x", 6), Item::Gap(gap), message("c", 8), message("secret.x", 9)];
        let id = intake.take(&mut items).await;
        assert!(items.is_empty());
        assert_eq!(Cursor::from_id(&id).unwrap().durable, [(Tag::of("log"), Point::At(Position::unverified(9)))]);
        assert_eq!((counts.events.load(Ordering::Relaxed), counts.dropped.load(Ordering::Relaxed)), (2, 1));
        let state = hub.state();
        let subjects: Vec<_> = state.source(source).unwrap().window().after(0).map(|e| e.encoded.subject().map(str::to_owned)).collect();
        assert_eq!(subjects, [Some("b.x".to_owned()), None, Some("c".to_owned())]);
    }
}
