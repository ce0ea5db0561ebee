use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::event::{Envelope, Message, Timestamp};
use crate::http::{Hosts, Listed};
use crate::route::Router;
use crate::subject::Pattern;

#[test]
fn anonymous_access_beyond_loopback_needs_its_word() {
    let open = "server: { listen: 0.0.0.0:80 }\nauth: { anonymous: { ROLE: [a] BEYOND } }";
    for role in ["subscribe", "publish"] {
        let problems = bad(&[&open.replace("ROLE", role).replace("BEYOND", "")], &[]);
        assert!(problems[0].contains("auth.anonymous.beyond_loopback: must be true"), "{problems:?}");
        let loaded = good(&[&open.replace("ROLE", role).replace("BEYOND", ", beyond_loopback: true")], &[]);
        assert_eq!(loaded.settings.http.origins.hosts, Hosts::All);
        // A process that runs listens where it did until it is restarted.
        let loopback = open.replace("0.0.0.0", "127.0.0.1").replace("ROLE", role);
        let at = |address: &str, text: &str| {
            let files = files(&[text]);
            load_with(&files.paths, [], Address::parse(address).as_ref()).map(|loaded| loaded.settings.http.origins.hosts)
        };
        let error = at("0.0.0.0:80", &loopback.replace("BEYOND", "")).expect_err("a word");
        assert!(error.to_string().contains("auth.anonymous.beyond_loopback"), "{error}");
        let names = at("127.0.0.1:80", &open.replace("ROLE", role).replace("BEYOND", ", beyond_loopback: true"));
        assert_eq!(names.unwrap_or_else(|e| panic!("{e}")), direct(&["localhost", "127.0.0.1", "[::1]"]));
    }
}

#[test]
fn neither_a_unix_socket_nor_the_proxy_protocol_counts_as_loopback() {
    for server in ["{ listen: unix:/run/s }", "{ proxy_protocol: [127.0.0.0/8] }", "{ proxy_protocol: [unix] }"] {
        let open = |more: &str| format!("server: {server}\nauth: {{ anonymous: {{ subscribe: [a]{more} }} }}");
        let problems = bad(&[&open("")], &[]);
        assert!(problems.len() == 1 && problems[0].contains("auth.anonymous.beyond_loopback: must be true"), "{problems:?}");
        let loaded = good(&[&open(", beyond_loopback: true")], &[]);
        assert_eq!(good(&[&loaded.yaml], &[]).settings.http.listen, loaded.settings.http.listen);
    }
    let mode = |mode: &str| good(&[&format!("server: {{ socket_mode: {mode} }}")], &[]).settings.http.socket_mode;
    assert_eq!([mode("0660"), mode("\"600\""), mode("0o666"), good(&[""], &[]).settings.http.socket_mode], [0o660, 0o600, 0o666, 0o660]);
    for wrong in ["rw", "0888", "01777", "-1"] {
        assert!(bad(&[&format!("server: {{ socket_mode: {wrong} }}")], &[])[0].contains("server.socket_mode"), "{wrong}");
    }
}

#[test]
fn two_listeners_need_two_addresses() {
    for (a, b) in [("127.0.0.1:80", "127.0.0.1:80"), ("0.0.0.0:80", "127.0.0.1:80"), ("[::1]:80", "[::]:80")] {
        let problems = bad(&[&format!("server: {{ listen: \"{a}\" }}\nadmin: {{ listen: \"{b}\" }}")], &[]);
        assert!(problems.iter().any(|p| p.contains("admin.listen: must be another address")), "{problems:?}");
    }
    good(&["server: { listen: 127.0.0.1:0 }\nadmin: { listen: 127.0.0.1:0 }"], &[]);
}

#[test]
fn http_sources_must_not_overlap() {
    let problems = bad(&["sources: { a: { http: { subjects: [\"x.*.z\"] } }, b: { http: { subjects: [q, \"x.y.>\"] } } }"], &[]);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("sources.b.http.subjects: must not overlap with those of the http source `a`"), "{problems:?}");
}

#[test]
fn keys_must_fit_their_algorithms() {
    let cases = [
        ("{ algorithms: [HS256], secret: short }", ".secret: must hold at least 32 bytes"),
        ("{ algorithms: [HS512], secret: 0123456789abcdef0123456789abcdef }", ".secret: must hold at least 64 bytes"),
        ("{ algorithms: [HS256, RS256], secret: 0123456789abcdef0123456789abcdef }", ".algorithms: must be of HS256"),
        ("{ algorithms: [HS256], jwks_url: \"https://a.example/jwks\" }", ".algorithms: must not hold HS256"),
        ("{ algorithms: [RS256, ES256], public_key: \"-----BEGIN PUBLIC KEY-----\" }", ".algorithms: must be of one family"),
        ("{ algorithms: [RS256], public_key: \"-----BEGIN PRIVATE KEY-----\" }", ".public_key: must be a public key in PEM"),
        ("{ algorithms: [RS256], jwks_url: \"ftp://a.example/jwks\" }", ".jwks_url: must be a URL"),
        ("{ algorithms: [], jwks_url: \"https://a.example/jwks\" }", ".algorithms: must list at least one"),
        ("{ algorithms: [none], jwks_url: \"https://a.example/jwks\" }", ".algorithms[0]: must be one of HS256"),
        ("{ algorithms: [RS256] }", ": must have exactly one of"),
        ("{ algorithms: [HS256], secret: a, jwks_url: b }", ": must have exactly one of"),
        ("{ algorithms: [HS256], secret: a, secret_file: b }", ".secret: only one of"),
    ];
    for (key, expected) in cases {
        let problems = bad(&[&format!("auth: {{ jwt: {{ keys: [{key}] }} }}")], &[]);
        assert!(problems.iter().any(|p| p.contains(&format!("auth.jwt.keys[0]{expected}"))), "{key}: {problems:?}");
        assert_eq!(problems.len(), 1, "{key}: {problems:?}");
    }
    good(&["auth: { jwt: { keys: [{ algorithms: [RS256, ES256, EdDSA], jwks_url: \"https://a.example/jwks\" }] } }"], &[]);
}

#[test]
fn a_secret_file_loses_one_line_break() {
    let kept = files(&["0123456789abcdef0123456789abcdef\n\n"]);
    let file = format!("auth: {{ jwt: {{ keys: [{{ algorithms: [HS256], secret_file: {} }}] }} }}", kept.paths[0].display());
    let loaded = good(&[&file], &[]);
    let secret = &loaded.settings.auth.issuers[0].signers().next().unwrap().secret;
    assert_eq!(secret.expose(), b"0123456789abcdef0123456789abcdef\n");
}

#[test]
fn grant_templates_are_patterns_with_claims_in_them() {
    good(&["auth: { grants: { subscribe: [\"user.{sub}.>\", \"t-{tenant.id}.*\", a, \">\"] } }"], &[]);
    for template in ["user.{sub", "user.sub}", "{}", "a..{b}", "{a}*", ">.{a}", "{a{b}}"] {
        let problems = bad(&[&format!("auth: {{ grants: {{ publish: [\"{template}\"] }} }}")], &[]);
        assert!(problems.len() == 1 && problems[0].contains("auth.grants.publish[0]"), "{template}: {problems:?}");
    }
}

#[test]
fn routes_are_read_in_order() {
    let file = "
routes:
  - { match: { source: s, subject: \"a.*.>\" }, subject: \"b.{1}.{>}\", event: \"e-{1}\", envelope: raw }
  - { match: { subject: \"x.>\" }, drop: true }
  - { match: {}, envelope: cloudevents }
sources: { s: { ticker: { subject: a.b.c } } }
";
    let loaded = good(&[file], &[]);
    let [s, t] = ["s", "t"].map(|name| Router::new(&loaded.settings.routes, &name.parse().unwrap(), &[Pattern::all()], Arc::default()));
    let message = |subject: &str| Message::new(subject.parse().unwrap(), Bytes::new(), Timestamp::default(), None);
    let event = s.route(message("a.1.x.y")).unwrap();
    assert_eq!((event.subject.as_str(), event.name.as_deref(), event.envelope), ("b.1.x.y", Some("e-1"), Envelope::Raw));
    assert!(s.route(message("x.1")).is_none());
    let event = t.route(message("a.1.x.y")).unwrap();
    assert_eq!((event.subject.as_str(), event.name, event.envelope), ("a.1.x.y", None, Envelope::CloudEvents));
}

#[test]
fn origins_are_serialised_as_browsers_do() {
    let loaded = good(
        &[
            "server: { cors: { origins: [\"HTTPS://Dash.Example.com:443\", \"http://[::1]:3000\"] }, public_url: \"https://live.example.com/\" }",
        ],
        &[],
    );
    let exact = ["https://dash.example.com", "http://[::1]:3000"].map(|origin| Listed::Exact(origin.to_owned()));
    assert_eq!(loaded.settings.http.origins.listed, exact);
    assert_eq!(loaded.settings.http.origins.public, ["https://live.example.com"]);
    for origin in ["dash.example.com", "https://", "https://a/b", "https://u@a", "ftp://a", "https://a:x", "https://a b", "https://*a"] {
        let problems = bad(&[&format!("server: {{ cors: {{ origins: [\"{origin}\"] }} }}")], &[]);
        assert!(problems.len() == 1 && problems[0].contains("server.cors.origins[0]"), "{origin}: {problems:?}");
    }
    for everybody in ["\"*\"", "null", "\"null\"", "\"https://*\"", "\"https://*:8443\"", "\"https://a.b\", \"http://*\""] {
        let config = format!("server: {{ cors: {{ origins: [{everybody}] }} }}");
        let loaded = good(&[&config], &[]);
        assert_eq!(good(&[&loaded.yaml], &[]).settings.http.origins.listed, loaded.settings.http.origins.listed);
        let problems = bad(&[&config.replace("] }", "], credentials: true }")], &[]);
        assert!(problems.len() == 1 && problems[0].contains("server.cors.credentials"), "{everybody}: {problems:?}");
    }
    let warned = |origin: &str| {
        let loaded = good(&[&format!("server: {{ cors: {{ origins: [\"{origin}\"], credentials: true }} }}")], &[]);
        loaded.warnings.join("").contains("server.cors.origins")
    };
    assert!(warned("https://*.com") && !warned("https://*.example.com") && !warned("http://*.localhost:3000"));
}

#[test]
fn headers_of_other_origins_and_the_base_path_are_names() {
    let loaded = good(&["server: { cors: { headers: [X-Custom, authorization] }, base_path: /a/live/ }"], &[]);
    assert_eq!(loaded.settings.http.origins.headers, "x-custom, authorization");
    let default = good(&[""], &[]).settings.http.origins.headers;
    for name in ["authorization", "last-event-id", "cache-control", "baggage", "traceparent", "tracestate", "sentry-trace"] {
        assert!(default.to_str().unwrap().split(", ").any(|listed| listed == name), "{name}");
    }
    for name in ["a b", "", "*", "ü"] {
        let problems = bad(&[&format!("server: {{ cors: {{ headers: [\"{name}\"] }} }}")], &[]);
        assert!(problems.len() == 1 && problems[0].contains("server.cors.headers[0]"), "{name}: {problems:?}");
    }
    for path in ["live", "/live/../x", "/li ve", "//", "/a//b", "/live?x", "/events", "/publish/x", "/l%20", "/.", "https://a/live"] {
        let problems = bad(&[&format!("server: {{ base_path: \"{path}\" }}")], &[]);
        assert!(problems.len() == 1 && problems[0].contains("server.base_path"), "{path}: {problems:?}");
    }
    good(&["server: { base_path: / }"], &[]);
    for url in ["https://a/b", "a", "[\"https://a\", \"b\"]", "[]"] {
        let problems = bad(&[&format!("server: {{ public_url: {url} }}")], &[]);
        assert!(problems.len() == 1 && problems[0].contains("server.public_url"), "{url}: {problems:?}");
    }
}

#[test]
fn trusted_proxies_are_networks() {
    for section in ["server", "subscribers"] {
        let config = format!("{section}: {{ trusted_proxies: [10.0.0.0/8, 192.168.1.7, \"fd00::/8\", unix] }}");
        let loaded = good(&[&config], &[]);
        let trusted = |loaded: &Loaded| {
            let of = |address: &str| loaded.settings.http.proxies.trusted.contain(address.parse().ok());
            [of("192.168.1.7"), of("::ffff:10.1.1.1"), of("192.168.1.8"), loaded.settings.http.proxies.trusted.contain(None)]
        };
        assert_eq!(trusted(&loaded), [true, true, false, true]);
        assert_eq!(trusted(&good(&[&loaded.yaml], &[])), [true, true, false, true]);
    }
    let both = bad(&["server: { trusted_proxies: [\"::1\"] }\nsubscribers: { trusted_proxies: [\"::1\"] }"], &[]);
    assert!(both.len() == 1 && both[0].contains("subscribers.trusted_proxies: must be left out"), "{both:?}");
    assert!(bad(&["server: { forwarded: both }"], &[])[0].contains("must be one of x-forwarded, forwarded"));
    for text in ["10.0.0.1/8", "10.0.0.0/33", "a", "10.0.0.0/", "10.0.0.0/+8"] {
        let problems = bad(&[&format!("subscribers: {{ trusted_proxies: [\"{text}\"] }}")], &[]);
        assert!(problems.len() == 1, "{text}: {problems:?}");
    }
}

#[test]
fn every_example_is_good() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config")).unwrap() {
        let path = entry.unwrap().path();
        // The manifest for Kubernetes holds a configuration, and is none: see `tests/it/deploy.rs`.
        if path.extension().is_some_and(|e| e == "yaml") && !path.ends_with("kubernetes.yaml") {
            let loaded = load_with(std::slice::from_ref(&path), [], None).unwrap_or_else(|e| panic!("{e}"));
            assert!(!loaded.settings.sources.is_empty(), "{}", path.display());
        }
    }
}

#[test]
fn two_durable_sources_that_cursors_cannot_tell_apart_are_refused() {
    // Found by trying names until two had the same tag.
    let mut seen = std::collections::HashMap::new();
    let (a, b) =
        (0..).map(|n| format!("s{n}")).find_map(|name| Some((seen.insert(crate::cursor::Tag::of(&name), name.clone())?, name))).unwrap();
    let source = |name| format!("  {name}: {{ nats: {{ servers: [\"nats://h\"], subjects: [\"a.>\"], jetstream: {{ stream: S }} }} }}\n");
    let problems = bad(&[&format!("sources:\n{}{}", source(&a), source(&b))], &[]);
    assert!(problems.len() == 1 && problems[0].contains("must have another name"), "{problems:?}");
}
