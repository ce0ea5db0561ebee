//! A source as one client follows it. Knows what there is to know of the source for the client, and nothing of how it is read.

use std::sync::Arc;

use crate::cursor::Position;
use crate::hub::{Source, SourceInfo, State};

/// How a client follows one source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Track {
    /// With the other volatile ones, by the bridge's sequence.
    Volatile,
    /// In the window, behind this sequence.
    Follow(u64),
    /// Not in the window yet: where it is, the cursor says.
    Pending,
    /// From the moment on when the source becomes live.
    Fresh,
    /// No more: the source was removed. Another source takes its place here.
    Gone,
}

/// How a client came to where it is in a source. A place in the broker's log of now may not be in a window: that may still
/// hold a log that was there before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Origin {
    /// By its id, or by a window.
    Id,
    /// This stream has read up to there in the log.
    Log,
    /// This stream has read that the log was made anew, and nothing of the new one yet.
    NewLog,
}

/// Of what a window holds up to a sequence, only the newest event of each subject is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Newest {
    /// The bridge's sequence when this began.
    pub(super) top: u64,
    /// The end of the source's log then.
    pub(super) head: Option<Position>,
}

/// See the module.
pub(super) struct Followed {
    pub(super) info: Arc<SourceInfo>,
    /// Whether it can have anything for the client. The log of one that cannot is neither read nor waited for.
    pub(super) concerned: bool,
    pub(super) track: Track,
    /// For a volatile source, the sequence up to which no loss is left to be told.
    pub(super) covered: u64,
    /// History has reached the log's end, and the window does not reach back to it yet.
    pub(super) at_tail: bool,
    pub(super) origin: Origin,
    /// The client was told that its id knows no place in it.
    pub(super) is_told: bool,
    /// For a durable source, while the newest events in its window are sent. Until then the client's point asks for them.
    pub(super) newest: Option<Newest>,
}

impl Followed {
    pub(super) fn new(info: Arc<SourceInfo>, track: Track, concerned: bool) -> Self {
        Self { info, concerned, track, covered: 0, at_tail: false, origin: Origin::Id, is_told: false, newest: None }
    }
}

/// Of the sources of a client, by their places there, those that there still are.
pub(super) fn followed<'a>(sources: &[Followed], state: &'a State) -> impl Iterator<Item = (usize, &'a Source)> {
    sources.iter().enumerate().filter_map(|(place, of)| Some((place, state.source(of.info.key)?)))
}
