//! The access log, and what the log tells of refusals.

use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::token::{SECRET, forge, jwt, mint, now};
use crate::support::{Bridge, Sse, eventually};

const FORGED: &str = "x\n2030-01-31T12:00:00Z access event=\"forged\"\r\u{2028}\u{1b}[2J\u{85}";

fn config(log: &str) -> String {
    format!("log: {log}\nauth:\n{}sources: {{ inbox: {{ http: {{ subjects: ['>'] }} }} }}\n", jwt())
}

/// The lines of the access log, which are all JSON.
fn lines(bridge: &Bridge) -> Vec<Value> {
    bridge.log().lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
}

async fn line(bridge: &Bridge, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(what, async || lines(bridge).into_iter().find(|line| is(line))).await
}

#[tokio::test]
async fn each_end_and_each_refusal_is_a_line_whatever_the_filter_says() {
    let bridge = Bridge::start(&config("{ format: text, filter: 'off', access: json }")).await;
    let token = |sub: &str| mint(json!({"sub": sub, "jti": "7", "subjects": ["a.>"], "publish": ["a.>"]}));
    let (one, two) = (token("ada"), token("eve\n"));
    let other = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let mut plain = Sse::open(bridge.events("subject=a.b").bearer_auth(&one).header("user-agent", "plain/1")).await;
    let mut over_two = Sse::open(other.get(bridge.url("/events")).bearer_auth(&two)).await;
    plain.id().await;
    over_two.id().await;
    for n in 0..3 {
        let post = bridge.http.post(bridge.url("/publish/a.b")).bearer_auth(&one).body(n.to_string());
        assert_eq!(post.send().await.unwrap().status(), 202);
    }
    for _ in 0..3 {
        plain.event().await;
        over_two.event().await;
    }
    drop(plain);
    let end = line(&bridge, "the line of a client that has gone", |line| line["identity"] == "ada").await;
    assert_eq!((&end["event"], &end["reason"], &end["status"]), (&json!("stream"), &json!("gone"), &json!(200)), "{end}");
    assert_eq!((&end["events"], &end["patterns"], &end["token_id"]), (&json!(3), &json!(["a.b"]), &json!("7")), "{end}");
    assert_eq!((&end["address"], &end["user_agent"]), (&json!("127.0.0.1"), &json!("plain/1")), "{end}");
    assert!(end["bytes"].as_u64().unwrap() > 100 && end["seconds"].is_f64() && end["timestamp"].is_string(), "{end}");
    let ended = bridge.http.delete(bridge.admin_url("/streams?identity=eve%0A")).send().await.unwrap();
    assert_eq!(ended.json::<Value>().await.unwrap(), json!({"ended": 1}));
    let end = line(&bridge, "the line of an ended stream", |line| line["identity"] == "eve\n").await;
    assert_eq!((&end["reason"], &end["transport"], &end["events"]), (&json!("ended"), &json!("http/2"), &json!(3)), "{end}");

    let bad = forge(
        &json!({"alg": "HS256", "kid": FORGED}),
        &json!({"iss": FORGED, "exp": now() + 60}),
        Some("another secret of at least 32 bytes"),
    );
    let refusals: [(reqwest::RequestBuilder, u16, &str, Option<&str>); 6] = [
        (bridge.events("access_token=in-the-query").bearer_auth(&bad), 401, "token_invalid", None),
        (bridge.events(""), 401, "token_missing", None),
        (bridge.events("subject=b").bearer_auth(&one), 403, "grant", Some("ada")),
        (
            bridge.events("").header("cookie", format!("brokercast={one}")).header("origin", "https://evil.example"),
            403,
            "origin",
            Some("ada"),
        ),
        (bridge.events("subject=a..b").bearer_auth(&one), 400, "invalid", None),
        (bridge.http.post(bridge.url("/publish/c%0Ad")).bearer_auth(&one).body("1"), 400, "invalid", None),
    ];
    let before = lines(&bridge).len();
    for (n, (request, status, reason, identity)) in refusals.into_iter().enumerate() {
        assert_eq!(request.send().await.unwrap().status(), status);
        let line = eventually("the line of a refusal", async || lines(&bridge).get(before + n).cloned()).await;
        assert_eq!((&line["event"], &line["status"], &line["reason"]), (&json!("refusal"), &json!(status), &json!(reason)), "{line}");
        assert_eq!((line["identity"].as_str(), line["token_id"].as_str()), (identity, identity.map(|_| "7")), "{line}");
    }
    assert_eq!(bridge.http.get(bridge.url("/session")).send().await.unwrap().status(), 401);
    let all = bridge.log();
    for secret in [one.as_str(), &two, &bad, SECRET, "in-the-query"] {
        assert!(!all.contains(secret), "{all}");
    }
    assert!(!all.contains(|c: char| c.is_control() && c != '\n'), "{all}");
}

#[tokio::test]
async fn a_reload_changes_the_form_of_the_access_log_and_turns_it_off() {
    let bridge = Bridge::start(&config("{ format: text, filter: 'off', access: json }")).await;
    let one = mint(json!({"sub": "ada", "subjects": ["a.>"]}));
    bridge.configure(&config("{ format: text, filter: 'off', access: text }"));
    assert_eq!(bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap().status(), 200);
    assert_eq!(bridge.events("subject=b").bearer_auth(&one).send().await.unwrap().status(), 403);
    let text =
        eventually("a line of text", async || bridge.log().lines().last().filter(|line| line.contains(" access ")).map(str::to_owned))
            .await;
    assert!(text.contains(r#"event="refusal" identity="ada" address="#) && text.contains("status=403"), "{text}");
    bridge.configure(&config("{ format: text, filter: 'off' }"));
    assert_eq!(bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap().status(), 200);
    let before = bridge.log().lines().count();
    assert_eq!(bridge.events("subject=b").bearer_auth(&one).send().await.unwrap().status(), 403);
    bridge.configure(&config("{ format: text, filter: 'off', access: json }"));
    assert_eq!(bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap().status(), 200);
    assert_eq!(bridge.events("subject=a..b").bearer_auth(&one).send().await.unwrap().status(), 400);
    let more = eventually("one more line", async || Some(bridge.log().lines().count() - before).filter(|more| *more > 0)).await;
    assert_eq!(more, 1, "{}", bridge.log());
    assert!(bridge.metrics().await.contains("brokercast_access_log_left_out_total 0"));
}

#[tokio::test]
async fn a_drain_writes_the_end_of_each_stream() {
    let mut bridge = Bridge::start(&config("{ filter: 'off', access: json }")).await;
    let token = mint(json!({"sub": "ada", "subjects": ["a.>"]}));
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut sse = Sse::open(bridge.events("").bearer_auth(&token)).await;
        sse.id().await;
        streams.push(sse);
    }
    assert!(bridge.terminate().await.success());
    let ends = lines(&bridge);
    assert_eq!(ends.iter().filter(|line| line["reason"] == "draining").count(), 10, "{ends:?}");
}

#[tokio::test]
async fn refusals_are_told_at_info_ten_a_second_and_no_client_forges_a_line() {
    let bridge = Bridge::start(&(config("{ format: text }") + "server: { dashboards: nowhere }\n")).await;
    let good = mint(json!({"sub": "ada", "subjects": ["a.>"]}));
    let bad = forge(
        &json!({"alg": "HS256", "kid": FORGED}),
        &json!({"iss": "idp", "exp": now() + 60}),
        Some("another secret of at least 32 bytes"),
    );
    assert_eq!(bridge.events("subject=b").bearer_auth(&good).send().await.unwrap().status(), 403);
    let foreign = bridge.events("").header("cookie", format!("brokercast={good}")).header("origin", "https://evil.example");
    assert_eq!(foreign.send().await.unwrap().status(), 403);
    for _ in 0..40 {
        assert_eq!(bridge.events("").bearer_auth(&bad).send().await.unwrap().status(), 401);
    }
    let log = eventually("the count of what was left out", async || Some(bridge.log()).filter(|log| log.contains("left_out="))).await;
    let told = |what: &str| log.lines().filter(|line| line.contains(what)).collect::<Vec<_>>();
    assert!(told("grant refused")[0].contains("identity=\"ada\"") && told("origin refused")[0].contains("evil.example"), "{log}");
    let tokens = told("token refused");
    assert!(tokens.len() < 40, "{log}");
    for part in ["address=127.0.0.1", "kid=", "iss=\"idp\"", "its signature is wrong", "carrier=\"header\""] {
        assert!(tokens[0].contains(part), "{part}: {}", tokens[0]);
    }
    // Nor can anybody fill the log by asking for pages while their folder is gone.
    for _ in 0..20 {
        assert_eq!(bridge.get("/dashboards/a.html").send().await.unwrap().status(), 404);
    }
    let warning = "cannot read from `server.dashboards`";
    let warned = bridge.log_with(warning).await;
    assert_eq!(warned.matches(warning).count(), 1, "{warned}");
    assert!(!log.lines().any(|line| line.starts_with("2030")) && !log.contains(&bad) && !log.contains(&good), "{log}");
    assert!(!log.contains(|c: char| c.is_control() && c != '\n'), "{log}");
}

/// Ended where a test fails.
struct Unread(Child);

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nothing() {
    let bridge = Bridge::builder(&config("{ format: json, filter: trace, access: json }")).build();
    // A pipe that holds 64 KiB.
    let mut unread = Unread(bridge.command().stderr(Stdio::piped()).spawn().unwrap());
    let livez = async || Some(bridge.http.get(bridge.admin_url("/livez")).send().await.ok()?.status());
    assert_eq!(eventually("the bridge to answer", livez).await, 200);
    for _ in 0..500 {
        let refused = tokio::time::timeout(Duration::from_secs(20), bridge.events("").bearer_auth("x.y.z").send());
        assert_eq!(refused.await.expect("an answer in time").unwrap().status(), 401);
    }
    assert_eq!(eventually("the bridge to answer", livez).await, 200);
    kill_process(Pid::from_child(&unread.0), Signal::TERM).unwrap();
    let ended = eventually("the process to end", async || unread.0.try_wait().unwrap()).await;
    assert!(ended.success(), "{ended}");
}
