//! A source whose broker keeps its messages in several logs: each is read as a durable source of its own, behind one name.
//!
//! An adapter reads the first log and finds the others; whoever runs it enters these, and says whether there may be so many.

use std::fmt;
use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{Adapter, Intake, Item, SourceError};
use crate::cursor::Tag;
use crate::event::SourceName;

/// A log of a source that has several.
#[derive(Clone)]
pub struct Part {
    /// The log's name at its broker.
    pub name: Arc<str>,
    /// What reads it.
    pub adapter: Arc<dyn Adapter>,
}

/// Whether a source may have logs of these names, or why not.
pub(crate) type Admit = dyn Fn(&[Arc<str>]) -> Result<(), String> + Send + Sync;

/// The logs of a source that are counted from 0 on, so that more may be found.
pub struct Counted {
    /// What a log is called.
    pub name: Box<dyn Fn(usize) -> String + Send + Sync>,
    /// The log of this number, not looked for at the broker.
    pub log: Box<dyn Fn(usize) -> Part + Send + Sync>,
}

/// So many numbers behind the logs that are known, other processes may have found logs already.
pub(crate) const AHEAD: usize = 8;

/// The logs of a source.
pub struct Parts {
    /// The name of the log that the source's adapter reads itself.
    pub first: Arc<str>,
    /// Where more may be found.
    counted: Option<Counted>,
    others: Mutex<Vec<Part>>,
    entered: watch::Sender<usize>,
    found: OnceLock<Arc<Notify>>,
    admit: OnceLock<Box<Admit>>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("first", &self.first).finish_non_exhaustive()
    }
}

impl Parts {
    /// Of the first log and those that are known already. `counted`: all of them, where more may be found.
    #[must_use]
    pub fn new(first: Arc<str>, others: Vec<Part>, counted: Option<Counted>) -> Self {
        let (others, entered) = (Mutex::new(others), watch::Sender::new(0));
        Self { first, counted, others, entered, found: OnceLock::new(), admit: OnceLock::new() }
    }

    /// All logs by their numbers, where more may be found.
    #[must_use]
    pub fn counted(&self) -> Option<&Counted> {
        self.counted.as_ref()
    }

    /// Takes those of the first `most` logs as found that were found before, when the source had other settings.
    pub(crate) fn know(&self, most: usize, is_known: impl Fn(&str) -> bool) {
        let Some(Counted { name, log }) = &self.counted else { return };
        let known: Vec<_> = (1..most).filter(|number| is_known(&name(*number))).map(log).collect();
        self.others.lock().extend(known);
    }

    /// What cursors call the logs that were found, and those that may be found soon: another process may have found them before.
    pub(crate) fn tags(&self, source: &SourceName) -> Vec<Tag> {
        let Some(Counted { name, .. }) = &self.counted else { return Vec::new() };
        (0..self.names().len() + AHEAD).map(|number| tag(source, Some(&name(number)))).collect()
    }

    /// The logs beside the first that are known now.
    #[must_use]
    pub fn others(&self) -> Vec<Part> {
        self.others.lock().clone()
    }

    /// The names of all logs that are known now.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        std::iter::once(self.first.clone()).chain(self.others.lock().iter().map(|part| part.name.clone())).collect()
    }

    /// The adapter has found more logs.
    ///
    /// # Errors
    /// When there must not be so many, or of such names.
    pub fn add(&self, parts: Vec<Part>) -> Result<(), SourceError> {
        if parts.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = parts.iter().map(|part| part.name.clone()).collect();
        self.admit.get().map_or(Ok(()), |admit| admit(&names)).map_err(SourceError::configuration)?;
        self.others.lock().extend(parts);
        if let Some(found) = self.found.get() {
            found.notify_one();
        }
        Ok(())
    }

    /// Somebody runs the source: asked whether there may be more logs, and notified of them.
    pub fn run(&self, admit: Box<Admit>, found: Arc<Notify>) {
        // The first one stays.
        drop((self.admit.set(admit), self.found.set(found)));
    }

    /// So many of the others are read now.
    pub fn entered(&self, others: usize) {
        self.entered.send_replace(others);
    }

    /// Waits until all logs that are known are read.
    async fn all_entered(&self) {
        let mut entered = self.entered.subscribe();
        // The sender is ours.
        drop(entered.wait_for(|entered| *entered >= self.others.lock().len()).await);
    }
}

/// What cursors call a source's log. No source's name has a `/`.
#[must_use]
pub(crate) fn tag(source: &SourceName, part: Option<&str>) -> Tag {
    match part {
        Some(part) => Tag::of(&format!("{source}/{part}")),
        None => Tag::of(source.as_str()),
    }
}

/// Hands in what the first log holds once all others are known: until then a client that resumes waits for it.
pub(crate) struct FirstOfAll {
    /// The source's logs.
    pub parts: Arc<Parts>,
    /// Where it is handed in.
    pub intake: Arc<dyn Intake>,
}

impl Intake for FirstOfAll {
    fn take<'a>(&'a self, items: &'a mut Vec<Item>) -> BoxFuture<'a, String> {
        Box::pin(async move {
            self.parts.all_entered().await;
            self.intake.take(items).await
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::source::tests::Recorder;

    #[tokio::test]
    async fn the_first_log_waits_for_the_others_that_are_known() {
        let adapter = |name: &str| crate::source::nats::tests::adapter(serde_json::json!({ "servers": ["nats://h"], "subjects": [name] }));
        let part = move |name: &str| Part { name: name.into(), adapter: adapter(name) };
        let name = |number| format!("x-{number}");
        let log = move |number| part(&name(number));
        let counted = Counted { name: Box::new(name), log: Box::new(log) };
        let parts = Arc::new(Parts::new("x-0".into(), Vec::new(), Some(counted)));
        let (found, asked) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
        let names = asked.clone();
        let admit = move |new: &[Arc<str>]| {
            names.lock().extend_from_slice(new);
            if new.len() > 2 { Err("too many".to_owned()) } else { Ok(()) }
        };
        parts.run(Box::new(admit), found.clone());
        let recorder = Arc::new(Recorder::default());
        let first = FirstOfAll { parts: parts.clone(), intake: recorder.clone() };
        let mut items = vec![Item::Tail(None)];
        first.take(&mut items).now_or_never().expect("none is missing");
        assert_eq!(parts.add(vec![part("a"), part("b"), part("c")]).expect_err("refused").to_string(), "too many");
        parts.add(vec![part("x-1"), part("x-2")]).expect("admitted");
        found.notified().now_or_never().expect("told");
        assert_eq!(parts.names().len(), 3);
        assert_eq!(asked.lock().len(), 5);
        let mut items = vec![Item::Tail(None)];
        let mut taking = first.take(&mut items);
        assert!((&mut taking).now_or_never().is_none());
        parts.entered(1);
        assert!((&mut taking).now_or_never().is_none());
        parts.entered(2);
        taking.await;
        assert_eq!(recorder.items.lock().len(), 2);
        // Two more than the first are known.
        let source: SourceName = "s".parse().unwrap();
        let tags = parts.tags(&source);
        assert_eq!(["x-0", "x-3", "x-10", "x-11"].map(|name| tags.contains(&tag(&source, Some(name)))), [true, true, true, false]);
    }
}
