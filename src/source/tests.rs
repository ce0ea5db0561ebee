//! What the adapters' tests share, and the conformance of those adapters that need no broker.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::LocalBoxFuture;
use tokio::time::timeout;

use super::*;
use crate::event::{GapReason, Headers};

/// What the conformance suite sees of the crate.
mod contract {
    pub(super) use crate::cursor::Position;
    pub(super) use crate::event::{Gap, GapReason, Message, Timestamp};
    pub(super) use crate::source::supervisor::Supervisor;
    pub(super) use crate::source::{Adapter, Connection, ErrorKind, Handle, Intake, Item, Start, State};
}

#[allow(dead_code, reason = "each test program uses its own part")]
pub(crate) mod conformance;
mod planted;

pub(crate) use conformance::{LogRig, Recorder, Rig, Running, conformance, durable_conformance, eventually, retention_conformance};

struct InboxRig(Arc<http::Http>);

impl Rig for InboxRig {
    fn adapter(&self) -> Arc<dyn Adapter> {
        self.0.clone()
    }
    fn publish<'a>(&'a mut self, body: &'a str) -> LocalBoxFuture<'a, ()> {
        let handle = self.0.inbox().expect("an inbox");
        Box::pin(async move {
            let subject = "demo.a".parse().expect("a subject");
            handle.publish(subject, Bytes::from(body.to_owned()), Headers::default()).await.expect("published");
        })
    }
}

fn inbox() -> Arc<http::Http> {
    Arc::new(http::Http::new(http::Config { subjects: vec!["demo.>".parse().expect("a pattern")] }))
}

#[tokio::test]
async fn the_inbox_conforms() {
    conformance(&mut InboxRig(inbox())).await;
}

#[tokio::test(start_paused = true)]
async fn the_inbox_answers_a_publisher_once_its_message_is_in_the_window() {
    let mut rig = InboxRig(inbox());
    let running = Running::start(rig.adapter());
    running.recorder.stalled.store(true, Ordering::SeqCst);
    let mut publishing = pin!(rig.publish("a"));
    timeout(Duration::from_secs(1), &mut publishing).await.expect_err("it is not in the window yet");
    running.recorder.stalled.store(false, Ordering::SeqCst);
    publishing.await;
    assert_eq!(running.bodies(), ["a"]);
    running.stop().await;
}

struct TickerRig;

impl Rig for TickerRig {
    fn adapter(&self) -> Arc<dyn Adapter> {
        let config = ticker::Config { every: Duration::from_millis(200), subject: "clock.tick".parse().expect("a subject") };
        Arc::new(ticker::Ticker::new(config))
    }
    fn publish<'a>(&'a mut self, _: &'a str) -> LocalBoxFuture<'a, ()> {
        // It ticks by itself.
        Box::pin(async {})
    }
    fn read(&self, message: &Message) -> String {
        let tick: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
        format!("first {}", tick["count"].as_u64().expect("a number") - 1)
    }
}

#[tokio::test(start_paused = true)]
async fn the_ticker_conforms() {
    conformance(&mut TickerRig).await;
}

/// An adapter that is one file and one line in the list.
struct PlantedRig(Arc<dyn Adapter>);

impl Rig for PlantedRig {
    fn adapter(&self) -> Arc<dyn Adapter> {
        self.0.clone()
    }
    fn publish<'a>(&'a mut self, _: &'a str) -> LocalBoxFuture<'a, ()> {
        // It counts by itself.
        Box::pin(async {})
    }
}

#[tokio::test(start_paused = true)]
async fn an_adapter_of_one_file_and_one_line_is_read_from_the_settings_and_conforms() {
    let adapters = [ticker::KIND, planted::KIND];
    let read = |text: &str| crate::settings::tests::read(text, |root| Some(settings::read_of(&adapters, &root.key("sources").section())));
    for (wrong, key) in [
        ("{ planted: { subject: a, evry: 1s } }", "sources.new.planted.evry"),
        ("{ planted: { subject: a, every: never } }", "sources.new.planted.every"),
        ("{ planted: {} }", "sources.new.planted.subject"),
        ("{ plante: { subject: a } }", "must hold exactly one of ticker, planted"),
    ] {
        let problems = read(&format!("sources: {{ new: {wrong} }}")).unwrap_err().join(" ");
        assert!(problems.contains(key), "{problems}");
    }
    let mut sources = read("sources: { new: { planted: { subject: counted }, required: false, max_payload: 1KiB } }").unwrap();
    let source = sources.pop().unwrap();
    assert_eq!((source.name.as_str(), source.adapter.kind(), source.required, source.max_payload), ("new", "planted", false, 1024));
    conformance(&mut PlantedRig(source.adapter)).await;
}

#[test]
fn what_is_larger_than_allowed_becomes_a_gap_in_its_place() {
    let message = |seq: Option<u64>, bytes: usize| {
        let position = seq.map(Position::unverified);
        let subject = "a".parse().expect("a subject");
        Item::Message(Message::new(subject, vec![b'x'; bytes].into(), Timestamp::now(), position))
    };
    let mut items = [message(Some(4), 10), message(Some(5), 11), message(None, 11), message(Some(7), 10)];
    assert_eq!(fit(&mut items, 10), Fitted { items: 4, oversized: 2 });
    let gap = |from, to, position| Gap { reason: GapReason::Oversized, from, to, position };
    let of = |item: &Item| if let Item::Oversized(message) = item { Gap::oversized(message.position) } else { panic!("no gap") };
    assert_eq!(of(&items[1]), gap(Some(4), Some(6), Some(Position::unverified(5))));
    assert_eq!(of(&items[2]), gap(None, None, None));
    assert!(matches!((&items[0], &items[3]), (Item::Message(_), Item::Message(_))));
}
