//! Where a request carries its token: header, cookie, query, in this order.
//!
//! Pure. Knows no key and no claim.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName};

use super::settings::{Carriers, Header};
use super::token::Refused;
use crate::support::form;

/// Which carrier brought a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    Header,
    Cookie,
    Query,
}

impl Carrier {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Cookie => "cookie",
            Self::Query => "query",
        }
    }
}

/// Why a request's token cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The request is ambiguous or too large. This has nothing to do with keys.
    Request(&'static str),
    /// The token is refused, like one that fails verification.
    Token(Refused),
}

/// Returns the first carrier that has a token, and the token. With `bearer_only`, carriers are ignored that a browser or a
/// proxy fills for any page.
pub(super) fn find<'a>(
    carriers: &Carriers,
    bearer_only: bool,
    headers: &'a HeaderMap,
    query: Option<&'a str>,
) -> Result<Option<(Carrier, Cow<'a, str>)>, Unreadable> {
    if carriers.header == Header::Bearer
        && let Some(token) = bearer(headers)?
    {
        return Ok(Some((Carrier::Header, token.into())));
    }
    if bearer_only {
        return Ok(None);
    }
    if let Header::Named(name) = &carriers.header
        && let Some(token) = in_header(headers, name)?
    {
        return Ok(Some((Carrier::Header, token.into())));
    }
    if let Some(name) = &carriers.cookie
        && let Some(token) = in_cookie(headers, name)?
    {
        return Ok(Some((Carrier::Cookie, token.into())));
    }
    if let Some(name) = &carriers.query
        && let Some(token) = in_query(query.unwrap_or_default(), name)?
    {
        return Ok(Some((Carrier::Query, token)));
    }
    Ok(None)
}

/// RFC 6750 section 2.1. Another scheme, such as a proxy's Basic, is ignored.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Unreadable> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Unreadable::Request("there is more than one `Authorization` header"));
    }
    let bytes = value.as_bytes();
    let scheme_ends = bytes.iter().position(|byte| byte.is_ascii_whitespace()).unwrap_or(bytes.len());
    if !bytes[..scheme_ends].eq_ignore_ascii_case(b"bearer") {
        return Ok(None);
    }
    let token = std::str::from_utf8(&bytes[scheme_ends..]).map_err(|_| Unreadable::Token(Refused::Malformed))?;
    Ok(Some(token.trim_matches(' ')))
}

/// A header that holds nothing but the token. An empty one counts as absent.
fn in_header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Unreadable> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        // One of them may be the client's own.
        return Err(Unreadable::Request("there is more than one header with a token"));
    }
    let token = std::str::from_utf8(value.as_bytes()).map_err(|_| Unreadable::Token(Refused::Malformed))?.trim_matches(' ');
    Ok(Some(token).filter(|token| !token.is_empty()))
}

/// RFC 6265 section 5.4. An empty cookie counts as cleared.
fn in_cookie<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Unreadable> {
    let mut found = None;
    for line in headers.get_all(COOKIE) {
        for pair in line.as_bytes().split(|byte| *byte == b';') {
            let pair = pair.trim_ascii();
            let Some(value) = pair.strip_prefix(name.as_bytes()).and_then(|rest| rest.trim_ascii_start().strip_prefix(b"=")) else {
                continue;
            };
            let value = value.trim_ascii();
            let value = value.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\"")).unwrap_or(value);
            if value.is_empty() {
                continue;
            }
            let value = std::str::from_utf8(value).map_err(|_| Unreadable::Token(Refused::Malformed))?;
            // A neighbouring host or another path may have set the second one: trust neither.
            if found.replace(value).is_some_and(|other| other != value) {
                return Err(Unreadable::Token(Refused::TwoCookies));
            }
        }
    }
    Ok(found)
}

/// RFC 6750 section 2.3. An empty parameter counts as absent: a form field that was left empty.
fn in_query<'a>(query: &'a str, name: &str) -> Result<Option<Cow<'a, str>>, Unreadable> {
    let mut found = None;
    for (key, value) in form::pairs(query) {
        if *key != *name.as_bytes() || value.is_empty() {
            continue;
        }
        if found.is_some() {
            return Err(Unreadable::Request("the token is in the query more than once"));
        }
        let text = match value {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
        };
        found = Some(text.ok_or(Unreadable::Token(Refused::Malformed))?);
    }
    Ok(found)
}
