use http::{Request, StatusCode};

use super::*;

fn origins(listed: &[&str], public: Option<&str>, hosts: Option<&[&str]>) -> Origins {
    Origins {
        listed: listed.iter().map(ToString::to_string).collect(),
        any: listed == ["*"],
        credentials: true,
        public: public.map(str::to_owned),
        hosts: hosts.map(|hosts| hosts.iter().map(ToString::to_string).collect()),
    }
}

fn request(headers: &[(&'static str, &str)]) -> Parts {
    let mut request = Request::builder().uri("/events");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn classify(origins: &Origins, host: &str, origin: &str, tls: bool) -> Origin {
    origins.classify(&request(&[("host", host), ("origin", origin)]), tls)
}

#[test]
fn the_same_origin_has_the_same_scheme_host_and_port() {
    let plain = origins(&[], None, None);
    assert_eq!(classify(&plain, "a.example:8080", "http://A.example:8080", false), Origin::Same);
    assert_eq!(classify(&plain, "a.example:80", "http://a.example", false), Origin::Same);
    assert_eq!(classify(&plain, "a.example", "https://a.example", true), Origin::Same);
    for (origin, tls) in [("https://a.example", false), ("http://a.example:81", false), ("http://b.example", false), ("null", false)] {
        assert_eq!(classify(&plain, "a.example", origin, tls), Origin::Foreign, "{origin}");
    }
    let two = request(&[("host", "a.example"), ("origin", "http://a.example"), ("origin", "http://b.example")]);
    assert_eq!(plain.classify(&two, false), Origin::Foreign);
    let proxied = origins(&[], Some("https://live.example"), None);
    assert_eq!(classify(&proxied, "inner:8080", "https://live.example", false), Origin::Same);
    assert_eq!(classify(&proxied, "inner:8080", "http://inner:8080", false), Origin::Foreign);
}

#[test]
fn listed_origins_get_their_headers_and_others_none() {
    let some = origins(&["https://dash.example"], None, None);
    let mut headers = HeaderMap::new();
    some.answer(&classify(&some, "a", "https://dash.example", false), &mut headers);
    assert_eq!(headers["access-control-allow-origin"], "https://dash.example");
    assert_eq!(headers["access-control-allow-credentials"], "true");
    assert_eq!(headers["vary"], "Origin");
    let mut headers = HeaderMap::new();
    some.answer(&classify(&some, "a", "https://other.example", false), &mut headers);
    assert!(!headers.contains_key("access-control-allow-origin"));
    assert_eq!(headers["vary"], "Origin");
}

#[test]
fn a_star_is_never_joined_by_credentials() {
    let any = origins(&["*"], None, None);
    let mut headers = HeaderMap::new();
    any.answer(&classify(&any, "a", "https://x.example", false), &mut headers);
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert!(!headers.contains_key("access-control-allow-credentials"));
}

#[test]
fn a_cookie_from_another_site_without_origin_is_refused() {
    let plain = origins(&[], None, None);
    let allow = |headers: &[(&'static str, &str)]| {
        let request = request(headers);
        plain.allow(&plain.classify(&request, false), &request.headers).map_err(|p| p.status())
    };
    assert_eq!(allow(&[]), Ok(()));
    assert_eq!(allow(&[("sec-fetch-site", "cross-site")]), Ok(()));
    assert_eq!(allow(&[("sec-fetch-site", "same-origin"), ("cookie", "a=b")]), Ok(()));
    assert_eq!(allow(&[("sec-fetch-site", "cross-site"), ("cookie", "a=b")]), Err(StatusCode::FORBIDDEN));
    assert_eq!(allow(&[("host", "a"), ("origin", "http://b")]), Err(StatusCode::FORBIDDEN));
}

#[test]
fn only_the_names_of_this_server_are_answered() {
    let some = origins(&[], None, Some(&["localhost", "127.0.0.1", "[::1]", "ported.example:8443"]));
    let host = |host: &str| some.host(&request(&[("host", host)])).map_err(|p| p.status());
    for good in ["localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1:9", "[::1]:8080", "[::1]", "ported.example:8443"] {
        assert_eq!(host(good), Ok(()), "{good}");
    }
    for bad in ["evil.example", "evil.example:8080", "localhost.evil.example", "ported.example:1", "::1"] {
        assert_eq!(host(bad), Err(StatusCode::MISDIRECTED_REQUEST), "{bad}");
    }
    assert_eq!(some.host(&request(&[])).map_err(|p| p.status()), Err(StatusCode::BAD_REQUEST));
    let two = request(&[("host", "localhost"), ("host", "localhost")]);
    assert_eq!(some.host(&two).map_err(|p| p.status()), Err(StatusCode::BAD_REQUEST));
    let (absolute, ()) = Request::builder().uri("http://evil.example/").header("host", "localhost").body(()).unwrap().into_parts();
    assert_eq!(some.host(&absolute).map_err(|p| p.status()), Err(StatusCode::MISDIRECTED_REQUEST));
}
