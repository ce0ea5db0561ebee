use proptest::prelude::*;

use super::template::TemplateError;
use super::*;
use crate::event::Timestamp;
use crate::subject::MAX_SUBJECT;

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| pattern(text)).collect()
}

/// A rule as it is written.
#[derive(Debug, Clone)]
struct Written {
    source: Option<SourceName>,
    matches: Pattern,
    drop: bool,
    subject: Option<String>,
    event: Option<String>,
}

impl Written {
    fn compile(&self) -> Result<Rule, TemplateError> {
        let subject = self.subject.as_deref().map(|text| SubjectTemplate::new(text, &self.matches)).transpose()?;
        let name = self.event.as_deref().map(|text| NameTemplate::new(text, &self.matches)).transpose()?;
        let pass = Pass { subject, name, envelope: Envelope::CloudEvents, headers: None, deleted: false };
        let action = if self.drop { Action::Drop } else { Action::Pass(Arc::new(pass)) };
        Ok(Rule { key: Arc::from(""), source: self.source.clone(), matches: self.matches.clone(), action })
    }
}

fn pass(matches: &str, subject: Option<&str>, event: Option<&str>) -> Written {
    let text = |text: Option<&str>| text.map(str::to_owned);
    Written { source: None, matches: pattern(matches), drop: false, subject: text(subject), event: text(event) }
}

fn dropping(matches: &str) -> Written {
    Written { drop: true, ..pass(matches, None, None) }
}

fn compiled(rules: &[Written]) -> Vec<Rule> {
    rules.iter().map(|rule| rule.compile().expect("rules that fit")).collect()
}

fn message(subject: &str) -> Message {
    Message::new(
        subject.parse().unwrap_or_else(|e| panic!("{subject}: {e}")),
        b"payload".as_slice().into(),
        Timestamp::from_micros(7),
        None,
    )
}

fn router(rules: &[Written], reach: &[&str]) -> Router {
    Router::new(&compiled(rules), &"orders".parse().expect("a name"), &patterns(reach), Arc::default())
}

fn routed(rules: &[Written], subject: &str) -> Option<(String, Option<String>)> {
    router(rules, &[">"]).route(message(subject)).map(|e| (e.subject.as_str().to_owned(), e.name.map(|n| n.to_string())))
}

#[test]
fn what_no_route_matches_passes_unchanged() {
    for rules in [&[][..], &[dropping("b.>")]] {
        let event = router(rules, &[">"]).route(message("a.b")).expect("an event");
        assert_eq!((event.subject.as_str(), event.name, event.envelope), ("a.b", None, Envelope::Json));
        assert_eq!((&event.payload[..], event.time), (&b"payload"[..], Timestamp::from_micros(7)));
    }
}

#[test]
fn the_first_match_wins() {
    let rules = [pass("a.b", Some("first"), None), dropping("a.*"), pass(">", Some("last"), Some("n"))];
    assert_eq!(routed(&rules, "a.b"), Some(("first".into(), None)));
    assert_eq!(routed(&rules, "a.c"), None);
    assert_eq!(routed(&rules, "b"), Some(("last".into(), Some("n".into()))));
}

#[test]
fn captures_are_what_the_wildcards_took() {
    for (matches, template, subject, expected) in [
        ("orders.*.created", "shop.{1}.created", "orders.eu.created", "shop.eu.created"),
        ("*.*.>", "{>}.{2}.{1}", "a.b.c.d", "c.d.b.a"),
        (">", "all.{>}", "x", "all.x"),
        (">", "x-{>}-y", "a.b", "x-a.b-y"),
        ("a.*.>", "{1}{1}", "a.ä.c", "ää"),
        ("*", "{{{1}}}", "q", "{q}"),
        ("a.*.b", "fixed", "a.1.b", "fixed"),
    ] {
        assert_eq!(routed(&[pass(matches, Some(template), None)], subject), Some((expected.into(), None)), "{matches} {template}");
    }
    assert_eq!(routed(&[pass("a.*.>", None, Some("{1} did {>}"))], "a.bob.x.y"), Some(("a.bob.x.y".into(), Some("bob did x.y".into()))));
}

#[test]
fn a_rule_of_one_source_leaves_the_others_alone() {
    let mut rule = dropping(">");
    rule.source = Some("b".parse().expect("a name"));
    let [a, b] = ["a", "b"].map(|name| {
        let name = name.parse().expect("a name");
        Router::new(&compiled(std::slice::from_ref(&rule)), &name, &patterns(&[">"]), Arc::default())
    });
    assert!(a.route(message("x")).is_some());
    assert!(b.route(message("x")).is_none());
    assert_eq!((a.reach(), b.reach()), (patterns(&[">"]), vec![]));
}

#[test]
fn templates_that_do_not_fit_are_refused_without_echoing_them() {
    use TemplateError as E;
    let check = |rule: &Written| rule.compile().map(drop);
    for (matches, template, why) in [
        ("a.*", "{2}", E::NoStar { asked: 2, stars: 1 }),
        ("a.*", "{99999999999999999999}", E::Placeholder),
        ("a.*", "{0}", E::Placeholder),
        ("a.*", "{01}", E::Placeholder),
        ("a.*", "{+1}", E::Placeholder),
        ("a.*", "{}", E::Placeholder),
        ("a.*", "{name}", E::Placeholder),
        ("a.*", "{1", E::Placeholder),
        ("a.*", "1}", E::Placeholder),
        ("a.*", "{>}", E::NoTail),
        ("a.*", "", E::Empty),
        ("a.*", "x..{1}", E::Subject(crate::subject::SubjectError::EmptyToken)),
        ("a.*", "x.{1}.", E::Subject(crate::subject::SubjectError::EmptyToken)),
        ("a.*", "x y", E::Subject(crate::subject::SubjectError::Character)),
        ("a.*", "x.*", E::Subject(crate::subject::SubjectError::Wildcard)),
    ] {
        assert_eq!(check(&pass(matches, Some(template), None)), Err(why), "{template}");
    }
    for (template, why) in
        [("brokercast.gap", E::Reserved), ("brokercast.{1}", E::Reserved), ("a\nb", E::Control), ("a\0{1}", E::Control), ("", E::Empty)]
    {
        assert_eq!(check(&pass("a.*", None, Some(template))), Err(why), "{template:?}");
    }
    let long = "x".repeat(MAX_SUBJECT);
    assert_eq!(check(&pass("a.*", Some(&long), None)), Err(E::TooLong));
    let many = "{1}".repeat(2700);
    assert_eq!(check(&pass("a.*", Some(&many), None)), Err(E::TooLong));
    assert_eq!(check(&dropping("a.*")), Ok(()));
    let told = check(&pass("a.*", Some("{geheim}"), None)).expect_err("no placeholder").to_string();
    assert!(!told.contains("geheim") && told.contains("`{1}`") && told.contains("`{{`"), "{told}");
}

#[test]
fn a_capture_cannot_forge_a_control_event() {
    let rules = [pass(">", None, Some("{>}"))];
    let router = router(&rules, &[">"]);
    let event = router.route(message("brokercast.gap")).expect("an event");
    assert_eq!((event.subject.as_str(), event.name), ("brokercast.gap", None));
    assert_eq!(router.counts.reserved_names(), 1);
    assert_eq!(router.route(message("brokercast")).and_then(|e| e.name).as_deref(), Some("brokercast"));
    assert_eq!(routed(&[pass("*.*", None, Some("{1}.{2}"))], "brokercast.closing"), Some(("brokercast.closing".into(), None)));
}

#[test]
fn a_subject_that_grows_too_long_is_shortened_and_keeps_its_shape() {
    let rules = [pass("*.>", Some("a.{1}.{>}.{1}.z"), None)];
    let router = router(&rules, &[">"]);
    for (first, rest) in [("x", "b.".repeat(MAX_SUBJECT / 2 - 2) + "b"), ("ä", "ö.".repeat(5000) + "ö"), (&*"ß".repeat(6000), "c".into())]
    {
        let before = router.counts.shortened();
        let event = router.route(message(&format!("{first}.{rest}")));
        let subject = event.expect("an event").subject;
        assert!(subject.as_str().len() <= MAX_SUBJECT);
        assert!(subject.as_str().starts_with("a.") && subject.as_str().ends_with(".z"));
        assert!(router.reach()[0].matches(subject.as_str()));
        let longer = rest.len() + 2 * first.len() + 6 > MAX_SUBJECT;
        assert_eq!(router.counts.shortened() - before, u64::from(longer));
    }
    assert!(router.counts.shortened() > 0);
}

#[test]
fn reach_says_which_subjects_a_source_can_produce_after_routing() {
    let shop = pass("orders.*.created", Some("shop.{1}.created"), None);
    for (rules, reach, expected) in [
        (vec![], &["b", "a.>"][..], &["b", "a.>"][..]),
        (vec![shop.clone()], &["orders.>"], &["shop.*.created", "orders.>"]),
        (vec![shop.clone()], &["orders.eu.*"], &["shop.eu.created", "orders.eu.*"]),
        (vec![shop.clone()], &["orders.*.created"], &["shop.*.created"]),
        (vec![shop], &["other.>"], &["other.>"]),
        (vec![dropping("a.>")], &["a.b", "a.c.>", "c"], &["c"]),
        (vec![dropping("a.>"), pass(">", Some("x.{>}"), None)], &["a.>", "b.*"], &["x.b.*"]),
        (vec![pass("a.*", Some("x-{1}.y"), None)], &["a.*"], &["*.y"]),
        (vec![pass("a.*", Some("x-{1}.y"), None)], &["a.b"], &["x-b.y"]),
        (vec![pass("a.>", Some("x-{>}.y"), None)], &["a.>"], &[">"]),
        (vec![pass("a.>", Some("q.{>}.y"), None)], &["a.b.*"], &["q.b.*.y"]),
        (vec![pass("a.>", Some("q.{>}.y"), None)], &["a.>"], &["q.>"]),
        (vec![pass("a.>", Some("q.x-{>}-y.z"), None)], &["a.*.b.*"], &["q.*.b.*.z"]),
        (vec![pass(">", Some("a"), None)], &["b", "c"], &["a"]),
        (vec![pass("*", None, None), pass("*.>", None, None)], &[">"], &["*", "*.>"]),
    ] {
        let mut found = router(&rules, reach).reach();
        let mut expected = patterns(expected);
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{rules:?} {reach:?}");
    }
}

#[test]
fn a_gap_concerns_only_whom_the_source_can_reach() {
    let rules = [dropping("internal.>"), pass("orders.*.created", Some("shop.{1}"), None)];
    let router = router(&rules, &[">"]);
    for (asked, concerned) in [
        (&["a"][..], true),
        (&["internal.x"], false),
        (&["internal.>"], false),
        (&["internal"], true),
        (&["*.x"], true),
        (&["orders.eu.created", "internal.q"], false),
        (&["orders.*.created"], false),
        (&["orders.*.*"], true),
        (&["shop.eu"], true),
        (&[], false),
    ] {
        assert_eq!(router.concerns(&patterns(asked)), concerned, "{asked:?}");
    }
}

/// Matching and capturing written without cleverness: the captures of each `*`, then of `>`.
fn naive_match(pattern: &[&str], subject: &[&str]) -> Option<(Vec<String>, Option<String>)> {
    match (pattern, subject) {
        ([], []) => Some((vec![], None)),
        ([">"], [_, ..]) => Some((vec![], Some(subject.join(".")))),
        ([p, ps @ ..], [s, ss @ ..]) if *p == "*" || p == s => {
            let (mut stars, tail) = naive_match(ps, ss)?;
            if *p == "*" {
                stars.insert(0, (*s).to_owned());
            }
            Some((stars, tail))
        }
        _ => None,
    }
}

fn naive_route(rules: &[Written], subject: &str) -> Option<(String, Option<String>)> {
    for rule in rules {
        let parts: Vec<&str> = rule.matches.as_str().split('.').collect();
        let Some((stars, tail)) = naive_match(&parts, &subject.split('.').collect::<Vec<_>>()) else { continue };
        let fill = |template: &String| {
            let mut text = template.clone();
            for (i, star) in stars.iter().enumerate() {
                text = text.replace(&format!("{{{}}}", i + 1), star);
            }
            tail.iter().fold(text, |text, tail| text.replace("{>}", tail))
        };
        let name = rule.event.as_ref().map(fill).filter(|name| !name.starts_with(RESERVED));
        return (!rule.drop).then(|| (rule.subject.as_ref().map_or(subject.to_owned(), fill), name));
    }
    Some((subject.to_owned(), None))
}

fn any_pattern() -> impl Strategy<Value = String> {
    let token = prop_oneof![4 => "[ab]", 2 => Just("*".to_owned()), 1 => Just("brokercast".to_owned())];
    (prop::collection::vec(token, 0..4), any::<bool>()).prop_map(|(mut tokens, tail)| {
        if tail || tokens.is_empty() {
            tokens.push(">".to_owned());
        }
        tokens.join(".")
    })
}

fn any_rule() -> impl Strategy<Value = Written> {
    let part = prop_oneof!["[abx]", Just("{1}".to_owned()), Just("{2}".to_owned()), Just("{>}".to_owned()), Just(".".to_owned())];
    let template = prop::option::of(prop::collection::vec(part, 1..6).prop_map(|parts| parts.concat()));
    (any_pattern(), template.clone(), template, 0..5)
        .prop_map(
            |(matches, subject, event, kind)| {
                if kind == 0 { dropping(&matches) } else { pass(&matches, subject.as_deref(), event.as_deref()) }
            },
        )
        .prop_filter("templates that fit", |rule| rule.compile().is_ok())
}

proptest! {
    #[test]
    fn routing_agrees_with_a_naive_reference(
        rules in prop::collection::vec(any_rule(), 0..6),
        reach in prop::collection::vec(any_pattern(), 1..3),
        asked in any_pattern(),
        subjects in prop::collection::vec(prop::collection::vec("a|b|c|brokercast", 1..5), 20),
    ) {
        let reach: Vec<&str> = reach.iter().map(String::as_str).collect();
        let router = router(&rules, &reach);
        let asked = pattern(&asked);
        let after = router.reach();
        for subject in subjects {
            let subject = subject.join(".");
            if !reach.iter().any(|of| pattern(of).matches(&subject)) {
                continue;
            }
            let event = router.route(message(&subject));
            let found = event.as_ref().map(|e| (e.subject.as_str().to_owned(), e.name.as_deref().map(str::to_owned)));
            prop_assert_eq!(&found, &naive_route(&rules, &subject));
            if let Some((subject, _)) = found {
                prop_assert!(after.iter().any(|of| of.matches(&subject)), "{} outside {:?}", subject, after);
                if asked.matches(&subject) {
                    prop_assert!(router.concerns(std::slice::from_ref(&asked)));
                }
            }
        }
    }
}

/// All subjects of up to so many of the tokens that [`any_rule`] and [`any_pattern`] use, and of two that they do not.
fn short_subjects(most: usize) -> Vec<String> {
    let (mut all, mut longest) = (Vec::new(), vec![String::new()]);
    for _ in 0..most {
        let longer = |head: &String| ["a", "b", "x", "ab", "brokercast"].map(|token| format!("{head}.{token}"));
        longest = longest.iter().flat_map(longer).collect();
        all.extend(longest.iter().map(|subject| subject[1..].to_owned()));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_subject_is_given_where_a_message_gets_it(
        rules in prop::collection::vec(any_rule(), 0..6),
        reach in prop::collection::vec(any_pattern(), 1..3),
    ) {
        let reach: Vec<&str> = reach.iter().map(String::as_str).collect();
        let router = router(&rules, &reach);
        let come = short_subjects(5).into_iter().filter(|subject| router.inputs.iter().any(|of| of.matches(subject)));
        let given: std::collections::HashSet<String> =
            come.filter_map(|subject| router.route(message(&subject))).map(|event| event.subject.as_str().to_owned()).collect();
        for subject in &given {
            prop_assert!(router.gives(&subject.parse().unwrap()), "{subject} is given");
        }
        // A longer one may be made of longer ones than those, and of parts of the long token.
        for subject in short_subjects(2).iter().filter(|subject| !subject.contains("brokercast")) {
            prop_assert!(given.contains(subject) || !router.gives(&subject.parse().unwrap()), "{subject} is not given");
        }
    }
}

#[test]
fn a_template_is_read_backwards() {
    let gives = |rules: &[Written], subject: &str| router(rules, &["a.>"]).gives(&subject.parse().unwrap());
    for (matches, template, subject, given) in [
        ("a.*", "k-{1}", "X", false),
        ("a.*", "k-{1}", "k-X", true),
        ("a.*", "k-{1}", "k-X.y", false),
        ("a.*", "{1}.{1}", "x.y", false),
        ("a.*", "{1}.{1}", "x.x", true),
        ("a.*.*", "{1}{2}", "x", false),
        ("a.*.*", "{1}{2}", "xy", true),
        ("a.b.*", "{1}", "x", true),
        ("a.>", "{>}.end", "x.y.end", true),
        ("a.>", "{>}.end", "end", false),
        ("a.>", "{>}.{header.kind}.{header.kind}", "x.y.k.k", true),
        ("a.>", "{>}.{header.kind}.{header.kind}", "x.y.k.l", false),
        ("b.*", "{1}", "x", false),
    ] {
        assert_eq!(gives(&[pass(matches, Some(template), None)], subject), given, "{matches} to {template}: {subject}");
    }
    let dropped = [dropping("a.x"), pass("a.*", Some("{1}"), None)];
    assert!(!gives(&dropped, "x") && gives(&dropped, "y"));
    // With a header it is renamed, without one it keeps its name.
    let by_header = [pass("a.*", Some("b.{header.kind}"), None)];
    assert!(gives(&by_header, "a.x") && gives(&by_header, "b.x"));
    // What may have been shortened may have been anything longer, in characters that are cut whole.
    let long = format!("a.{}", "€".repeat(5400));
    let twice = [pass("a.*", Some("{1}.{1}.{1}"), None)];
    let event = router(&twice, &["a.>"]).route(message(&long)).unwrap();
    assert!(gives(&twice, event.subject.as_str()));
    // Too many ways to tell.
    assert!(gives(&[pass("a.*.*.*.*", Some("{1}{2}{3}{4}"), None)], &"x".repeat(2000)));
}

/// The event of a message with these headers.
fn carried(rules: &[Written], subject: &str, headers: &[(&str, &str)]) -> (String, Option<String>) {
    let mut message = message(subject);
    headers.iter().for_each(|(name, value)| message.headers.push(name, value));
    let event = router(rules, &[">"]).route(message).expect("an event");
    (event.subject.as_str().to_owned(), event.name.map(|name| name.to_string()))
}

#[test]
fn a_header_names_an_event_in_one_line() {
    let rules = [pass("a.*", None, Some("{1}-{header.Event-Type}")), pass(">", None, Some("{header.T}"))];
    assert_eq!(carried(&rules, "a.b", &[("event-type", "made")]).1.as_deref(), Some("b-made"));
    assert_eq!(carried(&rules, "a.b", &[]).1, None);
    for (value, name) in [
        ("one two", Some("one two")),
        ("one\r\ndata: x", Some("one")),
        ("\nbrokercast.gap", None),
        ("", None),
        ("brokercast.gap", None),
        ("brokercast.gap\n", None),
    ] {
        assert_eq!(carried(&rules, "b", &[("T", value)]).1.as_deref(), name, "{value:?}");
    }
    let long = "é".repeat(60_000);
    assert!(carried(&rules, "b", &[("T", &long)]).1.is_some_and(|name| name.len() <= MAX_SUBJECT));
}

#[test]
fn what_is_asked_for_behind_a_tail_is_found() {
    for (template, asked, expected) in [
        ("{>}.c", "d.c", "a.d"),
        ("{>}.c", "d.*", "a.d"),
        ("{>}.c", "d.e.c", "a.d.e"),
        ("{>}.c", "d.>", "a.>"),
        ("{>}.c", "*.c", "a.*"),
        ("z.{>}", "z.d.e", "a.d.e"),
        ("x{>}.c", "xd.c", "a.>"),
        ("{>}.{>}", "d.d", "a.>"),
        ("{>}.x.{>}", "d.x.d", "a.>"),
    ] {
        let router = router(&[pass("a.>", Some(template), None)], &["a.>", "b"]);
        assert_eq!(router.inputs(&patterns(&[asked])), Some(patterns(&[expected])), "{template} {asked}");
    }
}

#[test]
fn a_header_in_a_subject_is_one_clean_token_or_the_route_does_not_match() {
    let rules = [pass("a.*", Some("x.{1}.{header.type}"), None), pass("a.>", Some("y.{>}"), None)];
    assert_eq!(carried(&rules, "a.b", &[("type", "made")]).0, "x.b.made");
    for value in ["", "a.b", "*", ">", "a>", "a b", "a\tb", "a\nb", "\u{7f}"] {
        assert_eq!(carried(&rules, "a.b", &[("type", value)]).0, "y.b", "{value:?}");
    }
    assert_eq!(carried(&rules, "a.b", &[("other", "made")]).0, "y.b");
    // Subjects stay within their length.
    let long = "t".repeat(5000);
    assert!(carried(&rules, "a.b", &[("type", &long)]).0.len() <= MAX_SUBJECT);
    let router = router(&rules, &["a.>"]);
    let mut reach: Vec<String> = router.reach().iter().map(ToString::to_string).collect();
    reach.sort();
    assert_eq!(reach, ["x.*.*", "y.>"]);
    assert!(router.concerns(&patterns(&["y.b"])) && router.concerns(&patterns(&["x.b.c"])) && !router.concerns(&patterns(&["a.b"])));
    // One subject before can be several after.
    assert!(router.splits());
    let wanted: Vec<String> = router.inputs(&patterns(&["x.b.made"])).unwrap_or_default().iter().map(ToString::to_string).collect();
    assert_eq!(wanted, ["a.b"]);
    // A name that the broker has otherwise cannot be asked for.
    let escaped = Router::new(&[], &"s".parse().unwrap(), &patterns(&["a%25b.>", "c.>"]), Arc::default());
    assert_eq!(escaped.inputs(&patterns(&["*.x"])), None);
    assert_eq!(escaped.inputs(&patterns(&["c.x"])), Some(patterns(&["c.x"])));
    for bad in ["{header.}", "{header}", "{header.a"] {
        assert_eq!(SubjectTemplate::new(bad, &pattern("a")).err(), Some(TemplateError::Placeholder), "{bad}");
    }
}
