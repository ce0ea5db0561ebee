//! Why a source could not go on, and of which kind that is. Knows no broker.

use std::error::Error;

use serde::Serialize;

use crate::support::words::words;

words! {
    /// What a failure calls for: it decides how soon the supervisor tries again, and tells operators where to look.
    #[derive(Serialize)]
    #[serde(rename_all = "lowercase")]
    pub enum ErrorKind {
        /// Settings, or the files that they name, cannot work with this broker. A person has to change something.
        Configuration = "configuration",
        /// The broker refuses who we are, or what we may do.
        Denied = "denied",
        /// The stream, queue, exchange or vhost is not there.
        Missing = "missing",
        /// The broker cannot be reached, does not answer in time, or has ended the connection.
        Lost = "lost",
        /// The broker said something that it must not say, or that cannot be read. A panic of the adapter counts here.
        Protocol = "protocol",
    }
}

/// Why a source could not go on. The supervisor logs it once and connects again.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct SourceError {
    kind: ErrorKind,
    what: String,
    #[source]
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl SourceError {
    /// Of this kind, with a lower-case message that names no secret.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), cause: None }
    }

    /// [`ErrorKind::Configuration`]
    pub fn configuration(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Configuration, what)
    }

    /// [`ErrorKind::Denied`]
    pub fn denied(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Denied, what)
    }

    /// [`ErrorKind::Missing`]
    pub fn missing(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Missing, what)
    }

    /// [`ErrorKind::Lost`]
    pub fn lost(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Lost, what)
    }

    /// [`ErrorKind::Protocol`]
    pub fn protocol(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Protocol, what)
    }

    /// Of several addresses that were tried, each with an error that names it. As long as one of them may come back, there is hope.
    pub fn of_all(mut failures: Vec<Self>) -> Self {
        if failures.len() == 1 {
            return failures.remove(0);
        }
        let common = |a, b| if a == b { a } else { ErrorKind::Lost };
        let kind = failures.iter().map(Self::kind).reduce(common).unwrap_or(ErrorKind::Lost);
        let each: Vec<_> = failures.iter().map(|e| crate::support::causes::chain(e)).collect();
        Self::new(kind, format!("could not connect to any server ({})", each.join("; ")))
    }

    /// The same, with the error that caused it.
    #[must_use]
    pub fn because(self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { cause: Some(cause.into()), ..self }
    }

    /// Of which kind it is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }
}
