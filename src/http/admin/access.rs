//! Who may ask the admin listener, and what. Pure.

use http::request::Parts;
use http::{Method, header};
use subtle::ConstantTimeEq as _;

use super::super::connection::Peer;
use super::super::origin::{authority, name};
use super::super::problem::Problem;
use crate::settings::Secret;

/// What the configuration says of the admin listener.
#[derive(Debug)]
pub(crate) struct Access {
    /// What a request has to bring as a bearer token; `None`: nothing.
    pub(crate) token: Option<Secret>,
    /// Whether a request's connection has to show a client's certificate.
    pub(crate) certificates: bool,
    /// Whether only this machine reaches the listener.
    pub(crate) loopback: bool,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matter {
    /// Whether the process lives and is ready: everybody may ask that.
    Probe,
    /// How it is doing: no names of clients, and nothing changes.
    State,
    /// Who is there and what is allowed, or a change of it.
    Control,
}

impl Matter {
    /// What a path is about. All that is answered under a path is about the same.
    pub(super) fn of(path: &str) -> Self {
        match path.split('/').nth(1).unwrap_or_default() {
            "livez" | "readyz" => Self::Probe,
            "reload" | "revocations" | "streams" | "explain" => Self::Control,
            // And what is not there.
            _ => Self::State,
        }
    }
}

impl Access {
    /// Whether a request may be answered.
    ///
    /// # Errors
    /// With 401 where a token is asked for and missing or wrong, else 403.
    pub(super) fn allow(&self, matter: Matter, request: &Parts) -> Result<(), Problem> {
        if matter == Matter::Probe {
            return Ok(());
        }
        if self.certificates && !request.extensions.get::<Peer>().is_some_and(|peer| peer.verified) {
            return Err(Problem::forbidden("the admin listener asks for a client certificate here; see `admin.tls.client_ca`"));
        }
        if let Some(token) = &self.token {
            // A page cannot know it.
            return if brings(request, token) { Ok(()) } else { Err(Problem::admin_token()) };
        }
        if request.headers.contains_key(header::ORIGIN) {
            return Err(Problem::forbidden("the admin listener answers no web page; see `admin.token_file`"));
        }
        if matter == Matter::State || self.certificates {
            return Ok(());
        }
        if !self.loopback {
            return Err(Problem::forbidden(
                "this is not answered beyond loopback without a token: set `admin.token_file` or `admin.tls.client_ca`",
            ));
        }
        // A page whose name was made to resolve to this machine sends no `Origin` with its own requests.
        if authority(request).is_some_and(is_loopback) {
            return Ok(());
        }
        let changes = !matches!(request.method, Method::GET | Method::HEAD);
        let what = if changes { "changed" } else { "told" };
        Err(Problem::forbidden(format!("nothing is {what} under a `Host` that is no loopback name or address; see `admin.token_file`")))
    }
}

/// Whether a request's bearer token (RFC 6750 section 2.1) is this one.
fn brings(request: &Parts, token: &Secret) -> bool {
    let mut values = request.headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Some((scheme, given)) = value.as_bytes().split_at_checked(7) else { return false };
    scheme.eq_ignore_ascii_case(b"bearer ") && given.trim_ascii().ct_eq(token.expose()).into()
}

/// Whether a `Host` is a name or address of the machine itself.
fn is_loopback(authority: &str) -> bool {
    let name = name(authority).to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, headers: &[(&str, &str)], verified: bool) -> Parts {
        let mut builder = http::Request::builder().method(method).uri("/x");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let (mut parts, ()) = builder.body(()).unwrap().into_parts();
        parts.extensions.insert(Peer { address: "127.0.0.1:1".parse().ok(), tls: false, connection: 0, verified });
        parts
    }

    fn status(access: &Access, matter: Matter, request: &Parts) -> u16 {
        access.allow(matter, request).map_or_else(|problem| problem.status().as_u16(), |()| 200)
    }

    #[test]
    fn a_web_page_reaches_nothing_but_the_probes() {
        let access = Access { token: None, certificates: false, loopback: true };
        let page = request(Method::GET, &[("host", "127.0.0.1:8081"), ("origin", "http://127.0.0.1:8081")], false);
        assert_eq!([Matter::Probe, Matter::State, Matter::Control].map(|matter| status(&access, matter, &page)), [200, 403, 403]);
        for (host, expected) in [
            ("localhost:8081", 200),
            ("LOCALHOST", 200),
            ("127.8.8.8", 200),
            ("[::1]:8081", 200),
            ("rebound.example.com", 403),
            ("localhost.example.com", 403),
            ("192.168.0.1", 403),
            ("user@localhost", 403),
            ("", 403),
        ] {
            for method in [Method::GET, Method::POST, Method::DELETE] {
                assert_eq!(status(&access, Matter::Control, &request(method, &[("host", host)], false)), expected, "{host}");
            }
            assert_eq!(status(&access, Matter::State, &request(Method::GET, &[("host", host)], false)), 200, "{host}");
        }
    }

    #[test]
    fn beyond_loopback_only_the_state_is_told_without_a_token_or_certificate() {
        let open = Access { token: None, certificates: false, loopback: false };
        let plain = request(Method::GET, &[("host", "10.0.0.1:8081")], false);
        assert_eq!([Matter::Probe, Matter::State, Matter::Control].map(|matter| status(&open, matter, &plain)), [200, 200, 403]);
        let certified = Access { certificates: true, ..open };
        assert_eq!([Matter::Probe, Matter::State, Matter::Control].map(|matter| status(&certified, matter, &plain)), [200, 403, 403]);
        let shown = request(Method::POST, &[("host", "10.0.0.1:8081")], true);
        assert_eq!(status(&certified, Matter::Control, &shown), 200);
    }

    #[test]
    fn with_a_token_all_but_the_probes_ask_for_it() {
        let access = Access { token: Some(Secret::new("s3cret")), certificates: false, loopback: false };
        for (value, expected) in [
            ("Bearer s3cret", 200),
            ("bearer  s3cret ", 200),
            ("Bearer s3cre", 401),
            ("Bearer s3cret2", 401),
            ("Bearer ", 401),
            ("s3cret", 401),
            ("Basic s3cret", 401),
        ] {
            let with = request(Method::POST, &[("authorization", value), ("origin", "https://a.example")], false);
            for matter in [Matter::State, Matter::Control] {
                assert_eq!(status(&access, matter, &with), expected, "{value}");
            }
        }
        let without = request(Method::GET, &[], false);
        assert_eq!([Matter::Probe, Matter::State, Matter::Control].map(|matter| status(&access, matter, &without)), [200, 401, 401]);
        let twice = request(Method::GET, &[("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")], false);
        assert_eq!(status(&access, Matter::State, &twice), 401);
    }
}
