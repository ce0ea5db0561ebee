//! Which channels the loss of a source's events concerns. The more channels, patterns and routes there are, the longer it takes to find out:
//! so it is asked once for each channel and source, under no lock, for which publishing would wait. The answer is kept.

use super::{Hub, Input, Slot, Source, State};
use crate::event::SourceKey;

impl Slot {
    /// What is known already.
    fn answer(&self, source: SourceKey) -> Option<bool> {
        self.concerned.iter().find(|(of, _)| *of == source).map(|(_, concerned)| *concerned)
    }

    /// Whether a loss of a source's events concerns those who read the channel. Asks if it was opened after [`Hub::ask`].
    pub(super) fn is_concerned(&self, source: &Source) -> bool {
        self.answer(source.info().key).unwrap_or_else(|| source.concerns(self.channel.filter()))
    }
}

impl Hub {
    /// Asks whether a source concerns the channels of which that is not known yet. To be called before a source gets other routes, too.
    pub(crate) fn ask(&self, source: SourceKey) {
        let mut before = usize::MAX;
        loop {
            let (info, unknown) = {
                let state = self.state.lock();
                let Some(of) = state.source(source) else { return };
                let unknown = state.channels.iter().filter(|(_, slot)| slot.answer(source).is_none());
                let unknown: Vec<_> = unknown.map(|(key, slot)| (key, slot.channel.serial(), slot.channel.filter().clone())).collect();
                (of.info().clone(), unknown)
            };
            // Each time those that were opened meanwhile. Where they do not get fewer, the few that are left are asked under the lock.
            if unknown.is_empty() || unknown.len() >= before {
                return;
            }
            before = unknown.len();
            let asked: Vec<_> = unknown.into_iter().map(|(key, serial, filter)| (key, serial, info.concerns(&filter))).collect();
            let mut state = self.state.lock();
            let State { channels, sources, .. } = &mut *state;
            for (key, serial, concerned) in asked {
                let Some(slot) = channels.get_mut(key).filter(|slot| slot.channel.serial() == serial) else { continue };
                let is_there = |of: SourceKey| sources.get(of.slot()).is_some_and(|source| source.info().key == of);
                slot.concerned.retain(|(of, _)| *of != source && is_there(*of));
                slot.concerned.push((source, concerned));
            }
        }
    }

    /// Whether some of this goes to all channels that the source concerns.
    pub(super) fn is_for_all(&self, source: SourceKey, inputs: &[Input]) -> bool {
        // Most batches have neither, and are looked through once.
        if !inputs.iter().any(|input| matches!(input, Input::Gap(_) | Input::Tail(_))) {
            return false;
        }
        let gap = inputs.iter().any(|input| matches!(input, Input::Gap(_)));
        let tail = inputs.iter().any(|input| matches!(input, Input::Tail(_)));
        let state = self.state.lock();
        state.source(source).is_some_and(|of| if of.warm() { gap } else { tail && (gap || of.info().returned()) })
    }
}
