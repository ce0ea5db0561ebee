use super::*;
use crate::support::network;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn proxies(trusted: &[&str], headers: Headers) -> Proxies {
    Proxies { trusted: trusted.iter().map(|text| network::Entry::parse(text).expect("a network")).collect(), headers }
}

fn peer(address: Option<&str>, tls: bool) -> Peer {
    Peer { address: address.map(|text| SocketAddr::new(ip(text), 4711)), tls, connection: 0, verified: false }
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, value.parse().expect("a header value"));
    }
    headers
}

/// Client, TLS, host.
fn seen(proxies: &Proxies, from: &str, lines: &[(&'static str, &str)]) -> (String, bool, Option<String>) {
    let Seen { client, tls, host } = proxies.seen(&peer(Some(from), false), &headers(lines));
    (client.to_string(), tls, host)
}

#[test]
fn the_client_is_the_rightmost_address_that_is_no_trusted_proxy() {
    let trusted = proxies(&["10.0.0.0/8", "fd00::/8", "203.0.113.7/32"], Headers::X);
    for (peer, forwarded, client) in [
        ("198.51.100.1", &["1.2.3.4"][..], "198.51.100.1"),
        ("10.0.0.1", &[], "10.0.0.1"),
        ("10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
        ("::ffff:10.0.0.1", &["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", &["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.9.9.9,203.0.113.7"], "1.2.3.4"),
        ("10.0.0.1", &["6.6.6.6", "1.2.3.4", "10.9.9.9"], "1.2.3.4"),
        ("10.0.0.1", &["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
        ("10.0.0.1", &["rubbish, 1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", &["1.2.3.4, rubbish"], "10.0.0.1"),
        ("10.0.0.1", &["1.2.3.4, , 10.0.0.2"], "10.0.0.1"),
        ("10.0.0.1", &["unknown"], "10.0.0.1"),
        ("10.0.0.1", &[""], "10.0.0.1"),
        ("10.0.0.1", &["1.2.3.4:4711"], "1.2.3.4"),
        ("fd00::1", &["2001:db8::5"], "2001:db8::5"),
        ("fd00::1", &["[2001:db8::5]:4711"], "2001:db8::5"),
        ("fd00::1", &["[2001:db8::5]"], "2001:db8::5"),
        ("fd00::1", &["::ffff:1.2.3.4"], "1.2.3.4"),
    ] {
        let lines: Vec<_> = forwarded.iter().map(|line| ("x-forwarded-for", *line)).collect();
        assert_eq!(seen(&trusted, peer, &lines).0, client, "{peer} {forwarded:?}");
    }
    let mut binary = HeaderMap::new();
    binary.append("x-forwarded-for", http::HeaderValue::from_bytes(b"\xff").expect("a header value"));
    assert_eq!(trusted.seen(&peer(Some("10.0.0.1"), false), &binary).client, ip("10.0.0.1"));
    let everybody = proxies(&["0.0.0.0/0", "::/0"], Headers::X);
    assert_eq!(seen(&everybody, "9.9.9.9", &[("x-forwarded-for", "1.1.1.1, 2001:db8::1")]).0, "1.1.1.1");
}

#[test]
fn scheme_and_name_are_what_the_proxy_next_to_the_client_told() {
    let trusted = proxies(&["10.0.0.0/8"], Headers::X);
    let told = |lines: &[(&'static str, &str)]| seen(&trusted, "10.0.0.1", lines);
    let host = |name: &str| Some(name.to_owned());
    assert_eq!(
        told(&[("x-forwarded-proto", "HTTPS"), ("x-forwarded-host", "Live.Example")]),
        ("10.0.0.1".into(), true, host("live.example"))
    );
    // One value for two hops, one for each, and some that the client forged before them.
    let hops = ("x-forwarded-for", "6.6.6.6, 1.2.3.4, 10.0.0.9");
    for (proto, name) in
        [("https", "a.example"), ("https, http", "a.example, inner"), ("http, https, http", "evil.example, a.example, inner")]
    {
        let told = told(&[hops, ("x-forwarded-proto", proto), ("x-forwarded-host", name)]);
        assert_eq!(told, ("1.2.3.4".into(), true, host("a.example")), "{proto}");
    }
    assert_eq!(told(&[hops, ("x-forwarded-proto", "gopher"), ("x-forwarded-host", "a b")]), ("1.2.3.4".into(), false, None));
    // The socket's own TLS counts unless the proxy says otherwise.
    let over_tls = |lines: &[(&'static str, &str)]| trusted.seen(&peer(Some("10.0.0.1"), true), &headers(lines)).tls;
    assert!(over_tls(&[]) && !over_tls(&[("x-forwarded-proto", "http")]));
    let untrusted = seen(&trusted, "9.9.9.9", &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "a")]);
    assert_eq!(untrusted, ("9.9.9.9".into(), false, None));
}

#[test]
fn only_the_headers_that_are_configured_count() {
    let lines = [
        ("forwarded", "for=1.1.1.1;proto=https;host=a.example"),
        ("x-forwarded-for", "2.2.2.2"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "b.example"),
    ];
    let of = |headers| seen(&proxies(&["10.0.0.0/8"], headers), "10.0.0.1", &lines);
    assert_eq!(of(Headers::Standard), ("1.1.1.1".into(), true, Some("a.example".into())));
    assert_eq!(of(Headers::X), ("2.2.2.2".into(), false, Some("b.example".into())));
    let x_only = seen(&proxies(&["10.0.0.0/8"], Headers::Standard), "10.0.0.1", &lines[1..]);
    assert_eq!(x_only, ("10.0.0.1".into(), false, None));
}

#[test]
fn forwarded_is_read_as_the_standard_writes_it() {
    let trusted = proxies(&["10.0.0.0/8", "fd00::/8"], Headers::Standard);
    for (lines, client, tls, host) in [
        (&["for=192.0.2.43"][..], "192.0.2.43", false, None),
        (&["For=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17", false, None),
        (&["for=[2001:db8::1];proto=https"], "2001:db8::1", true, None),
        (
            &["for=\"192.0.2.43:_port\" ; by=203.0.113.43 ; Proto=\"https\";HOST=\"a.example:8443\""],
            "192.0.2.43",
            true,
            Some("a.example:8443"),
        ),
        (&["for=6.6.6.6;host=evil, for=1.2.3.4;proto=https;host=a, for=10.0.0.9;proto=http;host=inner"], "1.2.3.4", true, Some("a")),
        (&["for=1.2.3.4;proto=https", ", for=10.0.0.9 ,"], "1.2.3.4", true, None),
        (&["for=\"1.2.3\\.4\";ext=\"a, b; c\\\"\""], "1.2.3.4", false, None),
        // Hidden clients: the proxy's own address, and what it tells besides.
        (&["for=unknown;proto=https"], "10.0.0.1", true, None),
        (&["for=_hidden, for=10.0.0.9"], "10.0.0.1", false, None),
        (&["proto=https;host=a"], "10.0.0.1", true, Some("a")),
        (&[], "10.0.0.1", false, None),
        // Broken ones.
        (&["for=1.2.3.4;for=5.6.7.8;proto=https"], "10.0.0.1", false, None),
        (&["for=\"1.2.3.4"], "10.0.0.1", false, None),
        (&["for 1.2.3.4;proto=https"], "10.0.0.1", false, None),
        (&["for=1.2.3.4 proto=https"], "10.0.0.1", false, None),
        (&["for=;proto=https"], "10.0.0.1", false, None),
        (&["for=1.2.3.4", "=x"], "10.0.0.1", false, None),
    ] {
        let headers: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
        assert_eq!(seen(&trusted, "10.0.0.1", &headers), (client.into(), tls, host.map(str::to_owned)), "{lines:?}");
    }
}

#[test]
fn a_unix_socket_is_trusted_by_its_name_only() {
    let lines = headers(&[("x-forwarded-for", "1.2.3.4")]);
    let client = |trusted: &[&str]| proxies(trusted, Headers::X).seen(&peer(None, false), &lines).client;
    assert_eq!(client(&["unix"]), ip("1.2.3.4"));
    assert_eq!(client(&["0.0.0.0/0", "::/0"]), ip("0.0.0.0"));
}
