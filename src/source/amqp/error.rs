//! What an error of the AMQP library means. Knows the library's errors and TLS's; not what was asked.

use lapin::ErrorKind as Library;
use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

use crate::source::{ErrorKind, SourceError, tls};

/// A question that failed: `what` says which.
pub(in crate::source) fn failed(what: impl Into<String>, error: lapin::Error) -> SourceError {
    SourceError::new(kind(&error), what).because(error)
}

/// Whether the broker answered with this error to what concerns one channel only.
pub(in crate::source) fn is(error: &lapin::Error, what: AMQPSoftError) -> bool {
    matches!(error.kind(), Library::ProtocolError(e) if *e.kind() == AMQPErrorKind::Soft(what))
}

/// The end of a consumer. Reading declares nothing, so that a failed precondition is an acknowledgement that the
/// broker did not expect, or that came too late for it.
pub(in crate::source) fn ended(what: impl Into<String>, error: lapin::Error) -> SourceError {
    let kind = if is(&error, AMQPSoftError::PRECONDITIONFAILED) { ErrorKind::Protocol } else { kind(&error) };
    SourceError::new(kind, what).because(error)
}

fn kind(error: &lapin::Error) -> ErrorKind {
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
            AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::CONTENTTOOLARGE => ErrorKind::Configuration,
        },
        AMQPErrorKind::Hard(hard) => match hard {
            // The broker goes down, or its operator has closed the connection.
            AMQPHardError::CONNECTIONFORCED | AMQPHardError::RESOURCEERROR => ErrorKind::Lost,
            AMQPHardError::INVALIDPATH => ErrorKind::Missing,
            AMQPHardError::NOTALLOWED => vhost(error.get_message().as_str()),
            AMQPHardError::NOTIMPLEMENTED => ErrorKind::Configuration,
            AMQPHardError::FRAMEERROR
            | AMQPHardError::SYNTAXERROR
            | AMQPHardError::COMMANDINVALID
            | AMQPHardError::CHANNELERROR
            | AMQPHardError::UNEXPECTEDFRAME
            | AMQPHardError::INTERNALERROR => ErrorKind::Protocol,
        },
    }
}

/// RabbitMQ has one code for a vhost that does not exist, one that it has not brought up, and one that is not ours.
fn vhost(said: &str) -> ErrorKind {
    match said {
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
            (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", ErrorKind::Lost),
            (530, "NOT_ALLOWED - vhost v not found", ErrorKind::Missing),
            (530, "NOT_ALLOWED - vhost 'v' is down", ErrorKind::Lost),
            (530, "NOT_ALLOWED - access to vhost 'v' refused for user 'u'", ErrorKind::Denied),
            (540, "NOT_IMPLEMENTED - prefetch_size!=0 (1)", ErrorKind::Configuration),
            (501, "FRAME_ERROR - type 9", ErrorKind::Protocol),
            (541, "INTERNAL_ERROR", ErrorKind::Protocol),
        ] {
            let error = AMQPError::from_id(code, said.into()).expect("a reply code");
            let error = lapin::Error::from(Library::ProtocolError(error));
            assert_eq!(failed("it failed", error).kind(), expected, "{code} {said}");
        }
        let late = AMQPError::from_id(406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out".into());
        assert_eq!(ended("it ended", Library::ProtocolError(late.expect("a code")).into()).kind(), ErrorKind::Protocol);
        let cut = lapin::Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(failed("it failed", cut).kind(), ErrorKind::Lost);
    }
}
