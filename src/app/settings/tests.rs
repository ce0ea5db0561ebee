use std::io::Write as _;

use super::*;
use crate::http::Hosts;

mod checks;
mod printed;

/// Files with these contents, kept as long as it lives.
pub(super) struct Files {
    _folder: tempfile::TempDir,
    pub(super) paths: Vec<PathBuf>,
}

pub(super) fn files(texts: &[&str]) -> Files {
    let folder = tempfile::tempdir().unwrap();
    let write = |(n, text): (usize, &&str)| {
        let path = folder.path().join(format!("{n}.yaml"));
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    };
    let paths = texts.iter().enumerate().map(write).collect();
    Files { _folder: folder, paths }
}

pub(super) fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

pub(super) fn good(texts: &[&str], variables: &[(&str, &str)]) -> Loaded {
    let files = files(texts);
    load_with(&files.paths, environment(variables), None).unwrap_or_else(|e| panic!("{e}"))
}

/// The problems' lines, files called by their number.
pub(super) fn bad(texts: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let files = files(texts);
    let error = load_with(&files.paths, environment(variables), None).expect_err("a configuration error");
    let folder = format!("{}/", files._folder.path().display());
    error.lines().map(|line| line.replace(&folder, "")).collect()
}

fn direct(names: &[&str]) -> Hosts {
    Hosts::Direct(names.iter().map(ToString::to_string).collect())
}

pub(super) const KEY: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn without_a_file_the_demo_counts() {
    let loaded = load_with(&[], [], None).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<_> = loaded.settings.sources.iter().map(|source| &source.name).map(ToString::to_string).collect();
    assert_eq!(names, ["clock", "inbox"]);
    assert_eq!(loaded.settings.http.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(loaded.settings.auth.anonymous.subscribe[0].as_str(), ">");
    assert_eq!(loaded.settings.http.origins.hosts, direct(&["localhost", "127.0.0.1", "[::1]"]));
}

#[test]
fn a_loopback_listener_open_to_all_answers_to_the_public_name_of_a_proxy_too() {
    let open = "auth: { anonymous: { subscribe: [a] } }";
    let loaded = good(&["server: { public_url: [\"https://Live.Example.com\", \"http://b:81\"] }", open], &[]);
    assert_eq!(loaded.settings.http.origins.hosts, direct(&["localhost", "127.0.0.1", "[::1]", "live.example.com", "b:81"]));
    let loaded = good(&["server: { hosts: [a] }", open], &[]);
    assert_eq!(loaded.settings.http.origins.hosts, Hosts::These(vec!["a".to_owned()]));
}

#[test]
fn with_a_file_nothing_of_the_demo_counts_and_defaults_are_the_documented_ones() {
    let loaded = good(&["window: { age: 1m }"], &[]);
    let settings = &loaded.settings;
    assert!(settings.sources.is_empty() && settings.auth.anonymous.subscribe.is_empty() && settings.auth.anonymous.publish.is_empty());
    assert_eq!(settings.window.age.as_secs(), 60);
    assert_eq!(settings.window.bytes, 16 << 20);
    assert_eq!((settings.histories.readers, settings.histories.rate), (16, 64 << 20));
    assert_eq!(settings.streams.heartbeat.as_secs(), 15);
    assert_eq!(settings.streams.retry.as_secs(), 3);
    assert_eq!((settings.drain.as_secs(), settings.drain_delay.as_secs()), (10, 0));
    assert_eq!(settings.http.bounds.header_bytes, 16 << 10);
    assert_eq!(settings.http.origins.hosts, Hosts::All);
    assert_eq!(settings.auth.carriers.cookie.as_deref(), Some("brokercast"));
    assert_eq!((settings.pool.max, settings.pool.max_per_identity), (10_000, Some(20)));
    assert_eq!((settings.pool.max_per_address, settings.pool.waiting), (None, 100));
    assert_eq!(settings.http.admin.listen.to_string(), "127.0.0.1:8081");
    assert!(loaded.yaml.contains("format: auto"), "{}", loaded.yaml);
}

#[test]
fn an_empty_file_is_a_configuration() {
    assert!(good(&[""], &[]).settings.sources.is_empty());
    assert!(good(&["# nothing\n"], &[]).settings.sources.is_empty());
}

#[test]
fn later_layers_merge_maps_replace_lists_and_remove_by_null() {
    let first = "
server: { heartbeat: 1s, retry: 2s }
auth: { anonymous: { subscribe: [a, b] }, carriers: { query: q } }
sources:
  one: { ticker: { subject: one } }
  two: { ticker: { subject: two } }
";
    let second = "
server: { retry: 7s }
auth: { anonymous: { subscribe: [c] }, carriers: { query: null } }
sources: { one: null, three: { ticker: { subject: three } } }
";
    let loaded = good(&[first, second], &[]);
    let settings = &loaded.settings;
    assert_eq!((settings.streams.heartbeat.as_secs(), settings.streams.retry.as_secs()), (1, 7));
    assert_eq!(settings.auth.anonymous.subscribe.iter().map(|p| p.as_str()).collect::<Vec<_>>(), ["c"]);
    assert_eq!(settings.auth.carriers.query, None);
    assert_eq!(settings.sources.iter().map(|source| &source.name).map(|n| n.as_str()).collect::<Vec<_>>(), ["three", "two"]);
}

#[test]
fn variables_reach_numbers_texts_lists_maps_and_elements_of_lists() {
    let file = format!(
        "
auth: {{ jwt: {{ keys: [{{ algorithms: [HS256], secret: {KEY} }}] }} }}
sources:
  My-Orders: {{ ticker: {{ subject: a }} }}
  under__scored: {{ ticker: {{ subject: b }} }}
"
    );
    let variables = [
        ("BROKERCAST__SERVER__LISTEN", "127.0.0.1:9999"),
        ("BROKERCAST__SUBSCRIBERS__MAX", "12"),
        ("BROKERCAST__AUTH__ANONYMOUS", "{subscribe: [x.>]}"),
        ("BROKERCAST__AUTH__ANONYMOUS__PUBLISH", r#"["y.>", "z"]"#),
        ("BROKERCAST__AUTH__JWT__AUDIENCE", "12345"),
        ("BROKERCAST__AUTH__JWT__KEYS__0__SECRET", "00000000000000000000000000000001"),
        ("BROKERCAST__SOURCES__MY_ORDERS__REQUIRED", "false"),
        ("BROKERCAST__SOURCES__UNDER__SCORED__MAX_PAYLOAD", "2MiB"),
        ("BROKERCAST__SOURCES__NEW__TICKER__SUBJECT", "c"),
        ("BROKERCAST__WINDOW__AGE", "90s"),
        ("UNRELATED", "x"),
        ("BROKERCAST_CONFIG", "elsewhere"),
    ];
    let loaded = good(&[&file], &variables);
    let settings = &loaded.settings;
    assert_eq!(settings.http.listen.to_string(), "127.0.0.1:9999");
    assert_eq!(settings.pool.max, 12);
    assert_eq!(settings.auth.anonymous.subscribe[0].as_str(), "x.>");
    assert_eq!(settings.auth.anonymous.publish[1].as_str(), "z");
    let jwt = &settings.auth.issuers[0];
    assert_eq!(jwt.audiences, ["12345"]);
    let secret = &jwt.signers().next().unwrap().secret;
    assert_eq!(secret.expose(), b"00000000000000000000000000000001");
    assert_eq!(
        settings.sources.iter().map(|source| &source.name).map(|n| n.as_str()).collect::<Vec<_>>(),
        ["My-Orders", "new", "under__scored"]
    );
    assert!(!settings.sources[0].required);
    assert_eq!(settings.sources.last().unwrap().max_payload, 2 << 20);
    assert_eq!(settings.window.age.as_secs(), 90);
}

#[test]
fn a_variable_with_one_underscore_too_few_is_refused() {
    let problems = bad(&[], &[("BROKERCAST_SERVER__LISTEN", "127.0.0.1:1"), ("BROKERCAST_SERVICE_HOST", "10.0.0.1")]);
    assert_eq!(problems, ["environment variable BROKERCAST_SERVER__LISTEN: must begin with BROKERCAST__"]);
}

#[test]
fn variables_give_a_list_more_than_ten_elements() {
    let named = |n| (format!("BROKERCAST__AUTH__ANONYMOUS__SUBSCRIBE__{n}"), format!("s{n}"));
    let variables: Vec<(String, String)> = (0..12).map(named).collect();
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let loaded = good(&[], &variables);
    let expected: Vec<String> = (0..12).map(|n| format!("s{n}")).collect();
    assert_eq!(loaded.settings.auth.anonymous.subscribe.iter().map(|p| p.as_str()).collect::<Vec<_>>(), expected);
}

#[test]
fn a_secret_from_the_environment_is_its_text_whatever_it_looks_like() {
    let file = "auth: { jwt: { keys: [{ algorithms: [HS256] }] } }";
    for text in [
        "00000000000000000000000000000000",
        "1e3.............................",
        "[a, b, c, d, e, f, g, h, i, j, k]",
        "{\"a\": \"b\", \"c\": \"ddddddddddddddddd\"}",
        "\"quoted\" # no comment ...............",
        "  spaces around it count too, all of them  ",
        "99999999999999999999999999999999999999999999999999",
    ] {
        let loaded = good(&[file], &[("BROKERCAST__AUTH__JWT__KEYS__0__SECRET", text)]);
        let secret = &loaded.settings.auth.issuers[0].signers().next().unwrap().secret;
        assert_eq!(secret.expose(), text.as_bytes());
        assert!(!loaded.yaml.contains(text.trim()), "{}", loaded.yaml);
    }
}

#[test]
fn a_number_in_yaml_is_a_text_as_written_where_a_text_is_wanted() {
    let loaded =
        good(&["auth: { jwt: { audience: 007, keys: [{ algorithms: [HS256], secret: 01e10000000000000000000000000000000 }] } }"], &[]);
    let jwt = &loaded.settings.auth.issuers[0];
    assert_eq!(jwt.audiences, ["007"]);
    let secret = &jwt.signers().next().unwrap().secret;
    assert_eq!(secret.expose(), b"01e10000000000000000000000000000000");
}

#[test]
fn all_problems_come_at_once_with_file_line_and_key_path() {
    let file = "
server:
  listen: nowhere
  heartbeat: fast
  cors: { origins: [\"https://a.example/path\"], credential: true }
  dashboard: yes
subscribers:
  max: -1
  max_stall: 0s
  max_per_identity: true
routes:
  - match: { source: nobody, subject: \"a.*\" }
    subject: \"b.{2}\"
    event: \"brokercast.gap\"
  - match: { subject: \"a..b\" }
  - { drop: true }
sources:
  clock: { ticker: { every: 1s, subject: \"a b\" }, http: { subjects: [x] } }
  -bad: { ticker: { subject: c } }
  none: { required: true }
unknown: 1
";
    let problems = bad(&[file], &[]);
    let starts = [
        "0.yaml:3:3: server.listen: must be an address and a port",
        "0.yaml:4:3: server.heartbeat: must be a duration",
        "0.yaml:5:21: server.cors.origins[0]: must be an origin",
        "0.yaml:5:48: server.cors.credential: is not a known key (known: origins, credentials, headers)",
        "0.yaml:6:3: server.dashboard: must be true or false",
        "0.yaml:8:3: subscribers.max: must be a whole number, 0 or more",
        "0.yaml:9:3: subscribers.max_stall: must be a duration longer than 0",
        "0.yaml:10:3: subscribers.max_per_identity: must be a whole number, 0 or more, or false",
        "0.yaml:12:14: routes[0].match.source: must be the name of a source (configured: clock, -bad, none)",
        "0.yaml:13:5: routes[0].subject: uses `{2}`",
        "0.yaml:14:5: routes[0].event: begins with `brokercast.`",
        "0.yaml:15:14: routes[1].match.subject: has an empty token",
        "0.yaml:16:5: routes[2]: must say what it is about",
        "0.yaml:18:3: sources.clock: must hold exactly one of",
        "0.yaml:18:33: sources.clock.ticker.subject: has white space",
        "0.yaml:19:3: sources.-bad: a source's name must be",
        "0.yaml:20:3: sources.none: must hold exactly one of",
        "0.yaml:21:1: unknown: is not a known key (known: server, admin, auth, subscribers, rates, window, history, log, traces, reload, sources, routes)",
    ];
    for (at, start) in starts.iter().enumerate() {
        assert!(problems.get(at).is_some_and(|line| line.starts_with(start)), "expected {start}\nin {problems:#?}");
    }
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
}

#[test]
fn a_null_hides_no_unknown_key_of_any_layer() {
    let first = "
admin: { listen: 127.0.0.1:0, token:Hunter2 }
revocations:
auth: { revocation: ~ }
subscribers:
  max_per_adress:
routes: [{ match: {}, drop:true }]
sources: { clock:ticker,
  -bad: ~,
  good: { ticker: { subject: a }, evry: ~ } }
";
    let second = "auth: { anonymous: {} }\nserver: { max: null }\n";
    let variables = [("BROKERCAST__LOG__ACCES", "null"), ("BROKERCAST__WINDOW", "{ sise: ~ }")];
    let problems = bad(&[first, second], &variables);
    let starts = [
        "0.yaml:2:31: admin.token: must have a blank behind the colon",
        "0.yaml:3:1: revocations: is not a known key (known: ",
        "0.yaml:4:9: auth.revocation: is not a known key (known: ",
        "0.yaml:6:3: subscribers.max_per_adress: is not a known key (known: ",
        "0.yaml:7:23: routes[0].drop: must have a blank behind the colon",
        "0.yaml:8:12: sources.clock: must have a blank behind the colon",
        "0.yaml:9:3: sources.-bad: a source's name must be",
        "0.yaml:10:35: sources.good.evry: is not a known key (known: ",
        "1.yaml:2:11: server.max: is not a known key (known: ",
        "environment variable BROKERCAST__LOG__ACCES: log.acces: is not a known key (known: ",
        "environment variable BROKERCAST__WINDOW: window.sise: is not a known key (known: ",
    ];
    for (at, start) in starts.iter().enumerate() {
        assert!(problems.get(at).is_some_and(|line| line.starts_with(start)), "expected {start}\nin {problems:#?}");
    }
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
    // Known keys may be null wherever they could be written.
    let url = "https://id.example.com/jwks.json";
    good(&[&format!("auth: {{ jwt: {{ keys: [{{ algorithms: [RS256], jwks_url: {url}, secret: ~, secret_encoding: ~ }}] }} }}")], &[]);
}

#[test]
fn a_key_in_braces_needs_a_colon_and_a_blank() {
    let problems = bad(&["log: { format: text, filter, access }\nwindow: { bytes: 1MiB, age:1m }\n"], &[]);
    let colon = "log: must have a colon and a value behind each key (a text with a comma needs quotes)";
    let expected = [
        format!("0.yaml:1:22: {colon}"),
        format!("0.yaml:1:30: {colon}"),
        "0.yaml:2:24: window.age: must have a blank behind the colon".into(),
    ];
    assert_eq!(problems, expected);
    // Keys of every other form have one, also where the value is left out.
    good(
        &["\"log\":\n? window\n: ~\nsources: { a: { ticker: { subject: &name x } }, *name : ~, 'b':, c : ,}\nrates: { connect:\n ~ }\n"],
        &[],
    );
}

#[test]
fn no_problem_echoes_a_value() {
    let secret = "s3cr3t-value";
    let places = [
        "server: { listen: VALUE }",
        "server: { heartbeat: VALUE, tls: VALUE, cors: { origins: [VALUE] }, hosts: [\"a/VALUE\"], public_url: VALUE }",
        "server: { cors: { headers: [\"VALUE;\"] }, trusted_proxies: [VALUE], proxy_protocol: [VALUE], socket_mode: VALUE, forwarded: VALUE, base_path: VALUE, drain_delay: VALUE }",
        "server: { limits: { patterns: VALUE, header_bytes: VALUE }, dashboard: VALUE }",
        "auth: { jwt: { leeway: VALUE, keys: [{ algorithms: [VALUE], secret: VALUE, jwks_url: VALUE }] } }",
        "auth: { jwt: { keys: [{ algorithms: [HS256], secret: VALUE }, { algorithms: [RS256], public_key: VALUE }, VALUE] } }",
        "auth: { jwt: { keys: [{ algorithms: [HS256], secret_file: /VALUE }, { algorithms: [RS256], jwks_file: /VALUE }] } }",
        "auth: { grants: { subscribe: [\"{VALUE\", \"a..VALUE\"] }, anonymous: { publish: [\"VALUE..\"] }, carriers: { cookie: \"VALUE;\" } }",
        "subscribers: { max: VALUE, trusted_proxies: [VALUE], when_full: VALUE, max_per_address: VALUE }",
        "window: VALUE",
        "log: { format: VALUE, filter: \"VALUE=VALUE=VALUE\" }",
        "sources: VALUE",
        "sources: { a: VALUE, b: { ticker: VALUE }, c: { ticker: { every: VALUE, subject: \"VALUE.\" } }, d: { http: { subjects: VALUE } } }",
        "sources: { a: { amqp: { url: \"amqp://u:VALUE@h:no/x\", exchange: \"VALUE\", queue: \"VALUE\", queue_type: VALUE, prefetch: VALUE } } }",
        "sources: { a: { amqp: { url: \"http://VALUE\", password: [VALUE], tls: VALUE, binding_keys: VALUE, declare: VALUE } } }",
        "sources: { a: { nats: { servers: [\"x://VALUE\", \"nats://u:VALUE@h:no\"], subjects: [\"VALUE.\"], jetstream: VALUE } } }",
        "routes: [VALUE, { match: { source: VALUE, subject: \"VALUE.\" } }, { match: {}, subject: \"{VALUE}\", envelope: VALUE, drop: VALUE }]",
        "server: { listen: \"VALUE }",
        "server: [VALUE",
        "\"VALUE\"",
        "server: &VALUE *VALUE2",
        "server: !VALUE x",
        "server: @VALUE",
        "VALUE\nserver: 1",
        "admin: { token:VALUE }",
        "admin: { token: x,VALUE }",
        "admin: { token:VALUE: x }",
        "admin: { token:VALUE, token:VALUE }",
        "sources: { a:VALUE }",
        "sources: { a: { nats: { servers: [\"nats://h\"], subjects: [a], user: u, password:VALUE } } }",
    ];
    for place in places {
        let problems = bad(&[&place.replace("VALUE", secret)], &[]);
        assert!(!problems.is_empty());
        for line in problems {
            assert!(!line.contains("s3cr3t"), "{place}: {line}");
        }
    }
    for name in ["BROKERCAST__SERVER__LISTEN", "BROKERCAST__WINDOW", "BROKERCAST__ROUTES", "BROKERCAST__SUBSCRIBERS__MAX"] {
        for line in bad(&[""], &[(name, secret)]) {
            assert!(line.contains(name) && !line.contains("s3cr3t"), "{line}");
        }
    }
}

#[test]
fn duplicate_keys_are_refused_all_of_them() {
    let problems = bad(&["server: { drain: 1s, drain: 2s }\nwindow: {}\nwindow: {}\n"], &[]);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with("0.yaml:1:22: server.drain: is there twice"), "{problems:?}");
    assert!(problems[1].starts_with("0.yaml:3:1: window: is there twice (the first is on line 2)"), "{problems:?}");
}

#[test]
fn files_that_are_missing_or_no_yaml_are_all_named() {
    let kept = files(&["a: [", "- a list"]);
    let paths = [vec![PathBuf::from("/nowhere/brokercast.yaml")], kept.paths.clone()].concat();
    let lines: Vec<_> = load_with(&paths, [], None).err().unwrap().lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("/nowhere/brokercast.yaml: this configuration file cannot be read"), "{lines:?}");
    assert!(lines[1].contains("0.yaml:") && lines[1].contains("is not valid YAML"), "{lines:?}");
    assert!(lines[2].contains("1.yaml:1:1: must be a map"), "{lines:?}");
}

#[test]
fn a_relative_path_that_leads_nowhere_says_where_it_begins() {
    let key = |file| format!("auth: {{ jwt: {{ keys: [{{ algorithms: [HS256], secret_file: {file} }}] }} }}");
    let start = "(a relative path begins where brokercast is started)";
    for (file, said) in [("nowhere/secret", true), ("/nowhere/secret", false)] {
        let problems = bad(&[&key(file)], &[]);
        assert!(problems[0].contains("there is none of this name") && problems[0].ends_with(start) == said, "{problems:?}");
    }
}

#[test]
fn a_problem_names_the_layer_that_brought_the_value() {
    let problems =
        bad(&["window: { age: 1m }", "window: { age: long }", "window: { bytes: 1MiB }"], &[("BROKERCAST__LOG__FORMAT", "loud")]);
    assert!(problems[0].starts_with("1.yaml:1:11: window.age: must be a duration"), "{problems:?}");
    let expected = "environment variable BROKERCAST__LOG__FORMAT: log.format: must be one of auto, text, json";
    assert_eq!(problems[1], expected);
}

#[test]
fn an_unknown_variable_is_refused() {
    let problems = bad(&[""], &[("BROKERCAST__SERVRE__LISTEN", "x"), ("BROKERCAST__", "x"), ("BROKERCAST__A____B", "x")]);
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(
        problems.iter().any(|p| p.starts_with("environment variable BROKERCAST__SERVRE__LISTEN: servre: is not a known key")),
        "{problems:?}"
    );
}

#[test]
fn a_type_error_hides_no_other_problem_and_brings_no_false_one() {
    let problems =
        bad(&["sources: { a: { ticker: [] }, b: 5 }\nroutes: [{ match: { source: b } }, { match: { source: a }, subject: \"x.\" }]"], &[]);
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert!(problems[0].contains("sources.a.ticker: must be a map"), "{problems:#?}");
    assert!(problems[1].contains("sources.b: must be a map"), "{problems:#?}");
    assert!(problems[2].contains("routes[1].subject: does not give a valid subject"), "{problems:#?}");
}

#[test]
fn an_element_of_the_wrong_type_hides_none_beside_it() {
    let problems = bad(
        &[
            "auth: { anonymous: { subscribe: [a, {}, b..c] } }\nroutes: [5, { match: { source: x } }, [], { match: {}, event: brokercast.a }]",
        ],
        &[],
    );
    let starts = [
        "0.yaml:1:37: auth.anonymous.subscribe[1]: must be a text",
        "0.yaml:1:41: auth.anonymous.subscribe[2]: has an empty token",
        "0.yaml:2:10: routes[0]: must be a map",
        "0.yaml:2:24: routes[1].match.source: must be the name of a source",
        "0.yaml:2:39: routes[2]: must be a map",
        "0.yaml:2:56: routes[3].event: begins with `brokercast.`",
    ];
    for start in starts {
        assert!(problems.iter().any(|line| line.starts_with(start)), "{start}: {problems:#?}");
    }
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
}

#[test]
fn files_that_make_no_tls_server_are_told_among_all_else_and_not_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let pair = |name: &str| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (write(&format!("{name}.crt"), &made.cert.pem()), write(&format!("{name}.key"), &made.signing_key.serialize_pem()))
    };
    let ((certificate, key), (_, other)) = (pair("a"), pair("b"));
    for (certificate, key, expected) in [
        (&key, &key, "server.tls.certificate: must name a PEM file with a certificate"),
        (&certificate, &certificate, "server.tls.private_key: must name a PEM file with a private key"),
        (&certificate, &other, "server.tls: must be a certificate and the private key that belongs to it"),
    ] {
        let problems = bad(&[&format!("server:\n  tls: {{ certificate: {certificate}, private_key: {key} }}\n  heartbeat: x\n")], &[]);
        assert_eq!(problems.len(), 2, "{problems:#?}");
        assert!(problems.iter().any(|line| line.starts_with("0.yaml:2:") && line.contains(expected)), "{problems:#?}");
        assert!(problems.iter().all(|line| !line.contains(folder.path().to_str().unwrap())), "{problems:#?}");
    }
}

#[test]
fn a_missing_key_hides_no_other_problem() {
    let problems = bad(
        &[
            "sources: { a.b: { nats: { servers: nats://x, subject: [a], jetstream: { create: true }, user: u, token: t } }, c: { http: {}, max_payload: 0 } }",
        ],
        &[],
    );
    let expected = [
        "sources.a.b: a source's name must be",
        "sources.a.b.nats.servers: must be a list",
        "sources.a.b.nats.subject: is not a known key",
        "sources.a.b.nats.subjects: is missing",
        "sources.a.b.nats.jetstream.stream: is missing",
        "sources.c.http.subjects: is missing",
        "sources.c.max_payload: must be a size",
    ];
    for expected in expected {
        assert!(problems.iter().any(|p| p.contains(expected)), "{expected}: {problems:#?}");
    }
    // And what the adapter says of the two ways to log in; none of what stands in for what is missing.
    assert_eq!(problems.len(), expected.len() + 1, "{problems:#?}");
}

#[test]
fn a_list_is_no_map() {
    for text in ["window: []", "server: [\"127.0.0.1:1\"]", "sources: []", "auth: { jwt: [] }", "sources: { a: { ticker: [1s, x] } }"] {
        let problems = bad(&[text], &[]);
        assert!(problems.len() == 1 && problems[0].contains("must be a map of keys and values"), "{text}: {problems:?}");
    }
}

proptest::proptest! {
    /// Whatever stands in a file: an answer, no panic, no endless loop.
    #[test]
    fn any_soup_of_keys_and_values_gets_an_answer(
        words in proptest::collection::vec(proptest::sample::select(SOUP.to_vec()), 0..40),
        variables in proptest::collection::vec(proptest::sample::select(SOUP.to_vec()), 0..6),
    ) {
        let kept = files(&[&words.concat()]);
        let named = variables.chunks(2).map(|pair| (format!("BROKERCAST__{}", pair[0].trim()), pair[pair.len() - 1].to_owned()));
        let environment = named.map(|(name, value)| (name.replace([':', ' '], "__").into(), value.into()));
        if let Err(error) = load_with(&kept.paths, environment.collect::<Vec<_>>(), None) {
            proptest::prop_assert!(error.lines().count() > 0);
        }
    }
}

const SOUP: [&str; 48] = [
    "server:",
    "auth:",
    "jwt:",
    "keys:",
    "sources:",
    "routes:",
    "match:",
    "source:",
    "subject:",
    "subjects:",
    "nats:",
    "amqp:",
    "http:",
    "ticker:",
    "servers:",
    "window:",
    "log:",
    "filter:",
    "listen:",
    "tls:",
    "cors:",
    "origins:",
    "jetstream:",
    "stream:",
    "create:",
    "a:",
    " x",
    " 1",
    " true",
    " null",
    " \"*\"",
    " 10s",
    " [",
    "]",
    " {",
    "}",
    ", ",
    "\n",
    "\n  ",
    "\n    ",
    "\n      ",
    "\n- ",
    "\n  - ",
    " &a",
    " *a",
    " a.>",
    " {1}",
    " 127.0.0.1:0",
];

#[test]
fn windows_line_ends_marks_anchors_and_merge_keys_are_fine() {
    let loaded = good(
        &[
            "\u{feff}server:\r\n  heartbeat: 2s\r\nsources:\r\n  a: &a\r\n    ticker: &t { subject: x, every: 2s }\r\n  b: { ticker: { <<: *t, subject: y } }\r\n",
        ],
        &[],
    );
    assert_eq!(loaded.settings.streams.heartbeat.as_secs(), 2);
    assert_eq!(loaded.settings.sources.last().unwrap().adapter.reach()[0].as_str(), "y");
    assert_eq!(loaded.yaml.matches("every: 2s").count(), 2);
}

#[test]
fn a_bomb_of_aliases_is_refused_at_once() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let all = format!("*a{}, ", n - 1).repeat(9);
        bomb.push_str(&format!("a{n}: &a{n} [{all}]\n"));
    }
    let started = std::time::Instant::now();
    assert_eq!(bad(&[&bomb], &[]).len(), 1);
    assert_eq!(bad(&[&"[".repeat(100_000)], &[]).len(), 1);
    assert!(started.elapsed().as_secs() < 5);
}
