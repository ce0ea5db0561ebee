//! The newest messages of subjects, asked for one by one: where the subjects are named in full, and where the library cannot read
//! one of the messages.
//!
//! A consumer that begins with the newest message of each subject makes the server look at every subject of the stream while
//! publishers wait: 0.1 s for 200,000 subjects. The server finds the newest message of one subject at once.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::JetStreamSource;
use super::api::{self, Found, NewConsumer, Stored, StreamInfo};
use super::line::Line;
use super::single::Single;
use crate::cursor::Position;
use crate::event::{Gap, GapReason};
use crate::source::{Item, SourceError};
use crate::subject::Pattern;

/// For more subjects than this a consumer costs less.
const NAMED: usize = 16;
/// So many subjects are asked for one by one where the library cannot read a message.
const ODD: usize = 10_000;
/// So many bytes of payloads are brought one by one, and one message more: they are held until all have come.
const BYTES: usize = 32 << 20;
/// For bringing them one by one. Below the time that the supervisor gives a connection.
const TIME: Duration = Duration::from_secs(20);

impl JetStreamSource {
    /// The newest message of each subject up to the sequence `end`, in the log's order. `None`: a consumer has to find them,
    /// because a filter is not a single subject or this user may not ask for single messages.
    pub(super) async fn newest(&self, line: &mut Line, filters: &[String], end: u64) -> Result<Option<Vec<Item>>, SourceError> {
        let single =
            |filter: &String| filter.parse::<Pattern>().is_ok_and(|pattern| pattern.tokens().all(|token| !matches!(token, "*" | ">")));
        if filters.is_empty() || filters.len() > NAMED || !filters.iter().all(single) {
            return Ok(None);
        }
        let mut newest = Vec::new();
        for subject in filters {
            match api::newest(line, &self.stream.stream, subject).await? {
                Some(Found::Nothing) => {}
                // What came behind the end is delivered by the consumer that begins there.
                Some(Found::Message(stored)) => newest.extend(Some(stored).filter(|stored| stored.seq <= end)),
                Some(Found::Unreadable(..)) | None => return Ok(None),
            }
        }
        newest.sort_unstable_by_key(|stored| stored.seq);
        Ok(Some(newest.into_iter().filter_map(|stored| self.message_of(stored)).map(Item::Message).collect()))
    }

    /// The newest message of each subject up to `end`, in the log's order, where the library cannot read one of them. A gap stands for
    /// what cannot be found: of a subject that is not UTF-8 the server cannot be asked.
    pub(super) async fn newest_past_odd(
        &self,
        line: &mut Line,
        info: &StreamInfo,
        filters: &[String],
        end: Position,
    ) -> Result<Vec<Item>, SourceError> {
        let (mut newest, mut odd, mut missing, mut cut, mut bytes) = (Vec::new(), false, false, false, 0);
        let all = [">".to_owned()];
        for filter in if filters.is_empty() { &all } else { filters } {
            let Some(subjects) = api::subjects(line, &self.stream.stream, filter, ODD).await? else {
                missing = true;
                continue;
            };
            for subject in subjects {
                if bytes > BYTES {
                    (missing, cut) = (true, true);
                    break;
                }
                match api::newest(line, &self.stream.stream, &subject).await? {
                    Some(Found::Message(stored)) => {
                        odd |= stored.odd;
                        bytes += stored.payload.len();
                        newest.extend(Some(stored).filter(|stored| stored.seq <= end.seq));
                    }
                    // It was deleted meanwhile.
                    Some(Found::Nothing) if !subject.contains(char::REPLACEMENT_CHARACTER) => {}
                    Some(Found::Nothing | Found::Unreadable(..)) => missing = true,
                    None => return self.newest_singly(line, info, filters, end).await,
                }
            }
        }
        newest.sort_unstable_by_key(|stored| stored.seq);
        let (from, to) = {
            let mut trouble = self.trouble.lock();
            trouble.asked_for_newest(odd || missing);
            trouble.around_odd().filter(|_| !cut).unwrap_or((info.first() - 1, end.seq + 1))
        };
        let behind = newest.split_off(newest.partition_point(|stored| stored.seq < to));
        let messages = |newest: Vec<Stored>| newest.into_iter().filter_map(|stored| self.message_of(stored)).map(Item::Message);
        let mut items: Vec<Item> = messages(newest).collect();
        if missing {
            tracing::warn!(source = %self.name, stream = &*self.stream.stream, from, to, "the newest message of a subject cannot be read, or there are too many bytes of them");
            // Without a position: one of those that came may have the same.
            items.push(Item::Gap(Gap { reason: GapReason::Unreadable, from: Some(from), to: Some(to), position: None }));
        }
        items.extend(messages(behind));
        Ok(items)
    }

    /// The same for a user who may not ask for single messages. What cannot be read is known by its sequence here.
    async fn newest_singly(&self, line: &Line, info: &StreamInfo, filters: &[String], end: Position) -> Result<Vec<Item>, SourceError> {
        let (mut newest, mut odd, mut whole, mut bytes) = (BTreeMap::new(), false, true, 0);
        let (all, begun) = ([">".to_owned()], Instant::now());
        for filter in if filters.is_empty() { &all } else { filters } {
            let new = NewConsumer { inactive_threshold: self.inactive(info), ..NewConsumer::of_newest(std::slice::from_ref(filter)) };
            let mut single = Single::new(self, line, new).await?;
            loop {
                let room = begun.elapsed() < TIME && bytes <= BYTES;
                match single.next().await? {
                    Found::Message(stored) if room && stored.seq <= end.seq => {
                        bytes += stored.payload.len();
                        newest.insert(stored.seq, self.message_of(stored).map(Item::Message));
                    }
                    Found::Unreadable(first, last) if room && first <= end.seq => {
                        odd = true;
                        newest.insert(last, Some(Item::Gap(self.unreadable(first, last))));
                    }
                    // What came behind the end is delivered by the consumer that begins there.
                    Found::Message(Stored { seq, .. }) | Found::Unreadable(seq, _) => {
                        whole &= room || seq > end.seq;
                        break;
                    }
                    Found::Nothing => break,
                }
            }
        }
        self.trouble.lock().asked_for_newest(odd || !whole);
        let mut items: Vec<Item> = newest.into_values().flatten().collect();
        if !whole {
            let to = end.seq + 1;
            tracing::warn!(source = %self.name, stream = &*self.stream.stream, to, "the newest messages of all subjects take too long to read, or too many bytes");
            items.push(Item::Gap(Gap { reason: GapReason::Unreadable, from: None, to: Some(to), position: None }));
        }
        Ok(items)
    }
}
