//! What is asked of a broker at intervals while a connection stands. Knows no question.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::{Sleep, sleep};

use super::link::Link;
use crate::source::SourceError;

type Answer = BoxFuture<'static, Result<(), SourceError>>;

/// A question that recurs. The interval begins with the answer.
pub(in crate::source) struct Recurring {
    every: Duration,
    due: Pin<Box<Sleep>>,
    ask: Box<dyn Fn(Arc<Link>) -> Answer + Send>,
    asking: Option<Answer>,
}

impl Recurring {
    /// Asks for the first time after `first`.
    pub(in crate::source) fn new(first: Duration, every: Duration, ask: impl Fn(Arc<Link>) -> Answer + Send + 'static) -> Self {
        Self { every, due: Box::pin(sleep(first)), ask: Box::new(ask), asking: None }
    }

    /// Ready only with an error. The next question is asked over `link`.
    pub(in crate::source) fn poll(&mut self, link: &Arc<Link>, cx: &mut Context<'_>) -> Poll<SourceError> {
        loop {
            if let Some(asking) = &mut self.asking {
                if let Err(error) = ready!(asking.poll_unpin(cx)) {
                    return Poll::Ready(error);
                }
                self.asking = None;
                self.due = Box::pin(sleep(self.every));
            }
            ready!(self.due.poll_unpin(cx));
            self.asking = Some((self.ask)(link.clone()));
        }
    }
}
