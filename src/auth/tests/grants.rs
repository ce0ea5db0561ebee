//! What claims and templates permit.

use super::*;
use crate::auth::template::TemplateError;
use crate::settings::tests::read_at;

fn grant(claim: &[&str], templates: &[&str], token: Value) -> Result<Grant, AuthError> {
    let mut config = config(vec![secret()]);
    config.issuers[0].claims.subscribe = claim.join(".");
    config.grants.subscribe = templates.iter().map(|text| text.parse().expect("a template")).collect();
    config.anonymous.subscribe = vec!["public.>".parse().expect("a pattern")];
    let authenticator = Authenticator::new(config, TOKEN_BYTES);
    ask(&authenticator, &hs256(&claims(token)))
}

fn permitted(claim: &[&str], templates: &[&str], token: Value) -> Vec<String> {
    let grant = grant(claim, templates, token).expect("a grant");
    patterns(&grant.subscribe).into_iter().filter(|pattern| *pattern != "public.>").map(str::to_owned).collect()
}

#[test]
fn a_claim_is_a_list_of_patterns_or_one() {
    for (claim, expected) in [
        (json!(["a", "b.*"]), &["a", "b.*"][..]),
        (json!("a.>"), &["a.>"]),
        (json!([]), &[]),
        (json!(null), &[]),
        (json!(["a", "a.b", "a.>", "a.*"]), &["a", "a.>"]),
        // What is no pattern permits nothing, and the rest as much as before.
        (json!(["a", "b..c", "", "x\ty", ">.x", 7, null, ["q"], { "z": 1 }]), &["a"]),
        (json!(7), &[]),
        (json!(true), &[]),
        (json!({ "a": "b" }), &[]),
        (json!("a b"), &["a", "b"]),
        (json!(" c.>  a..b d "), &["c.>", "d"]),
        // A name that an issuer puts into a text of a list adds no patterns.
        (json!(["user.x > y.>", " > ", "a b", "c"]), &["c"]),
        (json!("a\u{a0}b"), &[]),
        (json!(""), &[]),
        (json!("a\n"), &[]),
    ] {
        assert_eq!(permitted(&["s"], &[], json!({ "s": claim })), expected, "{claim}");
    }
    assert_eq!(permitted(&["missing"], &[], json!({})), [""; 0]);
}

#[test]
fn a_claim_has_a_path() {
    let token = json!({
        "mercure": { "subscribe": ["nested"], "publish": ["no"] },
        "https://example.com/subjects": "url",
        "https://example.com/claims": { "sub.jects": "both" },
        "a": { "b": { "c": "deep" }, "b.c": "middle" },
        "x.y": "literal", "x": { "y": "steps" },
    });
    for (path, expected) in [
        (&["mercure", "subscribe"][..], Some("nested")),
        (&["mercure.subscribe"], Some("nested")),
        (&["https://example.com/subjects"], Some("url")),
        (&["https://example", "com/subjects"], Some("url")),
        (&["https://example.com/claims", "sub.jects"], Some("both")),
        (&["a", "b", "c"], Some("middle")),
        (&["x", "y"], Some("literal")),
        (&["mercure"], None),
        (&["mercure", "subscribe", "more"], None),
        (&["mercure", ""], None),
        (&[""], None),
        (&["..."], None),
    ] {
        assert_eq!(permitted(path, &[], token.clone()), expected.into_iter().collect::<Vec<_>>(), "{path:?}");
    }
}

#[test]
fn templates_are_filled_with_clean_tokens_only() {
    let of = |template: &str, token: Value| permitted(&["none"], &[template], token);
    assert_eq!(of("user.{sub}.>", json!({})), ["user.alice.>"]);
    assert_eq!(of("u-{sub}-x.{org.id}", json!({ "org": { "id": 42 } })), ["u-alice-x.42"]);
    assert_eq!(of("t.{tenant}.>", json!({ "tenant": "zoë-1_%20" })), ["t.zoë-1_%20.>"]);
    assert_eq!(of("fixed.>", json!({})), ["fixed.>"]);
    assert_eq!(of("{{x}}.{sub}", json!({})), ["{x}.alice"]);
    assert_eq!(of("{https://example.com/t}.>", json!({ "https://example.com/t": "q" })), ["q.>"]);
    for unclean in ["*", ">", "a.b", ".", "", "a b", "a\tb", "a\n", "a\0", "a*", ">x", "\u{a0}", "a\u{2028}b", "\u{7f}"] {
        assert_eq!(of("user.{sub}.>", json!({ "sub": unclean })), [""; 0], "{unclean:?}");
        assert_eq!(of("user.x{sub}.>", json!({ "sub": unclean })), [""; 0], "{unclean:?}");
    }
    for other in [json!(null), json!(true), json!(1.5), json!({}), json!([]), json!([null, ["x"]])] {
        assert_eq!(of("t.{tenant}.>", json!({ "tenant": other })), [""; 0], "{other}");
    }
    assert_eq!(of("t.{tenant}.>", json!({})), [""; 0]);
    assert_eq!(of("t.{sub}.{tenant}.>", json!({})), [""; 0]);
}

#[test]
fn a_list_in_a_template_gives_a_pattern_for_each_of_its_values() {
    let of = |template: &str, token: Value| permitted(&["none"], &[template], token);
    assert_eq!(of("t.{teams}.>", json!({ "teams": ["b", "a", "*", "a.b", 3] })), ["t.3.>", "t.a.>", "t.b.>"]);
    assert_eq!(of("{x}.{y}", json!({ "x": ["a", "b"], "y": ["c", "d"] })), ["a.c", "a.d", "b.c", "b.d"]);
    let many: Vec<u32> = (0..1000).collect();
    assert_eq!(of("room.{x}", json!({ "x": many })).len(), 1000);
    assert_eq!(of("{x}.{y}", json!({ "x": many[..33], "y": many[..33] })).len(), 1024);
}

#[test]
fn what_a_list_does_not_grant_is_said() {
    let template: Template = "{x}.{y}".parse().unwrap();
    let lacks = |x: Value, y: Value| template.lacks(json!({ "x": x, "y": y }).as_object().unwrap()).unwrap_or_default();
    assert_eq!(lacks(json!(["a"]), json!("b")), "");
    assert!(lacks(json!(["a", "b.c", 1.5]), json!("b")).contains("claim `x` that are not clean tokens, and grant nothing: 2"));
    assert!(lacks(json!("a"), json!([])).contains("`y` is not one clean token"));
    let many: Vec<u32> = (0..33).collect();
    assert!(lacks(json!(many), json!(many)).contains("more than 1024 patterns"));
    assert_eq!(lacks(json!(many[1..]), json!(many[1..])), "");
}

#[test]
fn a_grant_is_the_union_of_claim_templates_and_anonymous() {
    let grant = grant(&["subjects"], &["user.{sub}.>", "a.x"], json!({ "subjects": ["b", "public.x"] })).expect("a grant");
    assert_eq!(patterns(&grant.subscribe), ["a.x", "b", "public.>", "user.alice.>"]);
    let nothing = grant_of_nobody();
    assert_eq!(patterns(&nothing.subscribe), ["public.>"]);
}

fn grant_of_nobody() -> Grant {
    grant(&["none"], &["user.{missing}.>"], json!({})).expect("a grant")
}

#[test]
fn an_identity_is_a_text_or_a_number() {
    let identity = |sub: Value| grant(&["s"], &[], json!({ "sub": sub })).map(|grant| grant.identity().map(|text| text.to_string()));
    assert_eq!(identity(json!("bob@example.com")), Ok(Some("bob@example.com".into())));
    assert_eq!(identity(json!(7)), Ok(Some("7".into())));
    assert_eq!(identity(json!("")), Ok(None));
    assert_eq!(identity(json!(null)), Ok(None));
    // Other numbers are known only about: two of them could be one identity.
    for odd in [json!([]), json!({}), json!(true), json!(1e25), json!(0.5)] {
        assert_eq!(identity(odd.clone()), Err(AuthError::Invalid(Refused::ClaimType("sub"))));
        // By these it could not be revoked.
        for claim in ["jti", "sid"] {
            assert_eq!(grant(&["s"], &[], json!({ claim: odd })).err(), Some(AuthError::Invalid(Refused::ClaimType(claim))));
        }
    }
    let owner = grant(&["s"], &[], json!({ "jti": 7, "sid": 9 })).expect("a grant").owner.expect("an owner");
    assert_eq!((owner.token_id.as_deref(), owner.session_id.as_deref()), (Some("7"), Some("9")));
}

#[test]
fn templates_that_give_no_pattern_are_refused_at_start() {
    use crate::subject::SubjectError as S;
    for (text, why) in [
        ("", TemplateError::Pattern(S::Empty)),
        ("a..b", TemplateError::Pattern(S::EmptyToken)),
        ("{sub}.", TemplateError::Pattern(S::EmptyToken)),
        (">.{sub}", TemplateError::Pattern(S::TailNotLast)),
        ("a*{sub}", TemplateError::Pattern(S::PartialWildcard)),
        ("a {sub}", TemplateError::Pattern(S::Character)),
        ("{sub", TemplateError::Placeholder),
        ("sub}", TemplateError::Placeholder),
        ("{}", TemplateError::Placeholder),
        ("{a{b}", TemplateError::Placeholder),
        ("user.{ sub }", TemplateError::Placeholder),
    ] {
        assert_eq!(text.parse::<Template>(), Err(why.clone()), "{text}");
        let auth = json!({ "grants": { "publish": ["ok", text] } });
        let problems = read_at(&["auth"], &auth, |auth| Some(Settings::read(auth))).expect_err(text);
        assert!(problems.len() == 1 && problems[0].contains(&format!("auth.grants.publish[1]: {why}; must be")), "{problems:?}");
    }
}
