//! How finished entries reach windows and channels, under the hub's `state` lock.

use std::sync::Arc;

use super::deliveries::{Deliveries, Stamp};
use super::{Channel, Concerned, Filter, LOG_ENTRY, Logged, Publisher, Pushed, Slot, State};
use crate::event::{SourceKey, Timestamp};

impl State {
    /// Takes over the publisher's sequence and id.
    pub(super) fn follow(&mut self, publisher: &Publisher) {
        if self.seq != publisher.seq {
            self.seq = publisher.seq;
            self.id = String::from_utf8_lossy(&publisher.id).into();
        }
    }

    pub(super) fn open(&mut self, filter: Arc<Filter>) -> u32 {
        let entry = self.channels.vacant_entry();
        let key = entry.key() as u32;
        self.serial += 1;
        let channel = Arc::new(Channel::new(key, self.serial, filter.clone()));
        entry.insert(Slot { channel, members: 0, told: self.seq, batch: 0, concerned: Vec::new() });
        for pattern in filter.patterns() {
            self.index.insert(pattern, key);
        }
        self.filters.insert(filter, key);
        key
    }

    pub(super) fn take(&mut self, source: SourceKey, pushed: Pushed, concerned: &mut Concerned, deliveries: &Deliveries, now: Timestamp) {
        let Concerned { found, dirty, wakers, stamps } = concerned;
        let Some(of) = self.sources.get_mut(source.slot()) else { return };
        let (entry, live, kept) = match pushed {
            Pushed::Skip(position) => return of.window.skip(position),
            Pushed::Warm(seq, position) => return of.warm_up(seq, position),
            Pushed::Clear(entry, live) => {
                of.window.clear(entry.seq.saturating_sub(1), now);
                of.whole = entry.position.is_none().then_some(entry.seq);
                (entry, live, true)
            }
            Pushed::Entry(entry, live) => (entry, live, true),
            Pushed::Told(entry) => (entry, true, false),
        };
        if live {
            match entry.encoded.subject_bytes() {
                Some(subject) => self.index.find(subject, found),
                None => {
                    let concerned = self.channels.iter().filter(|(_, slot)| slot.is_concerned(of));
                    found.extend(concerned.map(|(key, _)| key as u32));
                }
            }
            let mut bytes = entry.encoded.bytes().len();
            let stamp = entry.encoded.is_event().then(|| Stamp::new(self.batch, entry.time, entry.came));
            let (mut listeners, mut wakers_stamp) = (0, stamp);
            for key in found.drain(..) {
                let Some(slot) = self.channels.get_mut(key as usize) else { continue };
                if std::mem::replace(&mut slot.told, entry.seq) == entry.seq {
                    continue;
                }
                // The bytes are shared: they count once.
                let cost = LOG_ENTRY + std::mem::take(&mut bytes);
                self.logged += cost;
                self.order.push_back(Logged { key, serial: slot.channel.serial(), cost: cost as u32, batch: self.batch });
                let mut log = slot.channel.lock();
                listeners |= slot.channel.audience.members();
                // Before they can read it: who has read it looks for its stamp.
                if log.has_seats()
                    && let Some(stamp) = wakers_stamp.take()
                {
                    deliveries.leave_for_wakers(stamp);
                }
                log.append(entry.encoded.clone(), wakers);
                drop(log);
                if std::mem::replace(&mut slot.batch, self.batch) != self.batch {
                    dirty.push(slot.channel.clone());
                }
            }
            if let Some(stamp) = stamp {
                stamps.push(listeners, stamp);
            }
        }
        if kept {
            of.window.push(entry);
        }
    }

    /// Drops what the channels' logs hold beyond `logs` bytes, but nothing of batch `keep` or later.
    pub(super) fn trim_logs(&mut self, logs: usize, keep: Option<u64>) {
        while self.logged > logs && self.order.front().is_some_and(|l| keep.is_none_or(|keep| l.batch < keep)) {
            let Some(oldest) = self.order.pop_front() else { return };
            self.logged -= oldest.cost as usize;
            if let Some(slot) = self.channels.get(oldest.key as usize).filter(|s| s.channel.serial() == oldest.serial) {
                slot.channel.lock().drop_first();
            }
        }
    }
}
