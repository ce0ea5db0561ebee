use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::event::{Envelope, Message, Timestamp};
use crate::route::Router;
use crate::subject::Pattern;

#[test]
fn anonymous_access_beyond_loopback_needs_its_word() {
    let open = "server: { listen: 0.0.0.0:80 }\nauth: { anonymous: { ROLE: [a] BEYOND } }";
    for role in ["subscribe", "publish"] {
        let problems = bad(&[&open.replace("ROLE", role).replace("BEYOND", "")], &[]);
        assert!(problems[0].contains("auth.anonymous.beyond_loopback: must be true"), "{problems:?}");
        let loaded = good(&[&open.replace("ROLE", role).replace("BEYOND", ", beyond_loopback: true")], &[]);
        assert_eq!(loaded.settings.http.origins.hosts, None);
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
    assert_eq!(loaded.settings.http.origins.listed, ["https://dash.example.com", "http://[::1]:3000"]);
    assert_eq!(loaded.settings.http.origins.public.as_deref(), Some("https://live.example.com"));
    for origin in
        ["dash.example.com", "https://", "https://a/b", "https://u@a", "ftp://a", "https://a:x", "https://a b", "null", "https://*.a"]
    {
        let problems = bad(&[&format!("server: {{ cors: {{ origins: [\"{origin}\"] }} }}")], &[]);
        assert!(problems.len() == 1 && problems[0].contains("server.cors.origins[0]"), "{origin}: {problems:?}");
    }
    assert!(bad(&["server: { cors: { origins: [\"*\"], credentials: true } }"], &[])[0].contains("server.cors.credentials"));
}

#[test]
fn trusted_proxies_are_networks() {
    let loaded = good(&["subscribers: { trusted_proxies: [10.0.0.0/8, 192.168.1.7, \"fd00::/8\", 0.0.0.0/0] }"], &[]);
    assert_eq!(loaded.settings.http.trusted_proxies[1], "192.168.1.7/32".parse().unwrap());
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
            let loaded = load_with(std::slice::from_ref(&path), [], false).unwrap_or_else(|e| panic!("{e}"));
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
