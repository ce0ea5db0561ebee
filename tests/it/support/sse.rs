//! A client of Server-Sent Events over the parser beside it.

use std::time::Duration;

use serde_json::Value;

pub use super::sse_parser::{Event, Item, Parser};
use super::wait::PATIENCE;

/// An open stream.
#[derive(Debug)]
pub struct Sse {
    response: reqwest::Response,
    parser: Parser,
    last_id: String,
}

impl Sse {
    /// Sends the request and takes the stream.
    ///
    /// # Panics
    /// When the answer is none.
    pub async fn open(request: reqwest::RequestBuilder) -> Self {
        let response = tokio::time::timeout(PATIENCE, request.send()).await.expect("an answer in time").unwrap();
        if response.status() != 200 {
            panic!("no stream but {}: {}", response.status(), response.text().await.unwrap_or_default());
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, parser: Parser::default(), last_id: String::new() }
    }

    pub fn headers(&self) -> &reqwest::header::HeaderMap {
        self.response.headers()
    }

    /// The id after what was taken so far: what a browser would send when it connects again.
    pub fn last_id(&self) -> &str {
        &self.last_id
    }

    /// The next item; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Item> {
        self.next_within(PATIENCE).await.unwrap_or_else(|| panic!("nothing came within {PATIENCE:?}"))
    }

    /// The next item (`Some(None)`: the end of the stream), or `None` when nothing comes in time.
    pub async fn next_within(&mut self, limit: Duration) -> Option<Option<Item>> {
        let until = tokio::time::Instant::now() + limit;
        loop {
            if let Some(item) = self.parser.items.pop_front() {
                if let Item::Id(id) | Item::Event(Event { id, .. }) = &item {
                    self.last_id.clone_from(id);
                }
                return Some(Some(item));
            }
            match tokio::time::timeout_at(until, self.response.chunk()).await {
                Err(_) => return None,
                // A stream that is cut ends for a browser too.
                Ok(Err(_) | Ok(None)) => return Some(None),
                Ok(Ok(Some(bytes))) => self.parser.feed(&bytes),
            }
        }
    }

    /// The next event, control events included. Heartbeats do not make it wait any longer.
    pub async fn event(&mut self) -> Event {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.next_within(until.saturating_duration_since(tokio::time::Instant::now())).await {
                Some(Some(Item::Event(event))) => return event,
                Some(Some(_)) => {}
                Some(None) => panic!("the stream ended before an event came"),
                None => panic!("no event within {PATIENCE:?}"),
            }
        }
    }

    /// The next `count` events, control events included.
    pub async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    /// The payloads of the next events, none of which may be a control event.
    pub async fn payloads(&mut self, count: usize) -> Vec<Value> {
        let events = self.events(count).await;
        events
            .iter()
            .map(|e| {
                assert!(!e.is_control(), "{e:?}");
                e.payload()
            })
            .collect()
    }

    /// Reads on until an event fits.
    pub async fn event_where(&mut self, fits: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.event().await;
            if fits(&event) {
                return event;
            }
        }
    }

    /// Waits for an id that stands without an event: the one at the start, or a heartbeat's.
    pub async fn id(&mut self) -> String {
        loop {
            match self.next().await {
                Some(Item::Id(id)) => return id,
                Some(Item::Event(event)) => panic!("an event before an id: {event:?}"),
                Some(_) => {}
                None => panic!("the stream ended before an id came"),
            }
        }
    }

    /// All that comes until the stream ends.
    pub async fn rest(&mut self) -> Vec<Item> {
        let mut items = Vec::new();
        while let Some(item) = self.next().await {
            items.push(item);
        }
        items
    }

    /// The events that come until the stream ends.
    pub async fn rest_events(&mut self) -> Vec<Event> {
        self.rest().await.into_iter().filter_map(|i| if let Item::Event(e) = i { Some(e) } else { None }).collect()
    }

    /// Asserts that no event comes for a while.
    pub async fn stays_quiet(&mut self, span: Duration) {
        let until = tokio::time::Instant::now() + span;
        while let Some(item) = self.next_within(until.saturating_duration_since(tokio::time::Instant::now())).await {
            match item {
                Some(Item::Event(event)) => panic!("an event where none may be: {event:?}"),
                Some(_) => {}
                None => panic!("the stream ended"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parser_follows_the_standard_however_the_bytes_are_cut() {
        let text = ": hi\nretry: 10\n\nid: a\n\ndata: x\r\ndata:  y\rdata\n\nevent: e\ndata: z\nid: b\n\nevent: lost\n\n";
        let event = |id: &str, name: &str, data: &str| Item::Event(Event { id: id.into(), name: name.into(), data: data.into() });
        let expected =
            vec![Item::Comment("hi".into()), Item::Retry(10), Item::Id("a".into()), event("a", "message", "x\n y\n"), event("b", "e", "z")];
        for size in 1..text.len() {
            let mut parser = Parser::default();
            text.as_bytes().chunks(size).for_each(|piece| parser.feed(piece));
            assert_eq!(Vec::from(parser.items), expected, "in pieces of {size}");
        }
    }
}
