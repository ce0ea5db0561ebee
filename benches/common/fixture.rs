//! What the measurements of the sync core are made of.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use brokercast::internals::{
    Channel, Concerns, Envelope, Event, Filter, Form, Hub, Limits, Listener, Message, Pattern, Seat, SourceKey, SourceSpec, Timestamp,
};
use bytes::Bytes;

/// Bytes of each payload.
pub(crate) const PAYLOAD: usize = 200;
pub(crate) const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

pub(crate) fn json() -> Bytes {
    let head = r#"{"sensor":"boiler","value":21.5,"text":""#;
    format!("{head}{}\"}}", "x".repeat(PAYLOAD - head.len() - 2)).into()
}

pub(crate) fn event(subject: &str, payload: Bytes, envelope: Envelope) -> Event {
    Event { envelope, ..Event::of(Message::new(subject.parse().expect("a subject"), payload, NOW, None)) }
}

pub(crate) fn pattern(text: &str) -> Pattern {
    text.parse().expect("a pattern")
}

/// A writer's loop that takes everything at once: the notifying is measured, the writing is not.
struct Swift {
    listener: Arc<Listener>,
    /// By their keys, of which none is left out.
    channels: Vec<Arc<Channel>>,
    ready: Mutex<Vec<u32>>,
}

impl Swift {
    fn take_all(&self) {
        let mut ready = self.ready.lock().expect("its lock");
        while self.listener.has_news() {
            assert!(!self.listener.turn(&mut ready), "nobody waits for room");
            for key in &*ready {
                self.channels[*key as usize].looked(&self.listener);
            }
        }
        assert!(!self.listener.turn(&mut ready), "nobody waits for room");
    }
}

/// A hub whose subscriber number n wants the patterns `wants(n)`; small windows, so that they are full soon.
pub(crate) fn hub(subscribers: usize, wants: impl Fn(usize) -> Vec<String>) -> (Arc<Hub>, SourceKey, Vec<Seat>) {
    let source =
        SourceSpec { name: "plant".parse().expect("a source's name"), tag: None, part: false, concerns: Concerns(Arc::new(|_| true)) };
    let hub = Hub::new(Limits { bytes: 1 << 20, age: Duration::from_secs(600) }, 7);
    let source = hub.add(source, NOW, |_| {});
    let swift = Arc::new(OnceLock::<Swift>::new());
    let woken = swift.clone();
    let listener = hub.listen(move || woken.wait().take_all()).expect("a listener");
    let mut seats = Vec::with_capacity(subscribers);
    for n in 0..subscribers {
        let patterns = wants(n).iter().map(|text| pattern(text)).collect();
        let filter = Arc::new(Filter::new(patterns, Form::Routed));
        let (seat, _) = hub.join(&mut hub.state(), &filter);
        seat.channel().set_member(&listener, true);
        seats.push(seat);
    }
    let mut channels: Vec<_> = seats.iter().map(|seat| seat.channel().clone()).collect();
    channels.dedup_by_key(|channel| channel.key());
    swift.get_or_init(|| Swift { listener, channels, ready: Mutex::default() });
    (hub, source, seats)
}
