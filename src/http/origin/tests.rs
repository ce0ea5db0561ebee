use http::{Request, StatusCode};

use super::*;

fn origins(listed: &[&str], public: Option<&str>, hosts: Option<&[&str]>) -> Origins {
    Origins {
        listed: listed.iter().map(|text| Listed::parse(text).unwrap()).collect(),
        credentials: true,
        headers: HeaderValue::from_static("authorization"),
        public: public.map(str::to_owned).into_iter().collect(),
        hosts: hosts.map_or(Hosts::All, |hosts| Hosts::These(hosts.iter().map(ToString::to_string).collect())),
    }
}

fn direct(tls: bool) -> Seen {
    Seen { client: std::net::Ipv4Addr::LOCALHOST.into(), tls, host: None }
}

fn request(headers: &[(&'static str, &str)]) -> Parts {
    let mut request = Request::builder().uri("/events");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn classify(origins: &Origins, host: &str, origin: &str, tls: bool) -> Origin {
    origins.classify(&request(&[("host", host), ("origin", origin)]), &direct(tls))
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
    assert_eq!(plain.classify(&two, &direct(false)), Origin::Foreign);
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
    let allow_with = |headers: &[(&'static str, &str)], along: bool| {
        let request = request(headers);
        plain.allow(&plain.classify(&request, &direct(false)), &request.headers, along).map_err(|p| p.status())
    };
    let allow = |headers: &[(&'static str, &str)]| allow_with(headers, false);
    assert_eq!(allow_with(&[("sec-fetch-site", "cross-site")], true), Err(StatusCode::FORBIDDEN));
    assert_eq!(allow_with(&[("sec-fetch-site", "same-site")], true), Ok(()));
    assert_eq!(allow(&[]), Ok(()));
    assert_eq!(allow(&[("sec-fetch-site", "cross-site")]), Ok(()));
    assert_eq!(allow(&[("sec-fetch-site", "same-origin"), ("cookie", "a=b")]), Ok(()));
    assert_eq!(allow(&[("sec-fetch-site", "cross-site"), ("cookie", "a=b")]), Err(StatusCode::FORBIDDEN));
    assert_eq!(allow(&[("host", "a"), ("origin", "http://b")]), Err(StatusCode::FORBIDDEN));
}

#[test]
fn only_the_names_of_this_server_are_answered() {
    let some = origins(&[], None, Some(&["localhost", "127.0.0.1", "[::1]", "ported.example:8443"]));
    let host = |host: &str| some.host(&request(&[("host", host)]), &direct(false)).map_err(|p| p.status());
    for good in ["localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1:9", "[::1]:8080", "[::1]", "ported.example:8443"] {
        assert_eq!(host(good), Ok(()), "{good}");
    }
    for bad in ["evil.example", "evil.example:8080", "localhost.evil.example", "ported.example:1", "::1"] {
        assert_eq!(host(bad), Err(StatusCode::MISDIRECTED_REQUEST), "{bad}");
    }
    assert_eq!(some.host(&request(&[]), &direct(false)).map_err(|p| p.status()), Err(StatusCode::BAD_REQUEST));
    let two = request(&[("host", "localhost"), ("host", "localhost")]);
    assert_eq!(some.host(&two, &direct(false)).map_err(|p| p.status()), Err(StatusCode::BAD_REQUEST));
    assert_eq!(host("user@localhost"), Err(StatusCode::BAD_REQUEST));
    for (authority, host, expected) in [
        ("localhost:8080", "LOCALHOST", Ok(())),
        ("localhost", "127.0.0.1", Err(StatusCode::BAD_REQUEST)),
        ("localhost", "", Err(StatusCode::BAD_REQUEST)),
    ] {
        let request = Request::builder().version(http::Version::HTTP_2).uri(format!("http://{authority}/")).header("host", host);
        let (request, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(some.host(&request, &direct(false)).map_err(|p| p.status()), expected, "{authority} {host}");
    }
    let (absolute, ()) = Request::builder().uri("http://evil.example/").header("host", "localhost").body(()).unwrap().into_parts();
    assert_eq!(some.host(&absolute, &direct(false)).map_err(|p| p.status()), Err(StatusCode::MISDIRECTED_REQUEST));
}

#[test]
fn what_a_trusted_proxy_forwards_is_the_requests_own_origin_and_name() {
    let plain = origins(&[], None, None);
    let seen = Seen { tls: true, host: Some("live.example".to_owned()), ..direct(false) };
    let forwarded = |origin: &str| plain.classify(&request(&[("host", "inner:8080"), ("origin", origin)]), &seen);
    assert_eq!(forwarded("https://live.example"), Origin::Same);
    assert_eq!(forwarded("https://inner:8080"), Origin::Foreign);
    assert_eq!(forwarded("http://live.example"), Origin::Foreign);

    let names = vec!["live.example".to_owned()];
    let host = |hosts: Hosts, host: &str| Origins { hosts, ..origins(&[], None, None) }.host(&request(&[("host", host)]), &seen).is_ok();
    assert!(host(Hosts::These(names.clone()), "inner:8080"));
    assert!(!host(Hosts::Direct(names.clone()), "inner:8080") && host(Hosts::Direct(names), "live.example"));
}

#[test]
fn one_of_several_public_addresses_is_the_same_origin() {
    let two = Origins { public: vec!["https://a.example".to_owned(), "https://b.example".to_owned()], ..origins(&[], None, None) };
    for (origin, expected) in
        [("https://b.example", Origin::Same), ("https://A.example:443", Origin::Same), ("http://inner", Origin::Foreign)]
    {
        assert_eq!(classify(&two, "inner", origin, false), expected, "{origin}");
    }
}
