//! Brings a consumer's messages one by one, for users who may not ask for single messages of a stream.
//!
//! The library ends its connection at a message that it cannot read. The connection brings nothing else then, and a consumer
//! that is made again under its name is the same one and says how far it has delivered: so the message's sequence is known,
//! and the consumer goes on behind it over another connection.

use bytes::Bytes;
use tokio::time::timeout;

use super::JetStreamSource;
use super::api::{self, Found, NewConsumer, Stored};
use super::line::{ANSWER, Delivery, Heard, Line, Shared, status};
use crate::source::SourceError;

/// Connections that were lost, one behind the other, before the server had delivered anything.
const LOST: u32 = 3;

/// One message of a consumer.
enum One {
    Nothing,
    Message(Stored),
    /// The connection ended instead of bringing the message with this sequence, as the server has it.
    Stopped(u64),
}

/// A consumer that is asked for one message at a time.
pub(super) struct Single<'a> {
    source: &'a JetStreamSource,
    /// Where no message comes: it makes the consumer.
    line: Line,
    /// Where messages come.
    bringing: Option<Line>,
    consumer: NewConsumer,
    name: String,
    /// Messages that it has delivered, read or not.
    delivered: u64,
    /// The last one's sequence.
    last: u64,
}

impl<'a> Single<'a> {
    /// Makes the consumer, beside a line. How long it is kept has been set.
    pub(super) async fn new(source: &'a JetStreamSource, line: &Line, new: NewConsumer) -> Result<Self, SourceError> {
        let mut line = line.beside().await?;
        let name = line.new_consumer_name();
        let consumer = NewConsumer { name: Some(name.clone()), ..new };
        api::named_consumer(&mut line, &source.stream.stream, &consumer).await?;
        Ok(Self { source, line, bringing: None, consumer, name, delivered: 0, last: 0 })
    }

    /// What comes next.
    pub(super) async fn next(&mut self) -> Result<Found, SourceError> {
        loop {
            let found = match self.one().await? {
                One::Nothing => Found::Nothing,
                One::Message(stored) => Found::Message(stored),
                One::Stopped(seq) => match self.again(seq).await? {
                    Some(found) => found,
                    None => continue,
                },
            };
            match &found {
                Found::Message(stored) => self.last = stored.seq,
                Found::Unreadable(_, last) => self.last = *last,
                Found::Nothing => {}
            }
            return Ok(found);
        }
    }

    /// Looks once more for what did not come, alone: connections are lost for other reasons too. `None`: it was deleted.
    async fn again(&self, seq: u64) -> Result<Option<Found>, SourceError> {
        let mut new = NewConsumer { name: None, ..self.consumer.clone() };
        let newest = new.is_of_newest();
        new.start_behind(seq - 1);
        match Single::new(self.source, &self.line, new.clone()).await?.one().await? {
            One::Stopped(again) if again == seq => return Ok(Some(Found::Unreadable(seq, seq))),
            One::Message(stored) if stored.seq == seq && seq > self.last => return Ok(Some(Found::Message(stored))),
            _ if newest => {}
            _ => return Ok(None),
        }
        // Behind the last of the newest messages the server goes on near the stream's end, and names that sequence.
        new.start_at_last();
        Ok(Some(match Single::new(self.source, &self.line, new).await?.one().await? {
            One::Stopped(last) if last > self.last => Found::Unreadable(last, last),
            One::Message(stored) if stored.seq > self.last && stored.seq <= seq + 1 => Found::Message(stored),
            _ => Found::Unreadable(self.last + 1, seq + 1),
        }))
    }

    async fn one(&mut self) -> Result<One, SourceError> {
        for _ in 0..LOST {
            if let Some(one) = self.ask().await? {
                self.delivered += u64::from(!matches!(one, One::Nothing));
                return Ok(one);
            }
            self.bringing = None;
            let made = api::named_consumer(&mut self.line, &self.source.stream.stream, &self.consumer).await?;
            match made.delivered.consumer_seq.checked_sub(self.delivered) {
                // The question may not have come to the server.
                Some(0) => {}
                Some(1) => {
                    self.delivered += 1;
                    return Ok(One::Stopped(made.delivered.stream_seq));
                }
                _ => return Err(SourceError::lost("the consumer is gone")),
            }
        }
        Err(SourceError::lost("the connection is lost again and again"))
    }

    /// Asks for one message; `None`: the connection has ended.
    async fn ask(&mut self) -> Result<Option<One>, SourceError> {
        let line = match &mut self.bringing {
            Some(line) => line,
            bringing => {
                let JetStreamSource { config, stream, servers, name, .. } = self.source;
                bringing.insert(Line::new(Shared::connect(config, stream, servers, name).await?).await?)
            }
        };
        let question = api::next_question(&self.source.stream.stream, &self.name);
        line.ask(&question, "p", r#"{"batch":1,"no_wait":true}"#);
        let answered = async {
            loop {
                let delivery = match line.recv().await {
                    Ok(Heard::Delivery(delivery)) => delivery,
                    Ok(Heard::Refused(questions)) if questions.contains(&question) => {
                        return Err(line.denied(&api::next_question(&self.source.stream.stream, ">")));
                    }
                    Ok(Heard::Refused(_)) => continue,
                    Err(_) if line.is_dead() => return Ok(None),
                    Err(error) => return Err(error),
                };
                if line.answers(&delivery).is_none() {
                    return Ok(Some(One::Message(stored(&delivery)?)));
                }
                match status(&delivery) {
                    Some((100, _)) | None => {}
                    Some((404, _)) => return Ok(Some(One::Nothing)),
                    Some((_, words)) => return Err(SourceError::lost(format!("JetStream ended the reading: {words}"))),
                }
            }
        };
        timeout(ANSWER, answered).await.unwrap_or_else(|_| Err(SourceError::lost("JetStream did not answer in time")))
    }
}

/// What was delivered, as if it had been asked for.
fn stored(delivery: &Delivery) -> Result<Stored, SourceError> {
    let place = api::placed(delivery.reply())?;
    let (subject, payload) = (delivery.subject(), delivery.payload());
    Ok(Stored {
        seq: place.seq,
        subject: String::from_utf8_lossy(subject).into_owned(),
        payload: Bytes::copy_from_slice(payload),
        headers: delivery.headers(),
        odd: false,
        time: place.time,
        check: api::check(subject, payload, place.time),
    })
}
