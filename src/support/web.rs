//! The HTTP client for what others serve: bounded in time, and in the size of an answer.
//!
//! Knows nothing of what is asked for.

use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use url::Host;

/// Why an answer's body cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It breaks off, or does not come in time.
    #[error("the answer breaks off")]
    Http(#[source] reqwest::Error),
    /// It is larger than it may be.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

/// A client for one URL. `timeout` is from connecting to the last byte.
pub(crate) fn client(url: &Url, timeout: Duration, redirects: Policy) -> reqwest::Result<Client> {
    let secure = url.scheme() == "https";
    let builder = Client::builder()
        .user_agent(concat!("brokercast/", env!("CARGO_PKG_VERSION")))
        .timeout(timeout)
        .https_only(secure)
        .redirect(redirects);
    // A proxy of the environment must not get between this machine and itself: it would read and replace what is sent in the clear.
    let builder = if is_loopback(url) { builder.no_proxy() } else { builder };
    // Plain HTTP needs no root certificates: do not fail on a machine that has none.
    let builder = if secure { builder } else { builder.tls_certs_only([]) };
    builder.build()
}

/// A body of at most `most` bytes.
pub(crate) async fn body(response: &mut Response, most: usize) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| BodyError::Http(e.without_url()))? {
        if body.len() + chunk.len() > most {
            return Err(BodyError::TooLarge(most));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Whether a URL is one of HTTP, without a user in it.
pub(crate) fn is_plain(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none()
}

/// Whether nobody on the way can read or replace what is sent to and from there.
pub(crate) fn trusted(url: &Url) -> bool {
    url.scheme() == "https" || is_loopback(url)
}

/// Whether a URL names this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
