//! `auth.backend`: an application that is asked who a cookie is, run by the tests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::bridge::run;
use crate::support::token::{jwt, mint};
use crate::support::{Bridge, Item, Server, Sse, eventually};

/// What the application does with a question.
#[derive(Debug, Clone)]
enum Mood {
    /// It answers by its sessions.
    Good,
    /// It takes so long, then answers by its sessions.
    Slow(Duration),
    /// It answers with this head and body whatever is asked.
    Odd(&'static str, String),
    /// Each of its answers takes one of these.
    Held(Arc<Semaphore>),
    /// It hangs up.
    Down,
}

/// An application that knows sessions, and counts what it is asked.
struct App {
    url: String,
    sessions: Mutex<HashMap<String, Value>>,
    mood: Mutex<Mood>,
    questions: Mutex<Vec<String>>,
    /// Questions that it has not answered yet, and the most of them there were.
    open: Mutex<(usize, usize)>,
}

impl App {
    async fn start() -> Arc<Self> {
        let server = Server::bind().await;
        let url = format!("{}/auth?for=live", server.url);
        let (sessions, mood, questions, open) = (Mutex::default(), Mutex::new(Mood::Good), Mutex::default(), Mutex::default());
        let app = Arc::new(Self { url, sessions, mood, questions, open });
        let own = app.clone();
        server.serve(move |head, _| {
            let app = own.clone();
            async move {
                app.count(1);
                let answer = app.answer(head).await;
                app.count(-1);
                answer
            }
        });
        app
    }

    fn count(&self, change: isize) {
        let (open, most) = &mut *self.open.lock().unwrap();
        *open = open.strict_add_signed(change);
        *most = (*most).max(*open);
    }

    async fn answer(&self, head: String) -> Option<String> {
        self.questions.lock().unwrap().push(head.clone());
        let mood = self.mood.lock().unwrap().clone();
        let (head, body) = match mood {
            Mood::Down => return None,
            Mood::Odd(head, body) => (head, body),
            Mood::Good | Mood::Slow(_) | Mood::Held(_) => {
                match mood {
                    Mood::Slow(span) => tokio::time::sleep(span).await,
                    Mood::Held(answers) => answers.acquire().await.unwrap().forget(),
                    _ => {}
                }
                match self.sessions.lock().unwrap().iter().find(|(session, _)| head.contains(session.as_str())) {
                    Some((_, answer)) => ("200 OK", answer.to_string()),
                    None => ("401 Unauthorized", "who are you?".to_owned()),
                }
            }
        };
        Some(format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    }

    /// Whoever sends this line of a head is granted this.
    fn sign_in(&self, line: &str, answer: Value) {
        self.sessions.lock().unwrap().insert(format!("\r\n{line}\r\n"), answer);
    }

    fn sign_out(&self) {
        self.sessions.lock().unwrap().clear();
    }

    fn becomes(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn asked(&self) -> usize {
        self.questions.lock().unwrap().len()
    }

    /// A bridge that asks it, with more keys of `auth.backend` and of `auth`.
    async fn bridge(&self, more: &str, auth: &str) -> Bridge {
        Bridge::start(&self.config(more, auth)).await
    }

    fn config(&self, more: &str, auth: &str) -> String {
        format!(
            "auth:\n  backend: {{ url: \"{}\", forward: [\"cookie:session\", authorization], {more} }}\n{auth}\
             subscribers: {{ max_per_identity: false }}\nsources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n",
            self.url
        )
    }
}

async fn status(request: reqwest::RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

fn session(bridge: &Bridge, cookie: &str) -> reqwest::RequestBuilder {
    bridge.events("").header("cookie", format!("session={cookie}"))
}

async fn opened(request: reqwest::RequestBuilder) -> Sse {
    let mut sse = Sse::open(request).await;
    sse.id().await;
    sse
}

async fn ends_as(sse: &mut Sse, reason: &str) {
    let items = sse.rest().await;
    let Some(Item::Event(last)) = items.last() else { panic!("{items:?}") };
    assert_eq!((last.name.as_str(), last.reason().as_str()), ("brokercast.closing", reason));
}

#[tokio::test]
async fn a_thousand_clients_with_one_cookie_are_one_question_and_two_users_never_share_an_answer() {
    let app = App::start().await;
    app.sign_in("cookie: session=a", json!({"identity": "ada", "subscribe": ["orders.ada.>"]}));
    app.sign_in("cookie: session=b", json!({"identity": "bob", "subscribe": ["orders.bob.>"]}));
    app.becomes(Mood::Slow(Duration::from_millis(500)));
    let bridge = app.bridge("cache: 1h", "").await;
    // The other cookies differ each time, and are not forwarded.
    let request = |query: &str, n: usize, user: &str| bridge.events(query).header("cookie", format!("_ga={n}; session={user}; x=session"));
    let all = join_all((0..1000).map(|n| opened(request("", n, if n == 7 { "b" } else { "a" })))).await;
    assert_eq!(app.asked(), 2);
    assert_eq!(status(request("subject=orders.bob.%3E", 1, "a")).await, 403);
    assert_eq!(status(request("subject=orders.bob.%3E", 1, "b")).await, 200);
    assert_eq!(app.asked(), 2, "the wanted patterns are no part of the question");
    // Of two with different values one may be a neighbouring host's.
    assert_eq!(status(bridge.events("").header("cookie", "session=a; session=b")).await, 401);
    assert_eq!(status(bridge.events("").header("cookie", "session=a; x=1; session=a")).await, 200);
    assert_eq!((app.asked(), bridge.metric("brokercast_refused_tokens_total", &["reason=\"two_cookies\""]).await), (2, 1.0));
    assert_eq!(bridge.metric("brokercast_backend_questions_total", &["result=\"granted\""]).await, 2.0);
    assert_eq!(bridge.metric("brokercast_backend_questions_total", &[]).await, 2.0);
    assert!(bridge.metric("brokercast_backend_cached_answers_total", &[]).await >= 2.0);
    assert_eq!(bridge.metric("brokercast_backend_questions_in_flight", &[]).await, 0.0);
    let asked = app.questions.lock().unwrap()[0].to_lowercase();
    assert!(asked.starts_with("get /auth?for=live http/1.1\r\n"), "{asked}");
    assert!(asked.contains("\r\nx-forwarded-for: 127.0.0.1\r\n") && !asked.contains("_ga"), "{asked}");
    let listed = async |filter: &str| -> Value {
        bridge.http.get(bridge.admin_url(&format!("/streams?{filter}"))).send().await.unwrap().json().await.unwrap()
    };
    assert!(!listed("identity=bob").await["streams"].as_array().unwrap().is_empty());
    assert_eq!(listed("identity=ada&limit=2000").await["streams"][0]["patterns"], json!(["orders.ada.>"]));
    drop(all);
}

#[tokio::test]
async fn many_users_are_asked_about_side_by_side_but_not_all_at_once() {
    let app = App::start().await;
    for n in 0..150 {
        app.sign_in(&format!("cookie: session=user{n}"), json!({"identity": n, "subscribe": [format!("orders.{n}")]}));
    }
    app.becomes(Mood::Slow(Duration::from_millis(300)));
    let bridge = app.bridge("timeout: 20s", "").await;
    let all = join_all((0..150).map(|n| status(session(&bridge, &format!("user{n}"))))).await;
    assert!(all.iter().all(|status| *status == 200), "{all:?}");
    let most = app.open.lock().unwrap().1;
    assert!((10..=64).contains(&most), "{most}");
    for n in [0, 77, 149] {
        let who: Value = bridge.get("/session").header("cookie", format!("session=user{n}")).send().await.unwrap().json().await.unwrap();
        assert_eq!((&who["identity"], &who["subscribe"][0]["pattern"]), (&json!(n.to_string()), &json!(format!("orders.{n}"))));
    }
    assert_eq!(app.asked(), 150);
}

#[tokio::test]
async fn signing_out_ends_streams_and_a_changed_grant_is_followed_by_one_question_for_all_streams() {
    let app = App::start().await;
    let granted = |patterns: &[&str]| json!({"identity": "ada", "subscribe": patterns});
    app.sign_in("cookie: session=a", granted(&["a", "b"]));
    let bridge = app.bridge("cache: 0s, recheck: 1s", "  anonymous: { publish: [\">\"] }\n").await;
    let named = |subject: &str| bridge.events(&format!("subject={subject}")).header("cookie", "session=a");
    let (mut all, mut b) = (opened(session(&bridge, "a")).await, opened(named("b")).await);
    let others = join_all((0..20).map(|_| opened(named("a")))).await;
    let before = app.asked();
    // For less than two rounds, 22 streams would ask 22 times or more.
    eventually("a recheck", async || (app.asked() > before).then_some(())).await;
    assert!(app.asked() < before + 5, "{} and {before}", app.asked());
    app.sign_in("cookie: session=a", granted(&["a", "c"]));
    ends_as(&mut b, "revoked").await;
    ends_as(&mut all, "revoked").await;
    let mut all = opened(session(&bridge, "a")).await;
    app.sign_in("cookie: session=a", granted(&["a", "c", "d"]));
    eventually("the wider grant", async || {
        let listed: Value = bridge.http.get(bridge.admin_url("/streams?pattern=d")).send().await.unwrap().json().await.unwrap();
        (listed["streams"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    bridge.publish("d", "1").await;
    assert_eq!(all.event().await.subject(), "d");
    // A backend that is away ends nothing.
    app.becomes(Mood::Odd("500 Oh", String::new()));
    let before = app.asked();
    eventually("a recheck that fails", async || (app.asked() > before).then_some(())).await;
    bridge.publish("d", "2").await;
    assert_eq!(all.event().await.subject(), "d");
    app.sign_out();
    app.becomes(Mood::Good);
    ends_as(&mut all, "revoked").await;
    for mut other in others {
        ends_as(&mut other, "revoked").await;
    }
    assert_eq!(status(session(&bridge, "a")).await, 401);
    let before = app.asked();
    assert_eq!(status(session(&bridge, "a")).await, 401);
    assert_eq!(app.asked(), before, "a refusal is remembered");
}

#[tokio::test]
async fn a_reload_drops_no_question_about_an_open_stream() {
    let app = App::start().await;
    app.sign_in("cookie: session=a", json!({"identity": "ada", "subscribe": ["a"]}));
    let backend = "cache: 0s, recheck: 1s, timeout: 50s";
    let bridge = app.bridge(backend, "").await;
    let mut stream = opened(session(&bridge, "a")).await;
    let (before, answers) = (app.asked(), Arc::new(Semaphore::new(0)));
    app.becomes(Mood::Held(answers.clone()));
    app.sign_out();
    eventually("a recheck", async || (app.asked() > before).then_some(())).await;
    let asked = app.asked();
    for query in ["one", "two", "three"] {
        bridge.configure(&app.config(backend, &format!("  carriers: {{ query: {query} }}\n")));
        assert_eq!(status(bridge.http.post(bridge.admin_url("/reload"))).await, 200);
    }
    // More than the one that is needed: a question that is put again fails below.
    answers.add_permits(10);
    ends_as(&mut stream, "revoked").await;
    assert_eq!(app.asked(), asked);
}

#[tokio::test]
async fn what_is_no_answer_is_unavailable_in_a_way_that_an_eventsource_survives() {
    let app = App::start().await;
    app.sign_in("cookie: session=a", json!({"identity": "ada", "subscribe": ["a"]}));
    let bridge = app.bridge("timeout: 700ms", "").await;
    let big = json!({"identity": "x".repeat(70_000), "subscribe": ["a"]}).to_string();
    let moods = [
        Mood::Down,
        Mood::Slow(Duration::from_secs(20)),
        Mood::Odd("302 Found\r\nlocation: /auth", String::new()),
        Mood::Odd("500 Oh", "{\"identity\":\"x\",\"subscribe\":[\"a\"]}".into()),
        Mood::Odd("404 Where", String::new()),
        Mood::Odd("204 Nothing", String::new()),
        Mood::Odd("200 OK", big),
        Mood::Odd("200 OK", "<html>sign in</html>".into()),
        Mood::Odd("200 OK", "{\"identity\":\"ada\",\"subscribe\":{}}".into()),
    ];
    for (n, mood) in moods.into_iter().enumerate() {
        app.becomes(mood.clone());
        let before = app.asked();
        if n % 2 == 0 {
            let answer = session(&bridge, "a").send().await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (503, true), "{mood:?}");
        } else {
            let mut sse = Sse::open(session(&bridge, "a").header("accept", "text/event-stream")).await;
            ends_as(&mut sse, "unavailable").await;
        }
        assert_eq!(app.asked(), before + 1, "{mood:?}");
    }
    app.becomes(Mood::Good);
    assert_eq!(status(session(&bridge, "a")).await, 200);
    assert_eq!(status(bridge.http.get(bridge.admin_url("/readyz"))).await, 200);
    // The breaker: after ten failures in a row nothing is asked for a second, then two.
    let results = async |result: &str| bridge.metric("brokercast_backend_questions_total", &[&format!("result=\"{result}\"")]).await;
    assert_eq!((results("failed").await, results("granted").await, results("not_asked").await), (9.0, 1.0, 0.0));
    // What it answers of one credential says nothing of others: whoever makes credentials up does not open it.
    app.questions.lock().unwrap().clear();
    for n in 0..15 {
        let (odd, body) = [("400 Junk", ""), ("302 Found\r\nlocation: /sign-in", ""), ("200 OK", "<html>sign in</html>")][n % 3];
        app.becomes(Mood::Odd(odd, body.into()));
        assert_eq!(status(session(&bridge, &format!("junk{n}"))).await, 503);
    }
    assert_eq!((app.asked(), bridge.metric("brokercast_backend_breaker_open", &[]).await), (15, 0.0));
    app.becomes(Mood::Odd("500 Oh", String::new()));
    app.questions.lock().unwrap().clear();
    for n in 0..40 {
        assert_eq!(status(session(&bridge, &format!("other{n}"))).await, 503);
    }
    assert!((10..13).contains(&app.asked()), "{}", app.asked());
    assert_eq!(status(session(&bridge, "a")).await, 200, "what is known needs no question");
    assert_eq!(results("failed").await + results("not_asked").await, 64.0);
    assert_eq!(bridge.metric("brokercast_backend_breaker_open", &[]).await, 1.0);
    app.becomes(Mood::Good);
    eventually("the breaker to close", async || (status(session(&bridge, "other")).await == 401).then_some(())).await;
    assert_eq!((bridge.metric("brokercast_backend_breaker_open", &[]).await, results("refused").await), (0.0, 1.0));
    assert!(!bridge.log_with("the backend fails and is not asked for a while").await.contains("session="));
}

#[tokio::test]
async fn an_answer_ends_with_its_time_and_by_a_revocation() {
    let app = App::start().await;
    app.sign_in("cookie: session=a", json!({"identity": "ada", "subscribe": ["a"], "expires_in": 2}));
    app.sign_in("cookie: session=b", json!({"identity": "bob", "subscribe": ["a"]}));
    let bridge = app.bridge("cache: 1h", "").await;
    let (mut ada, mut bob) = (opened(session(&bridge, "a")).await, opened(session(&bridge, "b")).await);
    let revoke = async |order: Value| {
        let answer = bridge.http.post(bridge.admin_url("/revocations")).body(order.to_string()).send().await.unwrap();
        let body: Value = answer.json().await.unwrap();
        (body["id"].as_str().unwrap().to_owned(), body["ended"].as_u64().unwrap() > 0)
    };
    let soon = |offset: i64| (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(offset)).to_string();
    assert!(!revoke(json!({"identity": "bob", "issued_before": soon(-60), "until": "1h"})).await.1);
    assert_eq!((status(session(&bridge, "b")).await, app.asked()), (200, 2));
    assert!(revoke(json!({"identity": "bob", "issued_before": soon(0), "until": "1h"})).await.1);
    ends_as(&mut bob, "revoked").await;
    assert_eq!((status(session(&bridge, "b")).await, app.asked()), (200, 3), "asked anew, as the answer was older");
    let (id, _) = revoke(json!({"identity": "bob", "until": "1h"})).await;
    assert_eq!((status(session(&bridge, "b")).await, app.asked()), (401, 4));
    assert_eq!((status(session(&bridge, "b")).await, app.asked()), (401, 4), "it is known that it is revoked");
    assert_eq!(status(bridge.http.delete(bridge.admin_url(&format!("/revocations/{id}")))).await, 204);
    assert_eq!(status(session(&bridge, "b")).await, 200);
    ends_as(&mut ada, "expired").await;
    let before = app.asked();
    assert_eq!((status(session(&bridge, "a")).await, app.asked()), (200, before + 1));
}

#[tokio::test]
async fn a_cookies_answer_never_publishes_and_a_token_comes_first() {
    let app = App::start().await;
    let all = |who: &str| json!({"identity": who, "subscribe": [">"], "publish": [">"]});
    app.sign_in("cookie: session=a", all("ada"));
    app.sign_in("authorization: Basic eA==", all("machine"));
    let bridge = app.bridge("cache: 1h", &jwt()).await;
    let post = || bridge.http.post(bridge.url("/publish/x")).body("1");
    assert_eq!((status(post().header("cookie", "session=a")).await, app.asked()), (401, 0));
    assert_eq!(status(post().header("authorization", "Basic eA==").header("cookie", "session=a")).await, 202);
    assert!(!app.questions.lock().unwrap()[0].contains("session"));
    let who = async |request: reqwest::RequestBuilder| -> (Value, usize, Value) {
        let body: Value = request.send().await.unwrap().json().await.unwrap();
        (body["identity"].clone(), body["publish"].as_array().unwrap().len(), body["subscribe"][0].clone())
    };
    let rule = json!({"pattern": ">", "rule": "auth.backend"});
    let get = || bridge.get("/session");
    assert_eq!(who(get().header("cookie", "session=a")).await, (json!("ada"), 0, rule.clone()));
    assert_eq!(who(get().header("authorization", "Basic eA==")).await, (json!("machine"), 1, rule));
    let before = app.asked();
    let token = mint(json!({"sub": "eve", "subjects": ["t"]}));
    assert_eq!(who(get().bearer_auth(&token).header("cookie", "session=a")).await.0, "eve");
    assert_eq!(status(get().bearer_auth("forged").header("cookie", "session=a")).await, 401);
    assert_eq!(status(get()).await, 401);
    let foreign = session(&bridge, "new").header("origin", "https://evil.example");
    assert_eq!((status(foreign).await, app.asked()), (403, before), "no page elsewhere makes it ask");
    let mut ada = opened(session(&bridge, "a")).await;
    // Other keys of the backend leave its streams alone; without it they end.
    bridge.configure(&app.config("cache: 1h, timeout: 3s", &jwt()));
    assert_eq!(status(bridge.http.post(bridge.admin_url("/reload"))).await, 200);
    ada.stays_quiet(Duration::from_millis(300)).await;
    // Another backend is asked about them at once.
    let other = App::start().await;
    other.sign_in("cookie: session=a", all("ada"));
    bridge.configure(&other.config("cache: 1h", &jwt()));
    assert_eq!(status(bridge.http.post(bridge.admin_url("/reload"))).await, 200);
    eventually("the other backend to be asked", async || (other.asked() == 1).then_some(())).await;
    ada.stays_quiet(Duration::from_millis(300)).await;
    bridge.configure(&format!("auth:\n{}sources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n", jwt()));
    assert_eq!(status(bridge.http.post(bridge.admin_url("/reload"))).await, 200);
    ends_as(&mut ada, "revoked").await;
    assert_eq!(status(session(&bridge, "a")).await, 401);
    // One that a reload brings is asked. What anybody may publish, a cookie's sender may too.
    bridge.configure(&app.config("cache: 1h", &(jwt() + "  anonymous: { publish: [open] }\n")));
    assert_eq!(status(bridge.http.post(bridge.admin_url("/reload"))).await, 200);
    assert_eq!(status(session(&bridge, "a")).await, 200);
    let told: Value = get().header("cookie", "session=a").send().await.unwrap().json().await.unwrap();
    assert_eq!(told["publish"], json!([{"pattern": "open", "rule": "auth.anonymous.publish[0]"}]), "{told}");
    let token = mint(json!({"sub": "eve", "subjects": ["t"], "publish": ["t"]}));
    for (request, expected) in [(get().bearer_auth(&token), 2), (get().header("cookie", format!("brokercast={token}")), 1)] {
        assert_eq!(who(request).await.1, expected);
    }
    assert_eq!(status(post().header("cookie", "session=a")).await, 403);
}

#[tokio::test]
async fn a_session_counts_as_a_connection_and_hides_no_failure() {
    let app = App::start().await;
    app.sign_in("cookie: session=a", json!({"identity": "ada", "subscribe": ["a"]}));
    let get = |bridge: &Bridge| bridge.get("/session").header("cookie", "session=a");
    let bridge = app.bridge("cache: 1h", "").await;
    assert_eq!(status(get(&bridge)).await, 200);
    let refused =
        async |bridge: &Bridge, reason: &str| bridge.metric("brokercast_refused_tokens_total", &[&format!("reason=\"{reason}\"")]).await;
    let with_basic = || get(&bridge).header("authorization", "Basic eA==");
    app.sign_in("authorization: Basic eA==", json!({"identity": "machine", "subscribe": ["a"], "publish": ["a"]}));
    // Who publishes is another question, by `Authorization` alone, and this one fails.
    assert_eq!(status(session(&bridge, "a").header("authorization", "Basic eA==")).await, 200);
    app.becomes(Mood::Odd("500 Oh", String::new()));
    assert_eq!(status(with_basic()).await, 503);
    app.becomes(Mood::Good);
    let before = (refused(&bridge, "missing").await, refused(&bridge, "backend_unavailable").await);
    assert_eq!((status(with_basic()).await, before), (200, (0.0, 1.0)));

    let rates = "rates: { connect: { per_address: 3/h } }\n";
    let bridge = Bridge::start(&(app.config("cache: 1h", "") + rates)).await;
    let asked = app.asked();
    for n in 0..10 {
        let answer = bridge.get("/session").header("cookie", format!("session={n}")).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.headers().contains_key("retry-after")),
            if n < 3 { (401, false) } else { (429, true) }
        );
    }
    assert_eq!(app.asked(), asked + 3);
    assert_eq!((refused(&bridge, "backend").await, refused(&bridge, "missing").await), (3.0, 0.0));
}

#[tokio::test]
async fn a_proxy_of_the_environment_gets_nothing_that_is_for_this_machine() {
    let server = Server::bind().await;
    let proxy = server.url.clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let own = seen.clone();
    server.serve(move |head, _| {
        own.lock().unwrap().push(head);
        async { Some("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n".to_owned()) }
    });
    let app = App::start().await;
    app.sign_in("cookie: session=a", json!({"identity": "ada", "subscribe": ["a"]}));
    let config = app.config("cache: 1h", &(jwt() + "  anonymous: { publish: [a] }\n"));
    let bridge = Bridge::builder(&config).env("http_proxy", &proxy).start().await;
    assert_eq!(status(session(&bridge, "a")).await, 200);
    let (url, file) = (bridge.url(""), bridge.folder().join("config.yaml").display().to_string());
    let output = tokio::task::spawn_blocking(move || {
        let args = ["publish", "inbox", "a", "1", "--config", &file, "--url", &url];
        crate::support::bridge::command()
            .args(args)
            .env("http_proxy", proxy)
            .env("BROKERCAST_TOKEN", mint(json!({"publish": ["a"]})))
            .output()
    });
    let output = output.await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(*seen.lock().unwrap(), Vec::<String>::new());
}

#[test]
fn check_says_what_is_wrong_with_a_backend() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let check = |backend: &str| {
        std::fs::write(&file, format!("auth: {{ backend: {backend} }}\nsources: {{ inbox: {{ http: {{ subjects: [\">\"] }} }} }}\n"))
            .unwrap();
        let output = run(&["check", "--config", file.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = check("{ url: \"https://app.example.com/auth\", forward: [\"cookie:session\", X-Tenant] }");
    assert!(code == Some(0) && !said.contains("warning"), "{said}");
    for shown in ["timeout: 2s", "cache: 30s", "recheck: 5m", "cookie:session"] {
        assert!(said.contains(shown), "{shown} in {said}");
    }
    let (code, said) = check("{ url: \"http://app:3000/auth\", forward: [cookie] }");
    assert!(code == Some(0) && said.contains("auth.backend.url: has http"), "{said}");
    for (backend, key) in [
        ("{ forward: [cookie] }", "url"),
        ("{ url: \"http://127.0.0.1/\" }", "forward"),
        ("{ url: \"ftp://127.0.0.1/\", forward: [cookie] }", "url"),
        ("{ url: \"http://u:geheim@127.0.0.1/\", forward: [cookie] }", "url"),
        ("{ url: \"/auth\", forward: [cookie] }", "url"),
        ("{ url: \"http://127.0.0.1/\", forward: [] }", "forward"),
        ("{ url: \"http://127.0.0.1/\", forward: [\"cookie:\"] }", "forward[0]"),
        ("{ url: \"http://127.0.0.1/\", forward: [\"cookie:a b\"] }", "forward[0]"),
        ("{ url: \"http://127.0.0.1/\", forward: [cookie, Host] }", "forward[1]"),
        ("{ url: \"http://127.0.0.1/\", forward: [X-Forwarded-For] }", "forward[0]"),
        ("{ url: \"http://127.0.0.1/\", forward: [cookie, \"cookie:a\"] }", "forward"),
        ("{ url: \"http://127.0.0.1/\", forward: [x-a, X-A] }", "forward"),
        ("{ url: \"http://127.0.0.1/\", forward: [cookie], timeout: 0s }", "timeout"),
        ("{ url: \"http://127.0.0.1/\", forward: [cookie], recheck: 0s }", "recheck"),
        ("{ url: \"http://127.0.0.1/\", forward: [cookie], cache: soon }", "cache"),
        ("{ url: \"http://127.0.0.1/\", forward: [cookie], retries: 3 }", "retries"),
    ] {
        let (code, said) = check(backend);
        assert!(code == Some(78) && said.contains(&format!("auth.backend.{key}")) && !said.contains("geheim"), "{backend}: {said}");
    }
}
