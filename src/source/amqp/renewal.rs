//! A password that is renewed while a connection stands, such as an OAuth2 token: its file is read again, and the broker is told.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::{Sleep, sleep};

use super::link::Link;
use crate::source::SourceError;

/// Between two looks at the file.
const EVERY: Duration = Duration::from_secs(5);

/// Looks whether the password is another one.
pub(in crate::source) struct Renewal {
    link: Arc<Link>,
    due: Pin<Box<Sleep>>,
    asking: Option<BoxFuture<'static, Result<(), SourceError>>>,
}

impl Renewal {
    /// Of a connection whose password comes from a file.
    pub(in crate::source) fn of(link: &Arc<Link>) -> Option<Self> {
        link.has_file().then(|| Self { link: Arc::clone(link), due: Box::pin(sleep(EVERY)), asking: None })
    }

    /// Ready only with an error: the broker did not take the new password.
    pub(in crate::source) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<SourceError> {
        loop {
            if let Some(asking) = &mut self.asking {
                if let Err(error) = ready!(asking.poll_unpin(cx)) {
                    return Poll::Ready(error);
                }
                self.asking = None;
            }
            ready!(self.due.poll_unpin(cx));
            self.due = Box::pin(sleep(EVERY));
            let link = Arc::clone(&self.link);
            self.asking = Some(Box::pin(async move { link.renew().await }));
        }
    }
}
