use super::*;

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
    let yaml = loaded.yaml;
    for secret in [KEY, "pa%2Fss"] {
        assert!(!yaml.contains(secret), "{yaml}");
    }
    for shown in ["issuer: me", "heartbeat: 15s", "required: true", "max_payload: 2KiB", "@h:4222", "max: 10000", "subjects"] {
        assert!(yaml.contains(shown), "{shown}:\n{yaml}");
    }
    // What is shown can be read again, but for what was withheld.
    let again = good(&[&yaml.replace("(withheld)", KEY)], &[]);
    assert_eq!(again.settings.sources.len(), loaded.settings.sources.len());
    assert_eq!(again.yaml, yaml);
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
        let again = good(&[&loaded.yaml.replace("(withheld)", KEY)], &[]);
        let jwt = &again.settings.auth.issuers[0];
        assert_eq!((jwt.audiences[0].as_str(), jwt.signers().next().unwrap().id.as_deref()), (text, Some(text)), "{}", loaded.yaml);
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
    let yaml = loaded.yaml;
    for shown in ["every: 1s", "max_bytes: 1GiB", "replicas: 1", "replicas: 3", "prefetch: 1000", "exchange_type: topic", "max_age: 1h"] {
        assert!(yaml.contains(shown), "{shown}: {yaml}");
    }
    assert_eq!(good(&[&yaml], &[]).yaml, yaml);
}

#[test]
fn algorithms_that_are_left_out_are_shown_as_what_they_are() {
    let text = "auth: { jwt: { issuer: 'https://id.example.com', audience: a, discover: true } }";
    let yaml = good(&[text], &[]).yaml;
    assert!(yaml.contains("RS256") && yaml.contains("ES256"), "{yaml}");
    assert_eq!(good(&[&yaml], &[]).yaml, yaml);
}

#[test]
fn warnings_name_what_may_not_be_meant() {
    let warnings = |text: &str| good(&[text], &[]).warnings.join("\n");
    assert!(warnings("").contains("nobody may subscribe"));
    assert!(good(&["sources: { a: { http: { subjects: [x] } } }"], &[]).notes.join("").contains("sources.a: splits"));
    assert!(warnings("window: { bytes: 1KiB }\nsources: { a: { ticker: { subject: x } } }").contains("does not fit `window.bytes`"));
    assert!(warnings("server: { listen: 0.0.0.0:1 }\nsubscribers: { max_per_address: 3 }").contains("trusted_proxies"));
    assert!(warnings("subscribers: { max: 4000000000 }").contains("hard limit"));
    for (key, everybody) in [("trusted_proxies", "0.0.0.0/0"), ("trusted_proxies", "'::/0'"), ("proxy_protocol", "'::/0'")] {
        let proxies = |networks: &str| warnings(&format!("server: {{ {key}: [127.0.0.1, {networks}] }}"));
        assert!(proxies(everybody).contains(&format!("server.{key}: takes everybody for a proxy")));
        assert!(!proxies("10.0.0.0/8").contains("takes everybody"));
    }
    let token = |token: &str| warnings(&format!("admin: {{ token: {token} }}")).contains("admin.token: is shorter than 16 bytes");
    assert!(token("x") && token("123456789abcdef") && !token("123456789abcdefg"));
    let carrier = |name: &str| {
        let keys = format!("[{{ algorithms: [HS256], secret: {KEY} }}]");
        warnings(&format!("auth: {{ jwt: {{ keys: {keys} }}, carriers: {{ header: {name} }} }}")).contains("auth.carriers.header")
    };
    assert_eq!(["Origin", "last-event-id", "X-Token"].map(carrier), [true, true, false]);
    let twice = |source: &str| warnings(&format!("sources: {{ s: {{ {source} }} }}"));
    let in_url = "url: 'amqp://u:secret@h', queue: q, user: u, password: other";
    assert!(twice(&format!("amqp: {{ {in_url} }}")).contains("sources.s.amqp.url: has a password, which does not count beside `password`"));
    assert!(twice(&format!("amqp: {{ {in_url}, queue_type: stream }}")).contains("sources.s.amqp.url: has a password"));
    let nats = "nats: { servers: ['nats://h', 'nats://secret@h2'], subjects: [a], token: other }";
    assert!(twice(nats).contains("sources.s.nats.servers: has a user or token in an address, which does not count beside `token`"));
    assert!(!twice(nats).contains("secret"));
    for once in [in_url.replace("u:secret@", ""), in_url.replace(", user: u, password: other", ""), in_url.replace(":secret", "")] {
        assert!(!twice(&format!("amqp: {{ {once} }}")).contains("does not count"), "{once}");
    }
    let demo = load_with(&[], [], None).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(demo.warnings, [""; 0]);
}

#[test]
fn routes_that_others_leave_nothing_are_named() {
    let never = |routes: &str| {
        let sources = "sources:\n  a: { nats: { servers: ['nats://h'], subjects: ['a.>', b] } }\n  c: { ticker: { subject: c } }\n";
        let warnings = good(&[&format!("{sources}routes: [{routes}]")], &[]).warnings.into_iter();
        warnings
            .filter_map(|w| Some(w.split_once(": can never match: what it is about is taken before it, by ")?.0.to_owned()))
            .collect::<Vec<_>>()
    };
    let (all, of_a) = ("{ match: { subject: '>' }, event: x }", "{ match: { source: a }, drop: true }");
    let named = |subject: &str| format!("{{ match: {{ subject: '{subject}' }}, event: y }}");
    for (routes, expected) in [
        (format!("{all}, {}, {of_a}", named("a.x")), vec!["routes[1]", "routes[2]"]),
        (format!("{of_a}, {}, {}", named("a.x"), named("c")), vec!["routes[1]"]),
        (format!("{of_a}, {all}"), vec![]),
        (format!("{}, {}, {}", named("a.*"), named("a.x"), named("a.>")), vec!["routes[1]"]),
        (format!("{}, {}, {}", named("a.>"), named("b"), of_a), vec!["routes[2]"]),
        // Nothing of this kind comes at all: a source may be meant that is added later.
        (format!("{all}, {}", named("z")), vec![]),
        // A header may be missing: then the next one counts.
        (format!("{{ match: {{ subject: 'a.>' }}, subject: 'x.{{header.K}}' }}, {}", named("a.x")), vec![]),
    ] {
        assert_eq!(never(&routes), expected, "{routes}");
    }
}

#[test]
fn another_source_that_would_show_revocations_is_named() {
    let warned = |other: &str, routes: &str| {
        let text = format!(
            "auth: {{ jwt: {{ keys: [{{ algorithms: [HS256], secret: {KEY} }}] }}, revocations: {{ source: a, subject: ctl.r }} }}\n\
             sources:\n  a: {{ nats: {{ servers: ['nats://h'], subjects: ['ctl.>'] }} }}\n  b: {other}\nroutes: [{routes}]\n"
        );
        good(&[&text], &[]).warnings.join("").contains("sources.b: reads `ctl.r` too, the subject of `auth.revocations` (source `a`)")
    };
    let other = "{ nats: { servers: ['nats://h'], subjects: ['>'], jetstream: { stream: S } } }";
    assert!(warned(other, "") && warned(other, "{ match: { source: a, subject: ctl.r }, drop: true }"));
    assert!(!warned(other, "{ match: { source: b, subject: ctl.r }, drop: true }"));
    assert!(!warned("{ nats: { servers: ['nats://h'], subjects: ['orders.>'] } }", ""));
    assert!(!warned("{ ticker: { subject: ctl.r } }", ""));
}

#[test]
fn many_durable_sources_are_noted_and_too_many_refused() {
    let sources = |count: usize| {
        let one = |n| format!("  s{n}: {{ nats: {{ servers: [\"nats://h\"], subjects: [\"a.>\"], jetstream: {{ stream: S }} }} }}\n");
        format!("sources:\n{}", (0..count).map(one).collect::<String>())
    };
    assert!(good(&[&sources(7)], &[]).notes.is_empty());
    assert!(good(&[&sources(8)], &[]).notes[0].contains("longer than 128 bytes"));
    let problems = bad(&[&sources(61)], &[]);
    assert!(problems.iter().any(|p| p.contains("sources: must not hold more than 60 durable sources")), "{problems:?}");
}

#[test]
fn each_partition_of_a_super_stream_has_its_place_in_ids() {
    let source = |partitions: Vec<String>| {
        let partitions = partitions.join(", ");
        format!("sources:\n  s: {{ amqp: {{ url: 'amqp://h', queue_type: super_stream, partitions: [{partitions}] }} }}\n")
    };
    let many = |count: usize| source((0..count).map(|n| format!("p{n}")).collect());
    assert!(good(&[&many(7)], &[]).notes.is_empty());
    assert!(good(&[&many(8)], &[]).notes[0].contains("longer than 128 bytes"));
    let problems = bad(&[&many(61)], &[]);
    assert!(problems.iter().any(|p| p.contains("each partition of a super stream")), "{problems:?}");
    // Two that an id could not tell apart.
    let same = (0..).map(|n| format!("p{n}")).find(|p| Tag::of(&format!("s/{p}")) == Tag::of("log")).unwrap();
    let log = "  log: { nats: { servers: ['nats://h'], subjects: [a], jetstream: { stream: S } } }\n";
    let problems = bad(&[&(source(vec!["first".to_owned(), same]) + log)], &[]);
    assert!(problems.iter().any(|p| p.contains("sources.s: must have another name")), "{problems:?}");
}
