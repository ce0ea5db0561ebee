//! A round: the channels that have something new, and how far writing them has come.
//!
//! Knows neither channels nor sockets, only their keys and indexes.

#[derive(Default)]
pub(super) struct Round {
    /// Keys of the channels to be written.
    channels: Vec<u32>,
    position: Position,
}

#[derive(Default)]
enum Position {
    /// No round is under way.
    #[default]
    Idle,
    /// The channel with this index is next. Behind the last one: all are written.
    Before(usize),
    /// Some of the channel's members are written.
    Within(Within),
}

struct Within {
    /// The channel's index.
    channel: usize,
    /// The index of the member that is next.
    member: usize,
    /// A piece that was read of the channel's log is not the last: its members need another pass.
    more: bool,
}

impl Round {
    /// Begins a round with the channels that `fill` leaves. Returns what `fill` does.
    pub(super) fn begin<T>(&mut self, fill: impl FnOnce(&mut Vec<u32>) -> T) -> T {
        let filled = fill(&mut self.channels);
        self.position = if self.channels.is_empty() { Position::Idle } else { Position::Before(0) };
        filled
    }

    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self.position, Position::Idle)
    }

    /// The key of the channel under way, or else of the next one.
    pub(super) fn channel(&self) -> Option<u32> {
        let (Position::Before(channel) | Position::Within(Within { channel, .. })) = self.position else { return None };
        self.channels.get(channel).copied()
    }

    /// Enters the next channel, at its first member. False if it was entered before.
    pub(super) fn enter(&mut self) -> bool {
        let Position::Before(channel) = self.position else { return false };
        self.position = Position::Within(Within { channel, member: 0, more: false });
        true
    }

    /// Leaves the channel under way: all of its members are written.
    pub(super) fn leave(&mut self) {
        if let Position::Before(channel) | Position::Within(Within { channel, .. }) = self.position {
            self.position = Position::Before(channel + 1);
        }
    }

    /// The index of the member that is next.
    pub(super) fn member(&self) -> usize {
        if let Position::Within(within) = &self.position { within.member } else { 0 }
    }

    /// Goes on to the next member.
    pub(super) fn next_member(&mut self) {
        if let Position::Within(within) = &mut self.position {
            within.member += 1;
        }
    }

    /// Notes whether the channel's log holds more behind a piece.
    pub(super) fn note_more(&mut self, more: bool) {
        if let Position::Within(within) = &mut self.position {
            within.more |= more;
        }
    }

    /// Begins with the first member again if the channel's log holds more. False if it does not.
    pub(super) fn again(&mut self) -> bool {
        let Position::Within(within) = &mut self.position else { return false };
        within.member = 0;
        std::mem::take(&mut within.more)
    }

    /// Another member of this channel has got the index of one that has gone: it may not have been written yet.
    pub(super) fn moved(&mut self, channel: u32, member: usize) {
        if self.channel() == Some(channel)
            && let Position::Within(within) = &mut self.position
        {
            within.member = within.member.min(member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_goes_over_all_members_of_all_channels_and_again_where_there_is_more() {
        let mut round = Round::default();
        assert!(!round.is_under_way() && round.channel().is_none() && !round.enter());
        round.begin(|channels| channels.extend([7, 9]));
        assert_eq!((round.channel(), round.enter(), round.enter()), (Some(7), true, false));
        round.next_member();
        round.note_more(true);
        round.note_more(false);
        assert_eq!(round.member(), 1);
        assert!(round.again() && !round.again());
        assert_eq!(round.member(), 0);
        round.leave();
        assert_eq!((round.channel(), round.enter()), (Some(9), true));
        round.leave();
        assert!(round.channel().is_none() && round.is_under_way());
        round.begin(Vec::clear);
        assert!(!round.is_under_way());
    }

    #[test]
    fn a_member_that_moves_to_an_earlier_index_is_not_left_out() {
        let mut round = Round::default();
        round.begin(|channels| channels.push(7));
        round.enter();
        (0..5).for_each(|_| round.next_member());
        round.moved(9, 2);
        round.moved(7, 6);
        assert_eq!(round.member(), 5);
        round.moved(7, 2);
        assert_eq!(round.member(), 2);
    }
}
