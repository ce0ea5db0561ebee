//! A password that is renewed while a connection stands, such as an OAuth2 token: its file is read again, and the broker is told.

use std::time::Duration;

use super::link::Link;
use super::recurring::Recurring;

/// Between two looks at the file.
const EVERY: Duration = Duration::from_secs(5);

/// Looks whether the password is another one, where it comes from a file. Ends with an error when the broker does not take it.
pub(in crate::source) fn renewal(link: &Link) -> Option<Recurring> {
    link.has_file().then(|| Recurring::new(EVERY, |link| Box::pin(async move { link.renew().await })))
}
