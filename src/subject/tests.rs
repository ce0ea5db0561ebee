use proptest::prelude::*;

use super::*;

fn subject(text: &str) -> Subject {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn pattern(text: &str) -> Pattern {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn subjects_are_dot_separated_tokens_without_wildcards() {
    for good in ["a", "a.b", "orders.eu.created", "ä.ö", "a-b_c.1", "a%20b"] {
        assert!(good.parse::<Subject>().is_ok(), "{good}");
    }
    for (bad, why) in [
        ("", SubjectError::Empty),
        (".", SubjectError::EmptyToken),
        ("a.", SubjectError::EmptyToken),
        (".a", SubjectError::EmptyToken),
        ("a..b", SubjectError::EmptyToken),
        ("a b", SubjectError::Character),
        ("a\u{a0}b", SubjectError::Character),
        ("a\u{85}b", SubjectError::Character),
        ("a\n", SubjectError::Character),
        ("a.*", SubjectError::Wildcard),
        ("a>", SubjectError::Wildcard),
    ] {
        assert_eq!(bad.parse::<Subject>(), Err(why), "{bad:?}");
    }
}

#[test]
fn patterns_take_wildcards_only_as_whole_tokens() {
    for good in ["*", ">", "a.*", "a.>", "*.b.>", "a.b", "a.#b", "c#"] {
        assert!(good.parse::<Pattern>().is_ok(), "{good}");
    }
    for (bad, why) in [
        ("", SubjectError::Empty),
        ("a..b", SubjectError::EmptyToken),
        (">.a", SubjectError::TailNotLast),
        ("a*", SubjectError::PartialWildcard),
        ("a.>b", SubjectError::PartialWildcard),
        ("a b", SubjectError::Character),
        ("#", SubjectError::Hash),
        ("a.#", SubjectError::Hash),
        ("a.#.b", SubjectError::Hash),
    ] {
        assert_eq!(bad.parse::<Pattern>(), Err(why), "{bad:?}");
    }
}

#[test]
fn what_brokers_say_is_escaped_and_never_dropped() {
    let empty = subject("inbox");
    for (name, expected) in [
        (&b"a.b"[..], "a.b"),
        (b"", "inbox"),
        (b"a..b", "a.%2Eb"),
        (b".a", "%2Ea"),
        (b"a.", "a%2E"),
        (b".", "%2E"),
        (b"..", "%2E%2E"),
        (b"a%b", "a%25b"),
        (b"a b", "a%20b"),
        (b"a.*.>", "a.%2A.%3E"),
        (b"\xff.x", "%FF.x"),
        (b"x.\xff", "x.%FF"),
        (b"x.\xe2\x82", "x.%E2%82"),
        ("ä.\u{a0}".as_bytes(), "ä.%C2%A0"),
    ] {
        assert_eq!(Subject::from_broker(name, &empty).as_str(), expected, "{name:?}");
    }
}

#[test]
fn coverage_is_exact_even_when_several_patterns_share_it() {
    for (wanted, grant, covered) in [
        ("a", &["a"][..], true),
        ("a.*", &["a.b"], false),
        ("a.*", &["a.>"], true),
        ("a.>", &["a.*"], false),
        ("a.>", &["a.*", "a.*.>"], true),
        (">", &["*", "*.>"], true),
        (">", &["*", "*.*", "*.*.>"], true),
        (">", &["*", "*.*.>"], false),
        ("*.b", &["a.b", "c.b"], false),
        ("*.b.>", &["*.*.>", "x"], true),
        ("a.b", &["a", "a.b.>"], false),
        ("a.b.c", &["*.x.c", "a.*.c"], true),
        ("a", &[], false),
    ] {
        let grant: Vec<_> = grant.iter().map(|p| pattern(p)).collect();
        assert_eq!(pattern(wanted).covered_by(&grant), covered, "{wanted} in {grant:?}");
    }
}

fn token() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b"), Just("c")]
}

fn subjects() -> impl Strategy<Value = String> {
    prop::collection::vec(token(), 1..5).prop_map(|t| t.join("."))
}

fn patterns() -> impl Strategy<Value = Pattern> {
    (prop::collection::vec(prop_oneof![3 => token(), 2 => Just("*")], 0..4), any::<bool>()).prop_map(|(mut tokens, tail)| {
        if tail || tokens.is_empty() {
            tokens.push(">");
        }
        pattern(&tokens.join("."))
    })
}

/// The same question answered the slow way, token list against token list.
fn naive(p: &[&str], s: &[&str]) -> bool {
    match (p, s) {
        ([], []) => true,
        ([">"], [_, ..]) => true,
        (["*", p @ ..], [_, s @ ..]) => naive(p, s),
        ([x, p @ ..], [y, s @ ..]) => x == y && naive(p, s),
        _ => false,
    }
}

/// Every subject of up to five tokens over three letters.
fn all_subjects() -> Vec<String> {
    let mut all = vec![String::new()];
    let mut out = Vec::new();
    for _ in 0..5 {
        all = all
            .iter()
            .flat_map(|s| ["a", "b", "c", "z"].iter().map(move |t| if s.is_empty() { (*t).to_owned() } else { format!("{s}.{t}") }))
            .collect();
        out.extend(all.clone());
    }
    out
}

#[test]
fn a_minimal_list_is_sorted_and_leaves_out_what_the_others_cover_together() {
    let minimal =
        |texts: &[&str]| minimal(texts.iter().map(|text| pattern(text)).collect()).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(minimal(&[]), Vec::<String>::new());
    assert_eq!(minimal(&["b", "a", "b"]), ["a", "b"]);
    assert_eq!(minimal(&["a.b", "a.>", "c"]), ["a.>", "c"]);
    assert_eq!(minimal(&["a.>", "a.*", "a.*.>"]), ["a.>"]);
    assert_eq!(minimal(&[">", "*", "*.>"]), [">"]);
}

#[test]
fn an_index_has_nodes_for_what_patterns_share_and_not_for_each_token() {
    let mut index = index::Index::default();
    let long: Vec<Pattern> = (0..60).map(|n| pattern(&format!("{n}.{}", vec!["t"; 15].join(".")))).collect();
    long.iter().enumerate().for_each(|(n, pattern)| index.insert(pattern, n));
    assert_eq!(index.nodes(), 61);
    // Deeper than a stack would be, if each token took some of it.
    let deep = vec!["t"; 8000].join(".");
    let deep: Vec<Pattern> = (0..30).map(|n| pattern(&format!("{deep}.{n}"))).collect();
    deep.iter().enumerate().for_each(|(n, pattern)| index.insert(pattern, 100 + n));
    for (n, pattern) in deep.iter().enumerate() {
        let mut found = Vec::new();
        index.find(pattern.as_str().as_bytes(), &mut found);
        assert_eq!(found, [100 + n]);
        index.remove(pattern, 100 + n);
    }
    long.iter().enumerate().for_each(|(n, pattern)| index.remove(pattern, n));
    assert!(index.is_empty());
}

proptest! {
    #[test]
    fn matching_agrees_with_the_naive_reference(p in patterns(), s in subjects()) {
        let expected = naive(&p.as_str().split('.').collect::<Vec<_>>(), &s.split('.').collect::<Vec<_>>());
        prop_assert_eq!(p.matches(&s), expected);
    }

    #[test]
    fn every_broker_name_becomes_a_valid_subject_and_stays_distinct(a in prop::collection::vec(any::<u8>(), 1..40), b in prop::collection::vec(any::<u8>(), 1..40)) {
        let empty = subject("empty-name");
        let (x, y) = (Subject::from_broker(&a, &empty), Subject::from_broker(&b, &empty));
        prop_assert!(x.as_str().parse::<Subject>().is_ok(), "{:?}", x);
        prop_assert_eq!(a == b, x == y);
        // An escaped subject is itself a name, of another subject.
        for name in [&a, x.as_str().as_bytes()] {
            prop_assert!(!x.is_unchanged(name) || Subject::from_broker(name, &empty) == x, "{:?}", name);
        }
        prop_assert_eq!(x.is_unchanged(&a), x.as_str().as_bytes() == a);
    }

    #[test]
    fn coverage_and_intersection_agree_with_trying_every_subject(w in patterns(), grant in prop::collection::vec(patterns(), 0..4)) {
        let all = all_subjects();
        let expected = all.iter().filter(|s| w.matches(s)).all(|s| grant.iter().any(|g| g.matches(s)));
        prop_assert_eq!(w.covered_by(&grant), expected, "{} by {:?}", w, grant);
        prop_assert_eq!(Cover::new(&grant).covers(&w), expected, "{} by {:?}", w, grant);
        for g in &grant {
            // Letters that only one side names still meet in a subject of these letters or none.
            let meet = all.iter().any(|s| w.matches(s) && g.matches(s));
            if meet {
                prop_assert!(w.intersects(g));
            }
            if !w.intersects(g) {
                prop_assert!(!meet);
            }
        }
    }

    #[test]
    fn a_minimal_list_holds_the_same_subjects_and_nothing_twice(all in prop::collection::vec(patterns(), 0..8), s in subjects()) {
        let few = minimal(all.clone());
        prop_assert_eq!(few.iter().any(|p| p.matches(&s)), all.iter().any(|p| p.matches(&s)));
        for (n, pattern) in few.iter().enumerate() {
            let others: Vec<_> = few.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, p)| p.clone()).collect();
            prop_assert!(!pattern.covered_by(&others), "{:?} of {:?}", pattern, all);
        }
        let mut turned = all;
        turned.reverse();
        prop_assert_eq!(minimal(turned), few);
    }

    #[test]
    fn patterns_are_disjoint_where_no_two_intersect(all in prop::collection::vec(patterns(), 0..5)) {
        let apart = all.iter().enumerate().all(|(n, p)| all[..n].iter().all(|other| !other.intersects(p)));
        prop_assert_eq!(disjoint(&all), apart);
    }

    #[test]
    fn the_index_finds_what_a_scan_finds(all in prop::collection::vec(patterns(), 0..30), gone in prop::collection::vec(any::<prop::sample::Index>(), 0..10), s in subjects()) {
        let mut index = index::Index::default();
        for (i, p) in all.iter().enumerate() {
            index.insert(p, i);
        }
        let mut left: Vec<_> = (0..all.len()).collect();
        for g in gone {
            if !left.is_empty() {
                let i = left.swap_remove(g.index(left.len()));
                index.remove(&all[i], i);
            }
        }
        let mut found = Vec::new();
        index.find(s.as_bytes(), &mut found);
        found.sort_unstable();
        let mut expected: Vec<_> = left.iter().copied().filter(|i| all[*i].matches(&s)).collect();
        expected.sort_unstable();
        prop_assert_eq!(found, expected);
        for i in left {
            index.remove(&all[i], i);
        }
        prop_assert!(index.is_empty());
    }
}
