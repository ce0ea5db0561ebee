//! Which page a request comes from, and which host name it uses: `Origin`, CORS (Fetch standard, section 3.3) and `Host`.
//!
//! Pure. Knows the listed origins, the public URLs and the host names that are answered; no route and no token.

use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};

use super::forwarded::Seen;
use super::problem::Problem;

mod listed;

pub(crate) use listed::Listed;

/// What the configuration says of origins and names.
#[derive(Debug)]
pub(crate) struct Origins {
    pub(crate) listed: Vec<Listed>,
    /// Whether cookies may come along.
    pub(crate) credentials: bool,
    /// Request headers that pages of listed origins may send, as an answer names them.
    pub(crate) headers: HeaderValue,
    /// What "same origin" is; empty: the request's own scheme and host.
    pub(crate) public: Vec<String>,
    /// Names that are answered.
    pub(crate) hosts: Hosts,
}

/// Names that are answered, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hosts {
    /// All.
    All,
    /// These; a trusted proxy that says which name its client used speaks for the client.
    These(Vec<String>),
    /// The same, but whatever is forwarded the `Host` itself must be one of these: a foreign page whose name was made to resolve
    /// to this machine can forge what proxies send, but not its `Host`.
    Direct(Vec<String>),
}

/// Where a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It does not say.
    Absent,
    /// From this server's own pages.
    Same,
    /// From a page that is listed.
    Listed(HeaderValue),
    /// From any other.
    Foreign,
}

impl Origins {
    /// Where this request comes from.
    pub(crate) fn classify(&self, request: &Parts, seen: &Seen) -> Origin {
        let mut values = request.headers.get_all(header::ORIGIN).iter();
        let Some(value) = values.next() else { return Origin::Absent };
        if values.next().is_some() {
            // No browser sends two, and neither can be trusted more than the other.
            return Origin::Foreign;
        }
        let Ok(text) = value.to_str() else { return Origin::Foreign };
        let origin = normal(text);
        if self.listed.iter().any(|listed| listed.covers(&origin)) {
            return Origin::Listed(value.clone());
        }
        let own = |host: &str| normal(&format!("{}://{host}", if seen.tls { "https" } else { "http" })) == origin;
        let same = match self.public.as_slice() {
            [] => seen.host.as_deref().or_else(|| authority(request)).is_some_and(own),
            public => public.contains(&origin),
        };
        if same { Origin::Same } else { Origin::Foreign }
    }

    /// Whether all origins are listed.
    fn any(&self) -> bool {
        self.listed.contains(&Listed::Any)
    }

    /// Whether a page may have sent this request: the same or a listed origin, or none at all unless a browser says that
    /// it comes from elsewhere, with a cookie or another credential that is sent along for any page (`along`).
    ///
    /// # Errors
    /// With 403.
    pub(crate) fn allow(&self, origin: &Origin, headers: &HeaderMap, along: bool) -> Result<(), Problem> {
        match origin {
            Origin::Same | Origin::Listed(_) => Ok(()),
            Origin::Foreign => Err(Problem::foreign(
                "the `Origin` of this request is neither this server's own nor listed; see `server.cors.origins` and `server.public_url`",
            )),
            Origin::Absent => {
                let cross_site = headers.get("sec-fetch-site").is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"cross-site"));
                if cross_site && (along || headers.contains_key(header::COOKIE)) {
                    return Err(Problem::foreign("this request brings credentials from another site, and no `Origin`"));
                }
                Ok(())
            }
        }
    }

    /// What an answer tells the browser of this origin; on errors too.
    pub(crate) fn answer(&self, origin: &Origin, headers: &mut HeaderMap) {
        if self.listed.is_empty() {
            return;
        }
        let any = self.any();
        if !any {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        let Origin::Listed(value) = origin else { return };
        let value = if any { HeaderValue::from_static("*") } else { value.clone() };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, value);
        if self.credentials && !any {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after, www-authenticate"));
    }

    /// What a preflight is told beyond [`Self::answer`].
    pub(crate) fn preflight(&self, origin: &Origin, methods: &'static str, headers: &mut HeaderMap) {
        if !matches!(origin, Origin::Listed(_)) {
            return;
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers.clone());
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }

    /// Whether the server answers to the name that the request calls it by.
    ///
    /// # Errors
    /// As [`one_host`], else with 421.
    pub(crate) fn host(&self, request: &Parts, seen: &Seen) -> Result<(), Problem> {
        one_host(request)?;
        let (hosts, forwarded) = match &self.hosts {
            Hosts::All => return Ok(()),
            Hosts::These(hosts) => (hosts, seen.host.as_deref()),
            Hosts::Direct(hosts) => (hosts, None),
        };
        let Some(authority) = forwarded.or_else(|| authority(request)) else { return Err(Problem::misdirected()) };
        let authority = authority.to_ascii_lowercase();
        let name = name(&authority);
        if hosts.iter().any(|host| *host == authority || host.trim_end_matches('.') == name) {
            return Ok(());
        }
        Err(Problem::misdirected())
    }
}

/// Whether it is clear which name a request calls the server by.
///
/// # Errors
/// With 400 where HTTP/1.1 has no `Host`, where there are several (RFC 9112 section 3.2), where HTTP/2 has another in `:authority`, and
/// where one names a user.
pub(super) fn one_host(request: &Parts) -> Result<(), Problem> {
    let mut named = request.headers.get_all(header::HOST).iter();
    let first = named.next();
    if named.next().is_some() || (request.version == http::Version::HTTP_11 && first.is_none()) {
        return Err(Problem::bad_request("a request has exactly one `Host`"));
    }
    // Whoever reads the one must not take the request for another's than who reads the other (RFC 9113 section 8.3.1).
    let called = |text: &[u8]| str::from_utf8(text).map(|text| name(text).to_ascii_lowercase()).ok();
    if request.version == http::Version::HTTP_2
        && let (Some(authority), Some(host)) = (request.uri.authority(), first)
        && called(authority.as_str().as_bytes()) != called(host.as_bytes())
    {
        return Err(Problem::bad_request("`:authority` and `Host` name two hosts"));
    }
    if authority(request).into_iter().chain(first.and_then(|host| host.to_str().ok())).any(|host| host.contains('@')) {
        return Err(Problem::bad_request("a `Host` is a name or address, and perhaps a port"));
    }
    Ok(())
}

/// `host[:port]` as the request has it: `:authority` or the absolute form before `Host`.
pub(super) fn authority(request: &Parts) -> Option<&str> {
    match request.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers.get(header::HOST)?.to_str().ok(),
    }
    .filter(|a| !a.is_empty())
}

/// Without the port and the root's dot; an IPv6 address keeps its brackets.
pub(super) fn name(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    host.trim_end_matches('.')
}

/// An origin in lower case and without its scheme's own port, which browsers leave out.
fn normal(origin: &str) -> String {
    let origin = origin.to_ascii_lowercase();
    let own_port = match origin.split_once("://") {
        Some(("https", _)) => ":443",
        Some(("http", _)) => ":80",
        _ => return origin,
    };
    origin.strip_suffix(own_port).map(str::to_owned).unwrap_or(origin)
}

/// Reads the address of a server: `http` or `https`, and a host. Returns its origin as browsers write it.
pub(super) fn parse_public(text: &str) -> Option<String> {
    let (scheme, authority) = text.strip_suffix('/').unwrap_or(text).split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    matches!(&*scheme, "http" | "https").then_some(())?;
    Some(normal(&format!("{scheme}://{}", host_name(authority)?)))
}

/// Reads `host`, `host:port`, `1.2.3.4` or `[::1]:8080`, without user, path or white space. Returns it in lower case.
pub(super) fn host_name(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (&text[..address.len() + 2], port)
        }
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let label = |label: &str| {
                let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                !label.is_empty() && label.len() <= 63 && label.chars().all(good)
            };
            if !host.strip_suffix('.').unwrap_or(host).split('.').all(label) {
                return None;
            }
            (host, port)
        }
    };
    let good =
        port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.starts_with(|c: char| c.is_ascii_digit()) && p.parse::<u16>().is_ok());
    (good && host.len() <= 255).then_some(text)
}

#[cfg(test)]
mod tests;
