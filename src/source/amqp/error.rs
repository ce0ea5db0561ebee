//! What an error of the AMQP library means. Knows the library's errors and TLS's; not what was asked.

use lapin::ErrorKind as Library;
use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::ShortString;

use crate::source::{ErrorKind, SourceError, tls};

/// A question that failed: `what` says which.
pub(in crate::source) fn failed(what: impl Into<String>, error: lapin::Error) -> SourceError {
    SourceError::new(kind(&error), what).because(error)
}

/// Whether the broker answered with this error to what concerns one channel only.
pub(in crate::source) fn is(error: &lapin::Error, what: AMQPSoftError) -> bool {
    matches!(error.kind(), Library::ProtocolError(e) if *e.kind() == AMQPErrorKind::Soft(what))
}

/// What the broker said of it, if it is the broker's.
pub(in crate::source) fn said(error: &lapin::Error) -> &str {
    match error.kind() {
        Library::ProtocolError(error) => error.get_message().as_str(),
        _ => "",
    }
}

/// Whether the broker ended the connection over a fault of its own: it does so at a message that it cannot deliver.
pub(in crate::source) fn is_internal(error: &SourceError) -> bool {
    let internal = AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR);
    cause(error).is_some_and(|error| matches!(error.kind(), Library::ProtocolError(e) if *e.kind() == internal))
}

/// Whether the node that was asked runs no replica of a stream: it has none, or none that is up yet. Another node may.
pub(super) fn lacks_replica(error: &lapin::Error) -> bool {
    matches!(error.kind(), Library::ProtocolError(error) if is_about_replica(error))
}

/// Whether a failure comes from that.
pub(super) fn is_lack_of_replica(error: &SourceError) -> bool {
    cause(error).is_some_and(lacks_replica)
}

fn cause(error: &SourceError) -> Option<&lapin::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

/// By its words: the code is that of an argument that is wrong.
fn is_about_replica(error: &AMQPError) -> bool {
    *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
        && error.get_message().as_str().contains("replica on the local node")
}

/// A queue, and the setting that it comes from: what the broker has named is a queue of this process, for an exchange.
pub(in crate::source) fn named(queue: &ShortString) -> String {
    let key = if queue.as_str().starts_with("amq.gen") { "exchange" } else { "queue" };
    format!("queue `{queue}` (`{key}`)")
}

/// The end of a consumer: an error of the channel or connection, or a cancellation by the broker.
pub(in crate::source) fn lost(queue: &ShortString, error: Option<lapin::Error>) -> SourceError {
    let Some(error) = error else {
        return SourceError::missing(format!("{} was deleted, or the broker stopped reading from it", named(queue)));
    };
    // Reading declares nothing: a failed precondition is an acknowledgement that is unknown to the broker, or late.
    let kind = if is(&error, AMQPSoftError::PRECONDITIONFAILED) { ErrorKind::Protocol } else { kind(&error) };
    SourceError::new(kind, format!("lost the broker while reading {}", named(queue))).because(error)
}

/// Of which kind an error is.
pub(in crate::source) fn kind(error: &lapin::Error) -> ErrorKind {
    match error.kind() {
        Library::ProtocolError(error) => answered(error),
        Library::IOError(error) => tls::kind(&**error).unwrap_or(ErrorKind::Lost),
        Library::AuthProviderError(_) => ErrorKind::Configuration,
        Library::InvalidProtocolVersion(_) | Library::ParsingError(_) | Library::SerialisationError(_) => ErrorKind::Protocol,
        // A missed heartbeat, and what is used after its connection has ended.
        _ => ErrorKind::Lost,
    }
}

/// What the broker says by a reply code.
fn answered(error: &AMQPError) -> ErrorKind {
    match error.kind() {
        AMQPErrorKind::Soft(soft) => match soft {
            AMQPSoftError::ACCESSREFUSED | AMQPSoftError::RESOURCELOCKED => ErrorKind::Denied,
            AMQPSoftError::NOTFOUND | AMQPSoftError::NOROUTE | AMQPSoftError::NOCONSUMERS => ErrorKind::Missing,
            AMQPSoftError::PRECONDITIONFAILED if is_about_replica(error) || is_full(error.get_message().as_str()) => ErrorKind::Lost,
            AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::CONTENTTOOLARGE => ErrorKind::Configuration,
        },
        AMQPErrorKind::Hard(hard) => match hard {
            // The broker goes down, or its operator has closed the connection.
            AMQPHardError::CONNECTIONFORCED | AMQPHardError::RESOURCEERROR => ErrorKind::Lost,
            AMQPHardError::INVALIDPATH => ErrorKind::Missing,
            AMQPHardError::NOTALLOWED => not_allowed(error.get_message().as_str()),
            AMQPHardError::NOTIMPLEMENTED => ErrorKind::Configuration,
            // Errors of frames and of commands, and the broker's own faults.
            _ => ErrorKind::Protocol,
        },
    }
}

/// Whether there are as many queues or exchanges as there may be. The code is that of an argument that is wrong, and names stand before this.
fn is_full(said: &str) -> bool {
    said.contains(" limit ") && said.ends_with(" is reached")
}

/// RabbitMQ has one code for a vhost that does not exist, one that it has not brought up, one that is not ours, and a user, a vhost or
/// a node that has as many connections or channels as it may have.
fn not_allowed(said: &str) -> ErrorKind {
    match said {
        said if said.contains(" limit (") || said.contains(" limit of (") => ErrorKind::Lost,
        said if said.contains("not found") => ErrorKind::Missing,
        said if said.contains("is down") => ErrorKind::Lost,
        _ => ErrorKind::Denied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_codes_have_kinds() {
        for (code, said, expected) in [
            (403, "ACCESS_REFUSED - Login was refused", ErrorKind::Denied),
            (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue", ErrorKind::Denied),
            (404, "NOT_FOUND - no queue 'q' in vhost '/'", ErrorKind::Missing),
            (406, "PRECONDITION_FAILED - inequivalent arg 'type'", ErrorKind::Configuration),
            (406, "PRECONDITION_FAILED - stream queue 's' in vhost '/' does not have a running replica on the local node", ErrorKind::Lost),
            (406, "PRECONDITION_FAILED - queue 's' in vhost '/' does not have a replica on the local node", ErrorKind::Lost),
            (406, "PRECONDITION_FAILED - queue 's' in vhost '/' does not a have a replica on the local node", ErrorKind::Lost),
            (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", ErrorKind::Lost),
            (530, "NOT_ALLOWED - vhost v not found", ErrorKind::Missing),
            (530, "NOT_ALLOWED - vhost 'v' is down", ErrorKind::Lost),
            (530, "NOT_ALLOWED - access to vhost 'v' refused for user 'u'", ErrorKind::Denied),
            (530, "NOT_ALLOWED - access to vhost 'v' refused for user 'u': user connection limit (1) is reached", ErrorKind::Lost),
            (530, "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit (1) is reached", ErrorKind::Lost),
            (
                530,
                "NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user limit of (1)",
                ErrorKind::Lost,
            ),
            (406, "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost '/' (1) is reached", ErrorKind::Lost),
            (406, "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in cluster (1) is reached", ErrorKind::Lost),
            (406, "PRECONDITION_FAILED - cannot declare exchange 'x' in vhost '/': exchange limit of 1 is reached", ErrorKind::Lost),
            (
                406,
                "PRECONDITION_FAILED - inequivalent arg 'x-a' for queue ': queue limit is reached' in vhost '/'",
                ErrorKind::Configuration,
            ),
            (540, "NOT_IMPLEMENTED - prefetch_size!=0 (1)", ErrorKind::Configuration),
            (501, "FRAME_ERROR - type 9", ErrorKind::Protocol),
            (541, "INTERNAL_ERROR", ErrorKind::Protocol),
        ] {
            let error = AMQPError::from_id(code, said.into()).expect("a reply code");
            let error = lapin::Error::from(Library::ProtocolError(error));
            assert_eq!(failed("it failed", error).kind(), expected, "{code} {said}");
        }
        let late = AMQPError::from_id(406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out".into());
        assert_eq!(lost(&"q".into(), Some(Library::ProtocolError(late.expect("a code")).into())).kind(), ErrorKind::Protocol);
        let cut = lapin::Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(failed("it failed", cut).kind(), ErrorKind::Lost);
    }
}
