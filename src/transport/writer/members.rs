//! The members of a loop: the streams that it writes, grouped by channel.
//!
//! Keeps the groups and the hub's record of them right while members come and go. Knows nothing of how they are written.

use std::sync::Arc;

use bytes::Bytes;
use slab::Slab;
use tokio::time::Instant;

use super::round::Round;
use crate::hub::{Channel, Listener};
use crate::stream::Live;

/// A live stream and its socket. Kept small: there is one for every subscriber.
pub(super) struct Member<S> {
    pub(super) socket: S,
    pub(super) live: Live,
    /// Its index in its group.
    index: u32,
    /// Bytes that the client sent into its stream.
    pub(super) ignored: u32,
    /// When its stream ends, in microseconds since 1970; `u64::MAX`: not known yet.
    pub(super) ends: u64,
    pub(super) blocked: Option<Box<Blocked>>,
    /// It is given back as soon as its socket has taken what it waits with.
    pub(super) moved: bool,
}

/// What a full socket waits with.
pub(super) struct Blocked {
    /// Bytes that it has to take before anything else.
    pub(super) rest: Bytes,
    /// When it last took something.
    pub(super) since: Instant,
    pub(super) then: Then,
}

/// What follows when a full socket has taken its rest.
pub(super) enum Then {
    /// The stream goes on behind this id.
    Live { id: Bytes },
    /// The stream has ended.
    HangUp,
}

/// A channel with members here.
struct Group {
    channel: Arc<Channel>,
    /// Their keys.
    members: Vec<u32>,
}

pub(super) struct Members<S> {
    listener: Arc<Listener>,
    members: Slab<Member<S>>,
    /// By the channel's key.
    groups: Vec<Option<Group>>,
}

impl<S> Members<S> {
    pub(super) fn new(listener: Arc<Listener>) -> Self {
        Self { listener, members: Slab::new(), groups: Vec::new() }
    }

    /// The key that the next member gets.
    pub(super) fn next_key(&self) -> u32 {
        self.members.vacant_key() as u32
    }

    /// Adds a member to the group of its channel: from here on the loop is notified of what is published there. `ignored` bytes of
    /// what its client sent were read already.
    pub(super) fn add(&mut self, socket: S, live: Live, ignored: usize, ends: u64) -> &mut Member<S> {
        let channel = live.channel().clone();
        let slot = channel.key() as usize;
        if self.groups.len() <= slot {
            self.groups.resize_with(slot + 1, || None);
        }
        let group = self.groups[slot].get_or_insert_with(|| {
            channel.set_member(&self.listener, true);
            // The channel may still be marked from when it had members here before: then it would not be notified again.
            channel.looked(&self.listener);
            Group { channel, members: Vec::new() }
        });
        let index = group.members.len() as u32;
        let entry = self.members.vacant_entry();
        group.members.push(entry.key() as u32);
        entry.insert(Member { socket, live, index, ignored: ignored as u32, ends, blocked: None, moved: false })
    }

    /// Removes a member. The last of its group takes its index; a round under way does not leave that one out.
    pub(super) fn remove(&mut self, key: u32, round: &mut Round) -> Option<Member<S>> {
        let member = self.members.try_remove(key as usize)?;
        let channel = member.live.channel().key();
        if let Some(group) = self.groups.get_mut(channel as usize).and_then(Option::as_mut) {
            let index = member.index as usize;
            group.members.swap_remove(index);
            if let Some(moved) = group.members.get(index) {
                if let Some(moved) = self.members.get_mut(*moved as usize) {
                    moved.index = member.index;
                }
                round.moved(channel, index);
            } else if group.members.is_empty() {
                group.channel.set_member(&self.listener, false);
                self.groups[channel as usize] = None;
            }
        }
        Some(member)
    }

    pub(super) fn get_mut(&mut self, key: u32) -> Option<&mut Member<S>> {
        self.members.get_mut(key as usize)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Member<S>)> {
        self.members.iter().map(|(key, member)| (key as u32, member))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The channel with this key, if it has members here.
    pub(super) fn channel(&self, key: u32) -> Option<&Arc<Channel>> {
        Some(&self.groups.get(key as usize)?.as_ref()?.channel)
    }

    /// The key of the member with this index in a channel's group.
    pub(super) fn at(&self, channel: u32, index: usize) -> Option<u32> {
        self.groups.get(channel as usize)?.as_ref()?.members.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_small() {
        // A descriptor for the socket: mio's keeps more of it in debug builds.
        assert_eq!(size_of::<Member<std::os::fd::RawFd>>(), 64);
    }
}
