//! Where routing and the hub stand behind the sources' contract.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::event::Timestamp;
use crate::hub::{Hub, Input};
use crate::metrics::SourceCounts;
use crate::route::Router;
use crate::source::{self, Item};

/// Routes each message and publishes what goes on.
pub(super) struct Intake {
    pub(super) router: Arc<Router>,
    pub(super) hub: Arc<Hub>,
    /// By the source's number.
    pub(super) counts: Vec<SourceCounts>,
}

impl source::Intake for Intake {
    fn take<'a>(&'a self, source: usize, items: &'a mut Vec<Item>) -> BoxFuture<'a, String> {
        Box::pin(async move {
            let (mut events, mut dropped) = (0, 0);
            let mut inputs = Vec::with_capacity(items.len());
            for item in items.drain(..) {
                inputs.push(match item {
                    Item::Message(message) => {
                        let position = message.position;
                        match self.router.route(source, message) {
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
                    Item::Gap(gap) => Input::Gap(gap),
                    Item::Tail(position) => Input::Tail(position),
                });
            }
            let id = self.hub.publish(source, &mut inputs, Timestamp::now());
            self.counts[source].events.inc_by(events);
            self.counts[source].dropped.inc_by(dropped);
            id.as_ref().to_owned()
        })
    }
}
