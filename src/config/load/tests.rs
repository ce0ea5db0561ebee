use std::ffi::OsString;
use std::io::Write as _;

use super::*;
use crate::config::{LogFormat, RouteAction};
use crate::source::AdapterConfig;

/// Files with these contents, kept as long as it lives.
struct Files {
    _folder: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

fn files(texts: &[&str]) -> Files {
    let folder = tempfile::tempdir().unwrap();
    let write = |(n, text): (usize, &&str)| {
        let path = folder.path().join(format!("{n}.yaml"));
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    };
    let paths = texts.iter().enumerate().map(write).collect();
    Files { _folder: folder, paths }
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn good(texts: &[&str], variables: &[(&str, &str)]) -> Loaded {
    let files = files(texts);
    load_with(&files.paths, environment(variables)).unwrap_or_else(|e| panic!("{e}"))
}

/// The problems' lines, files called by their number.
fn bad(texts: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    let files = files(texts);
    let error = load_with(&files.paths, environment(variables)).expect_err("a configuration error");
    let folder = format!("{}/", files._folder.path().display());
    error.lines().map(|line| line.replace(&folder, "")).collect()
}

const KEY: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn without_a_file_the_demo_counts() {
    let loaded = load_with(&[], []).unwrap_or_else(|e| panic!("{e}"));
    let names: Vec<_> = loaded.config.sources.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["clock", "inbox"]);
    assert_eq!(loaded.config.server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(loaded.config.auth.anonymous.subscribe[0].as_str(), ">");
    assert_eq!(loaded.config.server.hosts.as_deref().unwrap(), ["localhost", "127.0.0.1", "[::1]"]);
}

#[test]
fn a_loopback_listener_open_to_all_answers_to_the_public_name_of_a_proxy_too() {
    let open = "auth: { anonymous: { subscribe: [a] } }";
    let loaded = good(&["server: { public_url: \"https://Live.Example.com\" }", open], &[]);
    assert_eq!(loaded.config.server.hosts.as_deref().unwrap(), ["localhost", "127.0.0.1", "[::1]", "live.example.com"]);
}

#[test]
fn with_a_file_nothing_of_the_demo_counts_and_defaults_are_the_documented_ones() {
    let loaded = good(&["window: { age: 1m }"], &[]);
    let config = &loaded.config;
    assert!(config.sources.is_empty() && config.auth.anonymous.subscribe.is_empty() && config.auth.anonymous.publish.is_empty());
    assert_eq!(config.window.age.as_secs(), 60);
    assert_eq!(config.window.bytes, 16 << 20);
    assert_eq!(config.server.heartbeat.as_secs(), 15);
    assert_eq!(config.server.retry.as_secs(), 3);
    assert_eq!(config.server.drain.as_secs(), 10);
    assert_eq!(config.server.limits.header_bytes, 16 << 10);
    assert_eq!(config.server.hosts, None);
    assert_eq!(config.auth.carriers.cookie.as_deref(), Some("brokercast"));
    assert_eq!((config.subscribers.max, config.subscribers.max_per_identity), (10_000, Some(20)));
    assert_eq!((config.subscribers.max_per_address, config.subscribers.waiting), (None, 100));
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8081");
    assert_eq!(config.log.format, LogFormat::Auto);
}

#[test]
fn an_empty_file_is_a_configuration() {
    assert!(good(&[""], &[]).config.sources.is_empty());
    assert!(good(&["# nothing\n"], &[]).config.sources.is_empty());
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
    let config = &loaded.config;
    assert_eq!((config.server.heartbeat.as_secs(), config.server.retry.as_secs()), (1, 7));
    assert_eq!(config.auth.anonymous.subscribe.iter().map(|p| p.as_str()).collect::<Vec<_>>(), ["c"]);
    assert_eq!(config.auth.carriers.query, None);
    assert_eq!(config.sources.keys().map(|n| n.as_str()).collect::<Vec<_>>(), ["three", "two"]);
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
    let config = &loaded.config;
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:9999");
    assert_eq!(config.subscribers.max, 12);
    assert_eq!(config.auth.anonymous.subscribe[0].as_str(), "x.>");
    assert_eq!(config.auth.anonymous.publish[1].as_str(), "z");
    let jwt = config.auth.jwt.as_ref().unwrap();
    assert_eq!(jwt.audience.as_deref(), Some("12345"));
    let crate::config::KeyMaterial::Secret(secret) = &jwt.keys[0].key else { panic!("a secret") };
    assert_eq!(secret.expose(), b"00000000000000000000000000000001");
    assert_eq!(config.sources.keys().map(|n| n.as_str()).collect::<Vec<_>>(), ["My-Orders", "new", "under__scored"]);
    assert!(!config.sources.values().next().unwrap().required);
    assert_eq!(config.sources.values().last().unwrap().max_payload, 2 << 20);
    assert_eq!(config.window.age.as_secs(), 90);
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
        let crate::config::KeyMaterial::Secret(secret) = &loaded.config.auth.jwt.as_ref().unwrap().keys[0].key else { panic!() };
        assert_eq!(secret.expose(), text.as_bytes());
        assert!(!loaded.to_yaml().contains(text.trim()), "{}", loaded.to_yaml());
    }
}

#[test]
fn a_number_in_yaml_is_a_text_as_written_where_a_text_is_wanted() {
    let loaded =
        good(&["auth: { jwt: { audience: 007, keys: [{ algorithms: [HS256], secret: 01e10000000000000000000000000000000 }] } }"], &[]);
    let jwt = loaded.config.auth.jwt.as_ref().unwrap();
    assert_eq!(jwt.audience.as_deref(), Some("007"));
    let crate::config::KeyMaterial::Secret(secret) = &jwt.keys[0].key else { panic!() };
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
        "0.yaml:5:48: server.cors.credential: is no known key (known: origins, credentials)",
        "0.yaml:6:3: server.dashboard: must be true or false",
        "0.yaml:8:3: subscribers.max: must be a whole number, 0 or more",
        "0.yaml:9:3: subscribers.max_stall: must be a duration longer than 0",
        "0.yaml:11:14: routes[0].match.source: must be the name of a source (configured: clock, -bad, none)",
        "0.yaml:12:5: routes[0].subject: uses `{2}`",
        "0.yaml:13:5: routes[0].event: begins with `brokercast.`",
        "0.yaml:14:14: routes[1].match.subject: has an empty token",
        "0.yaml:15:5: routes[2]: must say what it is about",
        "0.yaml:17:3: sources.clock: must hold exactly one of",
        "0.yaml:17:33: sources.clock.ticker.subject: has white space",
        "0.yaml:18:3: sources.-bad: a source's name must be",
        "0.yaml:19:3: sources.none: must hold exactly one of",
        "0.yaml:20:1: unknown: is no known key (known: server, admin, auth, subscribers, window, log, sources, routes)",
    ];
    for (at, start) in starts.iter().enumerate() {
        assert!(problems.get(at).is_some_and(|line| line.starts_with(start)), "expected {start}\nin {problems:#?}");
    }
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
}

#[test]
fn no_problem_echoes_a_value() {
    let secret = "s3cr3t-value";
    let places = [
        "server: { listen: VALUE }",
        "server: { heartbeat: VALUE, tls: VALUE, cors: { origins: [VALUE] }, hosts: [\"a/VALUE\"], public_url: VALUE }",
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
    assert!(problems[0].starts_with("0.yaml:1:22: server.drain: stands twice"), "{problems:?}");
    assert!(problems[1].starts_with("0.yaml:3:1: window: stands twice (the first is on line 2)"), "{problems:?}");
}

#[test]
fn files_that_are_missing_or_no_yaml_are_all_named() {
    let kept = files(&["a: [", "- a list"]);
    let paths = [vec![PathBuf::from("/nowhere/brokercast.yaml")], kept.paths.clone()].concat();
    let lines: Vec<_> = load_with(&paths, []).err().unwrap().lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with("/nowhere/brokercast.yaml: this configuration file cannot be read"), "{lines:?}");
    assert!(lines[1].contains("0.yaml:") && lines[1].contains("is no YAML"), "{lines:?}");
    assert!(lines[2].contains("1.yaml:1:1: must be a map"), "{lines:?}");
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
        problems.iter().any(|p| p.starts_with("environment variable BROKERCAST__SERVRE__LISTEN: servre: is no known key")),
        "{problems:?}"
    );
}

#[test]
fn anonymous_access_beyond_loopback_needs_its_word() {
    let open = "server: { listen: 0.0.0.0:80 }\nauth: { anonymous: { ROLE: [a] BEYOND } }";
    for role in ["subscribe", "publish"] {
        let problems = bad(&[&open.replace("ROLE", role).replace("BEYOND", "")], &[]);
        assert!(problems[0].contains("auth.anonymous.beyond_loopback: must be true"), "{problems:?}");
        let loaded = good(&[&open.replace("ROLE", role).replace("BEYOND", ", beyond_loopback: true")], &[]);
        assert_eq!(loaded.config.server.hosts, None);
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
    let crate::config::KeyMaterial::Secret(secret) = &loaded.config.auth.jwt.as_ref().unwrap().keys[0].key else { panic!() };
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
    let routes = &loaded.config.routes;
    assert_eq!(routes[0].source.as_ref().unwrap().as_str(), "s");
    let RouteAction::Pass { event, envelope, .. } = &routes[0].action else { panic!() };
    assert_eq!((event.as_deref(), *envelope), (Some("e-{1}"), crate::event::Envelope::Raw));
    assert!(matches!(routes[1].action, RouteAction::Drop));
    assert_eq!(routes[2].matches.as_str(), ">");
}

#[test]
fn origins_are_serialised_as_browsers_do() {
    let loaded = good(
        &[
            "server: { cors: { origins: [\"HTTPS://Dash.Example.com:443\", \"http://[::1]:3000\"] }, public_url: \"https://live.example.com/\" }",
        ],
        &[],
    );
    assert_eq!(loaded.config.server.cors.origins, ["https://dash.example.com", "http://[::1]:3000"]);
    assert_eq!(loaded.config.server.public_url.as_deref(), Some("https://live.example.com"));
    for origin in
        ["dash.example.com", "https://", "https://a/b", "https://u@a", "ftp://a", "https://a:x", "https://a b", "null", "https://*.a"]
    {
        let problems = bad(&[&format!("server: {{ cors: {{ origins: [\"{origin}\"] }} }}")], &[]);
        assert!(problems.len() == 1 && problems[0].contains("server.cors.origins[0]"), "{origin}: {problems:?}");
    }
    assert!(bad(&["server: { cors: { origins: [\"*\"], credentials: true } }"], &[])[0].contains("server.cors.credentials"));
}

#[test]
fn a_type_error_hides_no_other_problem_and_brings_no_false_one() {
    let problems =
        bad(&["sources: { a: { ticker: [] }, b: 5 }\nroutes: [{ match: { source: b } }, { match: { source: a }, subject: \"x.\" }]"], &[]);
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert!(problems[0].contains("sources.a.ticker: must be a map"), "{problems:#?}");
    assert!(problems[1].contains("sources.b: must be a map"), "{problems:#?}");
    assert!(problems[2].contains("routes[1].subject: gives no subject"), "{problems:#?}");
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
        "sources.a.b.nats.subject: is no known key",
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
        if let Err(error) = load_with(&kept.paths, environment.collect::<Vec<_>>()) {
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
fn trusted_proxies_are_networks() {
    let loaded = good(&["subscribers: { trusted_proxies: [10.0.0.0/8, 192.168.1.7, \"fd00::/8\", 0.0.0.0/0] }"], &[]);
    assert_eq!(loaded.config.subscribers.trusted_proxies[1], ("192.168.1.7".parse().unwrap(), 32));
    for text in ["10.0.0.1/8", "10.0.0.0/33", "a", "10.0.0.0/", "10.0.0.0/+8"] {
        let problems = bad(&[&format!("subscribers: {{ trusted_proxies: [\"{text}\"] }}")], &[]);
        assert!(problems.len() == 1, "{text}: {problems:?}");
    }
}

#[test]
fn what_counts_in_the_end_is_shown_without_secrets() {
    let file = format!(
        "
auth: {{ jwt: {{ issuer: me, keys: [{{ algorithms: [HS256], secret: {KEY} }}] }}, anonymous: {{ subscribe: [\"a.>\"] }} }}
sources:
  s: {{ nats: {{ servers: [\"nats://user:pa%2Fss@h:4222\"], subjects: [\"a.>\"] }} }}
  t: {{ ticker: {{ subject: x }}, max_payload: 2048 }}
"
    );
    let loaded = good(&[&file], &[]);
    let yaml = loaded.to_yaml();
    for secret in [KEY, "pa%2Fss"] {
        assert!(!yaml.contains(secret), "{yaml}");
    }
    for shown in ["issuer: me", "heartbeat: 15s", "required: true", "max_payload: 2KiB", "@h:4222", "max: 10000", "subjects"] {
        assert!(yaml.contains(shown), "{shown}:\n{yaml}");
    }
    // What is shown can be read again, but for what was withheld.
    let again = good(&[&yaml.replace("(withheld)", KEY)], &[]);
    assert_eq!(again.config.sources.len(), loaded.config.sources.len());
    assert_eq!(again.to_yaml(), yaml);
}

#[test]
fn what_is_shown_is_the_same_when_read_again() {
    for text in [
        "no",
        "007",
        "1e3",
        "~",
        "null",
        "a: b",
        "#x",
        "- y",
        "it's \"quoted\"",
        "line\nbreak",
        " x ",
        "true",
        "[a",
        "@at",
        "ü",
        "!tag",
        "*a",
    ] {
        let quoted = serde_json::to_string(text).unwrap();
        let file = format!("auth: {{ jwt: {{ audience: {quoted}, keys: [{{ id: {quoted}, algorithms: [HS256], secret: {KEY} }}] }} }}");
        let loaded = good(&[&file], &[]);
        let again = good(&[&loaded.to_yaml().replace("(withheld)", KEY)], &[]);
        let jwt = again.config.auth.jwt.as_ref().unwrap();
        assert_eq!((jwt.audience.as_deref(), jwt.keys[0].id.as_deref()), (Some(text), Some(text)), "{}", loaded.to_yaml());
    }
}

#[test]
fn defaults_of_adapters_are_shown_and_can_be_read_again() {
    let file = "
sources:
  t: { ticker: { subject: x } }
  n: { nats: { servers: [\"nats://h\"], subjects: [a], jetstream: { stream: S, create: true } } }
  m: { nats: { servers: [\"nats://h\"], subjects: [a], jetstream: { stream: S, create: { replicas: 3 } } } }
  e: { amqp: { url: \"amqp://h\", exchange: x } }
  q: { amqp: { url: \"amqp://h\", queue: q } }
  d: { amqp: { url: \"amqp://h\", queue: q, declare: true, exchange: x, binding_keys: [k] } }
  s: { amqp: { url: \"amqp://h\", exchange: x, queue_type: stream, max_age: 1h } }
";
    let loaded = good(&[file], &[]);
    let yaml = loaded.to_yaml();
    for shown in ["every: 1s", "max_bytes: 1GiB", "replicas: 1", "replicas: 3", "prefetch: 1000", "exchange_type: topic", "max_age: 1h"] {
        assert!(yaml.contains(shown), "{shown}: {yaml}");
    }
    assert_eq!(good(&[&yaml], &[]).to_yaml(), yaml);
}

#[test]
fn addresses_are_shown_without_who_asks() {
    use super::super::node::withhold_userinfo;
    for (written, shown) in [
        ("nats://u:p@h:4222", "nats://(withheld)@h:4222"),
        ("nats://token@h", "nats://(withheld)@h"),
        ("amqp://u:p/a@ss@h/%2f?heartbeat=5&password=x", "amqp://(withheld)@h/%2f?heartbeat=5&password=(withheld)"),
        ("https://h/path", "https://h/path"),
        ("no url", "no url"),
    ] {
        assert_eq!(withhold_userinfo(written), shown);
    }
}

#[test]
fn windows_line_ends_marks_anchors_and_merge_keys_are_fine() {
    let loaded = good(
        &[
            "\u{feff}server:\r\n  heartbeat: 2s\r\nsources:\r\n  a: &a\r\n    ticker: &t { subject: x, every: 2s }\r\n  b: { ticker: { <<: *t, subject: y } }\r\n",
        ],
        &[],
    );
    assert_eq!(loaded.config.server.heartbeat.as_secs(), 2);
    let AdapterConfig::Ticker(b) = &loaded.config.sources.values().last().unwrap().adapter else { panic!() };
    assert_eq!((b.subject.as_str(), b.every.as_secs()), ("y", 2));
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

#[test]
fn warnings_name_what_may_not_be_meant() {
    let warnings = |text: &str| good(&[text], &[]).warnings().join("\n");
    assert!(warnings("").contains("nobody may subscribe"));
    assert!(good(&["sources: { a: { http: { subjects: [x] } } }"], &[]).notes().join("").contains("sources.a: splits"));
    assert!(warnings("window: { bytes: 1KiB }\nsources: { a: { ticker: { subject: x } } }").contains("does not fit `window.bytes`"));
    assert!(warnings("server: { listen: 0.0.0.0:1 }\nsubscribers: { max_per_address: 3 }").contains("trusted_proxies"));
    assert!(warnings("subscribers: { max: 4000000000 }").contains("hard limit"));
    let demo = load_with(&[], []).unwrap_or_else(|e| panic!("{e}"));
    assert!(matches!(demo.config.sources.values().next().unwrap().adapter, AdapterConfig::Ticker(_)));
    assert_eq!(demo.warnings(), [""; 0]);
}

#[test]
fn every_example_is_good() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let loaded = load_with(std::slice::from_ref(&path), []).unwrap_or_else(|e| panic!("{e}"));
            assert!(!loaded.config.sources.is_empty(), "{}", path.display());
        }
    }
}

#[test]
fn many_durable_sources_are_noted_and_too_many_refused() {
    let sources = |count: usize| {
        let one = |n| format!("  s{n}: {{ nats: {{ servers: [\"nats://h\"], subjects: [\"a.>\"], jetstream: {{ stream: S }} }} }}\n");
        format!("sources:\n{}", (0..count).map(one).collect::<String>())
    };
    assert!(good(&[&sources(7)], &[]).notes().is_empty());
    assert!(good(&[&sources(8)], &[]).notes()[0].contains("longer than 128 bytes"));
    let problems = bad(&[&sources(61)], &[]);
    assert!(problems.iter().any(|p| p.contains("sources: must not hold more than 60 durable sources")), "{problems:?}");
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
