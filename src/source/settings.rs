//! `sources`: what all sources share, and the one adapter that each names.

use std::fmt;
use std::sync::Arc;

use super::parts::Part;
use super::{Adapter, parts};
use crate::cursor::Tag;
use crate::event::SourceName;
use crate::settings::{Section, Slot, Written};
use crate::subject::Pattern;

/// Makes the adapter of a source with this name. Connects nothing.
pub(crate) type Build = Box<dyn FnOnce(&SourceName) -> Arc<dyn Adapter>>;

/// A kind of adapter.
pub(crate) struct AdapterKind {
    /// Its tag in the settings of a source: `nats`.
    pub tag: &'static str,
    /// Takes its keys. Returns nothing where they are wrong.
    pub read: fn(&Section<'_>) -> Option<Build>,
    /// The log target of the library that it talks to its broker with.
    pub library: Option<&'static str>,
}

/// The list of adapters.
pub(crate) const ADAPTERS: &[AdapterKind] = &[super::ticker::KIND, super::http::KIND, super::nats::KIND, super::amqp::KIND];

/// One of `sources`.
pub(crate) struct Source {
    /// Its name.
    pub name: SourceName,
    /// Whether readiness waits for it.
    pub required: bool,
    /// Bytes of one message's payload.
    pub max_payload: usize,
    /// Its adapter, not connected.
    pub adapter: Arc<dyn Adapter>,
    /// Which log its adapter reads, if the source has several.
    pub part: Option<Arc<str>>,
    /// What was written. The contents of files are left out, as adapters read them again at each connection.
    pub written: Written,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).field("kind", &self.adapter.kind()).finish_non_exhaustive()
    }
}

impl Source {
    /// The same source, for another of its logs.
    #[must_use]
    pub(crate) fn other(&self, part: Part) -> Self {
        let Part { name, adapter } = part;
        let Self { required, max_payload, .. } = *self;
        Self { name: self.name.clone(), required, max_payload, adapter, part: Some(name), written: self.written.clone() }
    }

    /// What cursors call its logs, as far as these are known. None where it has no log.
    #[must_use]
    pub(crate) fn tags(&self) -> Vec<Tag> {
        match self.adapter.parts() {
            Some(parts) => parts.names().iter().map(|part| parts::tag(&self.name, Some(part))).collect(),
            None if self.adapter.durable() => vec![parts::tag(&self.name, None)],
            None => Vec::new(),
        }
    }
}

/// Reads `sources`. Returns those that are right, in the order of their names.
#[must_use]
pub(crate) fn read(sources: &Section<'_>) -> Vec<Source> {
    read_of(ADAPTERS, sources)
}

/// The same with this list of adapters.
pub(super) fn read_of(adapters: &[AdapterKind], sources: &Section<'_>) -> Vec<Source> {
    let mut found: Vec<Source> = sources.entries().into_iter().filter_map(|(name, slot)| source(adapters, name, slot)).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn source(adapters: &[AdapterKind], name: &str, slot: Slot<'_>) -> Option<Source> {
    let name: Option<SourceName> = name.parse().map_err(|error| slot.problem(format!("a source's name {error}"))).ok();
    if !slot.is_set() {
        return None;
    }
    let source = slot.section().terse();
    let tagged: Vec<_> = adapters.iter().filter_map(|kind| Some((kind, source.key(kind.tag).optional_section()?))).collect();
    if tagged.len() != 1 {
        let tags: Vec<_> = adapters.iter().map(|kind| kind.tag).collect();
        source.problem_here(format!("must hold exactly one of {}", tags.join(", ")));
    }
    let built = tagged.iter().map(|(kind, settings)| (kind.read)(settings)).collect::<Vec<_>>();
    let required = source.key("required").flag().or(true);
    let max_payload = source.key("max_payload").size().within(1, 256 << 20).or(1 << 20);
    let written = source.written();
    let (name, build) = (name?, built.into_iter().next()??);
    let adapter = build(&name);
    let part = adapter.parts().map(|parts| parts.first.clone());
    Some(Source { adapter, part, name, required, max_payload, written })
}

/// Reads a key that holds a list of patterns, at least one.
pub(super) fn patterns(slot: Slot<'_>) -> Option<Vec<Pattern>> {
    let pattern = |item: Slot<'_>| item.text().parse("must be a subject such as orders.>").required();
    slot.list(pattern).check(|list| !list.is_empty(), "must list at least one subject such as orders.>").required()
}
