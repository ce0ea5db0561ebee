//! Where a token may stand, and which of several counts.

use super::*;

fn headers(lines: &[(&http::HeaderName, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, value.parse().expect("a header value"));
    }
    headers
}

fn token(sub: &str) -> String {
    hs256(&claims(json!({ "sub": sub })))
}

/// Who is let in; `-` is anonymous.
fn who(authenticator: &Authenticator, lines: &[(&http::HeaderName, &str)], query: &str) -> Result<String, AuthError> {
    let grant = authenticator.find(&headers(lines), Some(query), false, Timestamp::now())?;
    Ok(grant.identity().map_or_else(|| "-".to_owned(), |identity| identity.to_string()))
}

fn with_anonymous() -> Authenticator {
    let open = Settings { anonymous: open(), ..config(vec![secret()]) };
    Authenticator::new(open, TOKEN_BYTES)
}

#[test]
fn the_header_beats_the_cookie_and_the_cookie_the_query() {
    let authenticator = authenticator(vec![secret()]);
    let (a, b, c) = (token("a"), token("b"), token("c"));
    let (header, cookie, query) = (format!("Bearer {a}"), format!("brokercast={b}"), format!("x=1&access_token={c}"));
    assert_eq!(who(&authenticator, &[(&AUTHORIZATION, &header), (&COOKIE, &cookie)], &query).as_deref(), Ok("a"));
    assert_eq!(who(&authenticator, &[(&COOKIE, &cookie)], &query).as_deref(), Ok("b"));
    assert_eq!(who(&authenticator, &[], &query).as_deref(), Ok("c"));
    assert_eq!(who(&authenticator, &[], "").expect_err("none"), AuthError::Missing);
}

#[test]
fn a_carrier_that_fails_is_refused_even_where_others_would_do() {
    let authenticator = with_anonymous();
    assert_eq!(who(&authenticator, &[], "").as_deref(), Ok("-"));
    let cookie = format!("brokercast={}", token("b"));
    for line in ["Bearer rubbish", "Bearer", "Bearer ", "bearer a b"] {
        let refused = who(&authenticator, &[(&AUTHORIZATION, line), (&COOKIE, &cookie)], "").expect_err(line);
        assert!(matches!(refused, AuthError::Invalid(_)), "{line}: {refused:?}");
    }
    assert!(matches!(who(&authenticator, &[(&COOKIE, "brokercast=rubbish")], ""), Err(AuthError::Invalid(_))));
    assert!(matches!(who(&authenticator, &[], "access_token=rubbish"), Err(AuthError::Invalid(_))));
    assert!(matches!(who(&authenticator, &[], "access_token=%ff"), Err(AuthError::Invalid(_))));
}

#[test]
fn the_header_is_read_as_rfc_6750_says() {
    let authenticator = with_anonymous();
    let good = token("a");
    for line in [format!("Bearer {good}"), format!("bearer {good}"), format!("BEARER   {good}  ")] {
        assert_eq!(who(&authenticator, &[(&AUTHORIZATION, &line)], "").as_deref(), Ok("a"), "{line}");
    }
    // Another scheme is somebody else's.
    let cookie = format!("brokercast={good}");
    assert_eq!(who(&authenticator, &[(&AUTHORIZATION, "Basic dXNlcjpwYXNz")], "").as_deref(), Ok("-"));
    assert_eq!(who(&authenticator, &[(&AUTHORIZATION, "Basic x"), (&COOKIE, &cookie)], "").as_deref(), Ok("a"));
    assert_eq!(who(&authenticator, &[(&AUTHORIZATION, &format!("BearerX {good}"))], "").as_deref(), Ok("-"));
    let line = format!("Bearer {good}");
    let twice = who(&authenticator, &[(&AUTHORIZATION, &line), (&AUTHORIZATION, &line)], "");
    assert!(matches!(twice, Err(AuthError::Malformed(_))));
}

#[test]
fn a_cookie_counts_only_where_it_is_unambiguous() {
    let authenticator = with_anonymous();
    let (a, b) = (token("a"), token("b"));
    for line in [
        format!("brokercast={a}"),
        format!("x=1; brokercast={a}; y=2"),
        format!("x=1;brokercast={a};y"),
        format!("brokercast=\"{a}\""),
        format!("brokercast={a}; brokercast={a}"),
        format!("brokercast=; brokercast={a}"),
        format!("xbrokercast={b}; brokercast2={b}; brokercast={a}; Brokercast={b}"),
    ] {
        assert_eq!(who(&authenticator, &[(&COOKIE, &line)], "").as_deref(), Ok("a"), "{line}");
    }
    // HTTP/2 may send each in a line of its own.
    assert_eq!(who(&authenticator, &[(&COOKIE, "x=1"), (&COOKIE, &format!("brokercast={a}"))], "").as_deref(), Ok("a"));
    for line in ["brokercast=", "brokercast", "", ";;;", "brokercast=\"\"", "=x"] {
        assert_eq!(who(&authenticator, &[(&COOKIE, line)], "").as_deref(), Ok("-"), "{line}");
    }
    let planted = format!("brokercast={a}; brokercast={b}");
    assert_eq!(who(&authenticator, &[(&COOKIE, &planted)], "").expect_err("two"), AuthError::Invalid(Refused::TwoCookies));
    let (first, second) = (format!("brokercast={a}"), format!("brokercast={b}"));
    let planted = who(&authenticator, &[(&COOKIE, &first), (&COOKIE, &second)], "");
    assert_eq!(planted.expect_err("two"), AuthError::Invalid(Refused::TwoCookies));
}

#[test]
fn the_query_is_decoded() {
    let authenticator = with_anonymous();
    let good = token("a");
    let escaped = good.replace('.', "%2E");
    for query in [format!("access_token={escaped}"), format!("access%5Ftoken={good}"), format!("access_token=&access_token={good}&&=")] {
        assert_eq!(who(&authenticator, &[], &query).as_deref(), Ok("a"), "{query}");
    }
    for query in ["access_token=", "access_token", "", "&&&", "%ff=1", "Access_Token=x"] {
        assert_eq!(who(&authenticator, &[], query).as_deref(), Ok("-"), "{query}");
    }
    let twice = who(&authenticator, &[], &format!("access_token={good}&access_token={good}"));
    assert!(matches!(twice, Err(AuthError::Malformed(_))));
    assert!(authenticator.find(&HeaderMap::new(), None, false, Timestamp::now()).is_ok());
}

#[test]
fn carriers_that_are_off_are_not_looked_at() {
    let off = Carriers { header: Header::Off, cookie: None, query: None };
    let authenticator = Authenticator::new(Settings { carriers: off, ..config(vec![secret()]) }, TOKEN_BYTES);
    let good = token("a");
    let (header, cookie) = (format!("Bearer {good}"), format!("brokercast={good}"));
    let everywhere = who(&authenticator, &[(&AUTHORIZATION, &header), (&COOKIE, &cookie)], &format!("access_token={good}"));
    assert_eq!(everywhere.expect_err("off"), AuthError::Missing);
}

#[test]
fn publishing_takes_the_header_only() {
    let authenticator = authenticator(vec![secret()]);
    let good = hs256(&claims(json!({ "publish": "b.>" })));
    let cookie = headers(&[(&COOKIE, &format!("brokercast={good}"))]);
    assert_eq!(authenticator.find(&cookie, None, true, Timestamp::now()).expect_err("no header"), AuthError::Missing);
    let grant = authenticator.find(&bearer(&good), None, true, Timestamp::now()).expect("a grant");
    assert!(grant.permits_publish(&"b.x".parse().expect("a subject")));
    let only_reading = Settings { anonymous: open(), ..config(vec![]) };
    let only_reading = Authenticator::new(only_reading, TOKEN_BYTES);
    assert_eq!(only_reading.find(&HeaderMap::new(), None, true, Timestamp::now()).expect_err("not open"), AuthError::Missing);
}
