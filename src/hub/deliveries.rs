//! What was delivered, and how long that took: counted by whoever writes to sockets, read for the metrics.
//!
//! A live event is measured once for each writer's round, however many sockets it was written to: the publisher leaves a
//! [`Stamp`] for each reader whose members want the event, and the reader takes its stamps when it has written them. Knows
//! neither sockets nor a metrics library.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::event::Timestamp;
use crate::support::words::words;

words! {
    /// The version of HTTP that a stream came by.
    pub enum Transport {
        /// HTTP/1.0.
        Http10 = "http/1.0",
        /// HTTP/1.1.
        Http11 = "http/1.1",
        /// HTTP/2.
        Http2 = "http/2",
    }
}

/// Stamps of one reader beyond which no more are kept. The channels' logs, which are bounded, hold about as many events.
const STAMPS: usize = 1 << 16;
/// Upper bounds of buckets, in microseconds.
const WITHIN: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
    60_000_000,
];
const LASTING: [u64; 9] =
    [1_000_000, 10_000_000, 60_000_000, 300_000_000, 1_800_000_000, 3_600_000_000, 21_600_000_000, 86_400_000_000, 604_800_000_000];

/// How many spans fell below which bounds.
#[derive(Debug)]
pub(crate) struct Spans<const N: usize> {
    /// Upper bounds, in microseconds, rising.
    bounds: &'static [u64; N],
    /// Spans at or below each bound and above the one before.
    buckets: [AtomicU64; N],
    /// Spans above all bounds.
    beyond: AtomicU64,
    /// Of all spans, in microseconds.
    sum: AtomicU64,
}

/// What [`Spans`] hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpansReading {
    /// Upper bounds in seconds, each with the spans at or below it and above the one before. The last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// Seconds of all spans together.
    pub sum: f64,
}

/// Spans that are added at once.
struct Batch<const N: usize> {
    buckets: [u32; N],
    beyond: u32,
    sum: u64,
}

impl<const N: usize> Spans<N> {
    fn new(bounds: &'static [u64; N]) -> Self {
        Self { bounds, buckets: [const { AtomicU64::new(0) }; N], beyond: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    fn note(&self, batch: &mut Batch<N>, span: Duration) {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let at = self.bounds.partition_point(|bound| *bound < micros);
        *batch.buckets.get_mut(at).unwrap_or(&mut batch.beyond) += 1;
        batch.sum = batch.sum.saturating_add(micros);
    }

    fn add(&self, batch: &Batch<N>) {
        let more = |to: &AtomicU64, count: u32| {
            if count > 0 {
                to.fetch_add(u64::from(count), Ordering::Relaxed);
            }
        };
        self.buckets.iter().zip(batch.buckets).for_each(|(to, count)| more(to, count));
        more(&self.beyond, batch.beyond);
        self.sum.fetch_add(batch.sum, Ordering::Relaxed);
    }

    fn observe(&self, span: Duration) {
        let mut one = Batch::default();
        self.note(&mut one, span);
        self.add(&one);
    }

    /// What was observed so far.
    #[must_use]
    pub(crate) fn read(&self) -> SpansReading {
        let bounds = self.bounds.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
        let counts = self.buckets.iter().chain([&self.beyond]).map(|count| count.load(Ordering::Relaxed));
        SpansReading { buckets: bounds.zip(counts).collect(), sum: self.sum.load(Ordering::Relaxed) as f64 / 1e6 }
    }
}

impl<const N: usize> Default for Batch<N> {
    fn default() -> Self {
        Self { buckets: [0; N], beyond: 0, sum: 0 }
    }
}

/// An event that a reader has to write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    batch: u64,
    /// The broker's time, or that of its receipt.
    time: Timestamp,
    came: Timestamp,
}

/// The stamps of one batch, for each listener; filled by the publisher.
#[derive(Debug, Default)]
pub(super) struct Stamps {
    listeners: Vec<Vec<Stamp>>,
}

impl Stamp {
    pub(super) fn new(batch: u64, time: Timestamp, came: Timestamp) -> Self {
        Self { batch, time, came }
    }
}

impl Stamps {
    /// An event that members of these listeners want, given as bits.
    pub(super) fn push(&mut self, mut listeners: u64, stamp: Stamp) {
        while listeners != 0 {
            let at = listeners.trailing_zeros() as usize;
            if self.listeners.len() <= at {
                self.listeners.resize_with(at + 1, Vec::new);
            }
            self.listeners[at].push(stamp);
            listeners &= listeners - 1;
        }
    }
}

type Pending = Mutex<VecDeque<Stamp>>;

/// See the module.
#[derive(Debug)]
pub struct Deliveries {
    /// Events and bytes, by transport.
    sent: [[AtomicU64; 2]; Transport::ALL.len()],
    /// Sockets and streams that were cut because their client took nothing.
    stalled: AtomicU64,
    from_broker: Spans<{ WITHIN.len() }>,
    from_receipt: Spans<{ WITHIN.len() }>,
    lasting: Spans<{ LASTING.len() }>,
    /// Of each listener. Locked for writing only when one is added.
    listeners: RwLock<Vec<Pending>>,
    wakers: Pending,
    /// Whether `wakers` holds any.
    wakers_pending: AtomicBool,
    /// All batches up to this are in the logs.
    announced: AtomicU64,
}

impl Default for Deliveries {
    fn default() -> Self {
        Self {
            sent: Default::default(),
            stalled: AtomicU64::new(0),
            from_broker: Spans::new(&WITHIN),
            from_receipt: Spans::new(&WITHIN),
            lasting: Spans::new(&LASTING),
            listeners: RwLock::default(),
            wakers: Mutex::default(),
            wakers_pending: AtomicBool::new(false),
            announced: AtomicU64::new(0),
        }
    }
}

impl Deliveries {
    /// Counts what sockets took.
    pub fn sent(&self, transport: Transport, events: u64, bytes: u64) {
        let [of_events, of_bytes] = &self.sent[transport as usize];
        if events > 0 {
            of_events.fetch_add(events, Ordering::Relaxed);
        }
        if bytes > 0 {
            of_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Counts a socket or stream that was cut because its client took nothing.
    pub fn stalled(&self) {
        self.stalled.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a stream that has ended, and lasted so long.
    pub fn lasted(&self, span: Duration) {
        self.lasting.observe(span);
    }

    /// Events and bytes that sockets took.
    #[must_use]
    pub fn sent_by(&self, transport: Transport) -> (u64, u64) {
        let [events, bytes] = &self.sent[transport as usize];
        (events.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed))
    }

    /// Sockets and streams that were cut because their client took nothing.
    #[must_use]
    pub fn stalls(&self) -> u64 {
        self.stalled.load(Ordering::Relaxed)
    }

    /// How long events took to reach sockets: from the broker's time, and from their receipt.
    #[must_use]
    pub fn latencies(&self) -> (SpansReading, SpansReading) {
        (self.from_broker.read(), self.from_receipt.read())
    }

    /// How long streams lasted that have ended.
    #[must_use]
    pub fn lasting(&self) -> SpansReading {
        self.lasting.read()
    }

    pub(super) fn add_listener(&self) {
        self.listeners.write().push(Pending::default());
    }

    /// Leaves a stamp for streams that read by wakers, before they can read the event.
    pub(super) fn leave_for_wakers(&self, stamp: Stamp) {
        let mut pending = self.wakers.lock();
        if pending.len() < STAMPS {
            pending.push_back(stamp);
        }
        self.wakers_pending.store(true, Ordering::Release);
    }

    /// Leaves the stamps of a batch for listeners, before these hear of it.
    pub(super) fn leave(&self, stamps: &mut Stamps) {
        let leave = |pending: &Pending, new: &mut Vec<Stamp>| {
            let mut pending = pending.lock();
            let room = STAMPS.saturating_sub(pending.len());
            pending.extend(new.drain(..).take(room));
        };
        let listeners = self.listeners.read();
        for (pending, new) in listeners.iter().zip(&mut stamps.listeners).filter(|(_, new)| !new.is_empty()) {
            leave(pending, new);
        }
    }

    /// All batches up to this one are in the logs, and their readers are about to be notified.
    pub(super) fn announce(&self, batch: u64) {
        self.announced.store(batch, Ordering::Release);
    }

    /// To be asked by a listener before it begins a round: when that has ended, all up to this batch counts as written. A batch
    /// whose listeners are just being notified may be written one round later.
    #[must_use]
    pub fn announced(&self) -> u64 {
        self.announced.load(Ordering::Acquire)
    }

    /// A listener has written everything up to a batch. `now` is asked if it wrote events.
    pub fn written(&self, listener: usize, batch: u64, now: impl FnOnce() -> Timestamp) {
        let listeners = self.listeners.read();
        if let Some(pending) = listeners.get(listener) {
            self.measure(&mut pending.lock(), batch, now);
        }
    }

    /// A stream that reads by a waker has taken something: the first one measures for all.
    pub fn taken(&self, now: impl FnOnce() -> Timestamp) {
        if self.wakers_pending.load(Ordering::Acquire) && self.wakers_pending.swap(false, Ordering::AcqRel) {
            self.measure(&mut self.wakers.lock(), u64::MAX, now);
        }
    }

    /// A stream that reads by a waker has ended: what nobody has taken until now may never be.
    pub fn forget(&self) {
        if self.wakers_pending.swap(false, Ordering::AcqRel) {
            self.wakers.lock().clear();
        }
    }

    fn measure(&self, pending: &mut VecDeque<Stamp>, batch: u64, now: impl FnOnce() -> Timestamp) {
        let count = pending.partition_point(|stamp| stamp.batch <= batch);
        if count == 0 {
            return;
        }
        let (now, mut broker, mut receipt) = (now(), Batch::default(), Batch::default());
        for stamp in pending.drain(..count) {
            self.from_broker.note(&mut broker, now.since(stamp.time));
            self.from_receipt.note(&mut receipt, now.since(stamp.came));
        }
        self.from_broker.add(&broker);
        self.from_receipt.add(&receipt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn each_reader_measures_an_event_once_when_it_has_written_it() {
        let deliveries = Deliveries::default();
        deliveries.add_listener();
        deliveries.add_listener();
        let mut stamps = Stamps::default();
        let second = Stamp::new(2, at(2_000), at(2_500));
        stamps.push(0b11, Stamp::new(1, at(1_000), at(1_500)));
        stamps.push(0b10, second);
        stamps.push(0, second);
        deliveries.leave_for_wakers(second);
        deliveries.leave(&mut stamps);
        let counted = || {
            let (broker, receipt) = deliveries.latencies();
            let count = |reading: &SpansReading| reading.buckets.iter().map(|(_, count)| count).sum::<u64>();
            assert_eq!(count(&broker), count(&receipt));
            (count(&broker), (broker.sum * 1e6).round(), (receipt.sum * 1e6).round())
        };
        deliveries.written(0, 1, || at(2_000));
        assert_eq!(counted(), (1, 1_000.0, 500.0));
        deliveries.written(1, 1, || at(2_000));
        deliveries.written(1, 1, || panic!("nothing is left to be measured"));
        assert_eq!(counted(), (2, 2_000.0, 1_000.0));
        deliveries.written(1, 2, || at(3_000));
        deliveries.taken(|| at(4_000));
        deliveries.taken(|| panic!("the first one has measured"));
        assert_eq!(counted(), (4, 5_000.0, 3_000.0));
        deliveries.leave_for_wakers(Stamp::new(3, at(2_000), at(2_500)));
        deliveries.forget();
        deliveries.taken(|| panic!("it was forgotten"));
    }

    #[test]
    fn spans_fall_at_or_below_their_bounds() {
        let spans = Spans::new(&WITHIN);
        for micros in [0, 1_000, 1_001, 60_000_000, 60_000_001] {
            spans.observe(Duration::from_micros(micros));
        }
        let read = spans.read();
        let at = |bound: f64| read.buckets.iter().find(|(of, _)| *of == bound).unwrap().1;
        assert_eq!((at(0.001), at(0.0025), at(60.0), at(f64::INFINITY)), (2, 1, 1, 1));
        assert_eq!(read.sum, 120.002_002);
    }

    #[test]
    fn stamps_that_nobody_takes_are_bounded() {
        let deliveries = Deliveries::default();
        deliveries.add_listener();
        let mut stamps = Stamps::default();
        for batch in 0..STAMPS as u64 + 5 {
            stamps.push(1, Stamp::new(batch, at(0), at(0)));
            deliveries.leave_for_wakers(Stamp::new(batch, at(0), at(0)));
        }
        deliveries.leave(&mut stamps);
        assert_eq!((deliveries.listeners.read()[0].lock().len(), deliveries.wakers.lock().len()), (STAMPS, STAMPS));
    }
}
