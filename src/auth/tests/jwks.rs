//! Key sets behind a URL, from a server that can be told what to say.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::signatures::{P256, RSA, jwk, sign};
use super::*;
use crate::auth::jwks::Before;

/// Paths and their answers; an empty path stands for all.
type Answers = Vec<(String, Vec<u8>)>;

/// An HTTP server that answers every request with what it was told last for its path, or for all paths.
pub(super) struct Server {
    url: String,
    answers: Arc<Mutex<Answers>>,
    requests: Arc<AtomicUsize>,
    pub(super) tasks: JoinSet<()>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://user:geheim@{}/jwks.json", listener.local_addr().expect("an address"));
        let (answers, requests) = (Arc::new(Mutex::new(Answers::new())), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        let (said, counted) = (Arc::clone(&answers), Arc::clone(&requests));
        tasks.spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.expect("a connection");
                let mut head = vec![0; 4096];
                let read = socket.read(&mut head).await.expect("a request");
                counted.fetch_add(1, SeqCst);
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                let path = head.split(' ').nth(1).expect("a path");
                let answer = said
                    .lock()
                    .iter()
                    .rev()
                    .find(|(of, _)| of.is_empty() || of == path)
                    .map(|(_, answer)| answer.clone())
                    .unwrap_or_default();
                // Who has heard enough hangs up.
                socket.write_all(&answer).await.unwrap_or_default();
            }
        });
        Self { url, answers, requests, tasks }
    }

    /// `http://127.0.0.1:1234`
    pub(super) fn base(&self) -> String {
        self.url.replace("user:geheim@", "").replace("/jwks.json", "")
    }

    fn say(&self, status: &str, body: &str) {
        self.say_at("", status, body);
    }

    /// What is at one path.
    pub(super) fn also(&self, path: &str, body: &Value) {
        self.say_at(path, "200 OK", &body.to_string());
    }

    fn say_at(&self, path: &str, status: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        self.answers.lock().push((path.to_owned(), (head + body).into_bytes()));
    }

    fn keys(&self, keys: &[Value]) {
        self.say("200 OK", &json!({ "keys": keys }).to_string());
    }

    fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }
}

/// With its refresher running.
async fn start(server: &mut Server) -> Arc<Authenticator> {
    let source = key(&[Algorithm::RS256, Algorithm::ES256], None, KeyMaterial::JwksUrl(server.url.clone()));
    let authenticator = Arc::new(authenticator(vec![source, secret()]));
    let refreshing = Arc::clone(&authenticator);
    server.tasks.spawn(async move { refreshing.refresh_keys().await });
    authenticator
}

fn rsa(id: &str) -> String {
    sign(&RSA, Algorithm::RS256, Some(id), &claims(json!({})))
}

fn rsa_key(id: &str) -> Value {
    jwk(&RSA, Algorithm::RS256, json!({ "kid": id }))
}

const PATIENCE: Duration = Duration::from_secs(20);

async fn patiently(authenticator: &Authenticator, token: &str) -> Result<Grant, AuthError> {
    authenticator.authenticate(&bearer(token), None, false, PATIENCE).await
}

#[tokio::test]
async fn before_the_first_set_a_token_is_asked_to_wait() {
    let mut server = Server::start().await;
    server.say("503 Service Unavailable", "");
    let source = key(&[Algorithm::RS256], None, KeyMaterial::JwksUrl(server.url.clone()));
    let alone = authenticator(vec![source, secret()]);
    assert!(!keys_loaded(&alone));
    assert_eq!(ask(&alone, &rsa("one")).expect_err("not yet"), AuthError::KeysNotLoaded);
    // What other keys sign doesn't wait, nor what no key could.
    assert!(ask(&alone, &hs256(&claims(json!({})))).is_ok());
    assert_eq!(
        ask(&alone, &sign(&P256, Algorithm::ES256, None, &claims(json!({})))).expect_err("no key"),
        AuthError::Invalid(Refused::UnknownKey)
    );
    let authenticator = start(&mut server).await;
    let brief = authenticator.authenticate(&bearer(&rsa("one")), None, false, Duration::from_millis(200)).await;
    assert_eq!(brief.expect_err("fails"), AuthError::KeysNotLoaded);
    let waiting = Instant::now();
    // An operator who asks why is told what the server answers.
    while !authenticator.reason(&rsa("one"), &AuthError::KeysNotLoaded).contains("503") {
        assert!(waiting.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.keys(&[rsa_key("one")]);
    assert!(patiently(&authenticator, &rsa("one")).await.is_ok());
    assert!(keys_loaded(&authenticator));
    assert!(server.requests() >= 2);
}

#[tokio::test]
async fn a_key_that_is_not_known_is_looked_for_once_in_a_while() {
    let mut server = Server::start().await;
    server.keys(&[rsa_key("one")]);
    let authenticator = start(&mut server).await;
    assert!(patiently(&authenticator, &rsa("one")).await.is_ok());
    assert_eq!(server.requests(), 1);
    // Lately fetched: what isn't there isn't there.
    server.keys(&[rsa_key("two")]);
    for _ in 0..50 {
        assert_eq!(patiently(&authenticator, &rsa("two")).await.expect_err("unknown"), AuthError::Invalid(Refused::UnknownKey));
    }
    assert_eq!(server.requests(), 1);
    tokio::time::pause();
    tokio::time::advance(super::super::jwks::COOLDOWN).await;
    tokio::time::resume();
    // Now one that is not known is looked for, also one that has the name of one that is here: it may have been exchanged.
    let mut forged = rsa("one");
    forged.replace_range(forged.len() - 20..forged.len() - 10, "AAAAAAAAAA");
    assert_eq!(ask(&authenticator, &forged).expect_err("asked for"), AuthError::KeysNotLoaded);
    assert_eq!(ask(&authenticator, &rsa("two")).expect_err("asked for"), AuthError::KeysNotLoaded);
    let (a, b, c) = (rsa("two"), rsa("two"), rsa("three"));
    let (a, b, c) = tokio::join!(patiently(&authenticator, &a), patiently(&authenticator, &b), patiently(&authenticator, &c));
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(c.expect_err("in no set"), AuthError::Invalid(Refused::UnknownKey));
    assert_eq!(server.requests(), 2);
    // The key that was withdrawn is worth nothing any more, remembered token or not.
    assert_eq!(ask(&authenticator, &rsa("one")).expect_err("withdrawn"), AuthError::Invalid(Refused::UnknownKey));
}

#[tokio::test]
async fn the_last_good_set_is_kept() {
    let mut server = Server::start().await;
    server.keys(&[rsa_key("one")]);
    let authenticator = start(&mut server).await;
    assert!(patiently(&authenticator, &rsa("one")).await.is_ok());
    let huge = "x".repeat(3 << 20);
    for (status, body) in [
        ("500 Internal Server Error", "{}"),
        ("200 OK", "rubbish"),
        ("200 OK", r#"{"keys":[]}"#),
        ("200 OK", huge.as_str()),
        ("204 No Content", ""),
        ("rubbish", ""),
    ] {
        server.say(status, body);
        let before = server.requests();
        tokio::time::pause();
        // Past the cooldown, the pause after failures and the refresh.
        tokio::time::advance(Duration::from_secs(400)).await;
        tokio::time::resume();
        let waiting = Instant::now();
        while server.requests() == before || !settled(&authenticator) {
            assert!(waiting.elapsed() < Duration::from_secs(20), "{status}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(ask(&authenticator, &rsa("one")).is_ok(), "{status}");
        // A newer key may be in the set that could not be fetched.
        assert_eq!(ask(&authenticator, &rsa("two")).expect_err("unknown"), AuthError::KeysNotLoaded, "{status}");
    }
}

#[tokio::test]
async fn a_reload_while_a_set_cannot_be_fetched_refuses_no_key_that_may_come() {
    let mut server = Server::start().await;
    server.keys(&[rsa_key("one")]);
    let before = start(&mut server).await;
    assert!(patiently(&before, &rsa("one")).await.is_ok());
    server.say("503 Service Unavailable", "");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(400)).await;
    tokio::time::resume();
    let waiting = Instant::now();
    while !settled(&before) {
        assert!(waiting.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&before, &rsa("two")).expect_err("not yet"), AuthError::KeysNotLoaded);
    let source = key(&[Algorithm::RS256, Algorithm::ES256], None, KeyMaterial::JwksUrl(server.url.clone()));
    let after = authenticator(vec![source]).in_place_of(&before);
    assert!(ask(&after, &rsa("one")).is_ok());
    assert_eq!(ask(&after, &rsa("two")).expect_err("not yet"), AuthError::KeysNotLoaded);
}

#[tokio::test]
async fn a_secret_that_is_taken_out_is_lost_though_a_set_was_never_loaded() {
    let source = || key(&[Algorithm::RS256], None, KeyMaterial::JwksUrl("http://127.0.0.1:1/".parse().expect("a URL")));
    let owner = ask(&authenticator(vec![source(), secret()]), &hs256(&claims(json!({})))).expect("a grant").owner.expect("an owner");
    assert!(!authenticator(vec![source(), secret()]).lost_key(&owner));
    assert!(authenticator(vec![source()]).lost_key(&owner));
}

#[tokio::test]
async fn a_public_key_that_is_taken_out_counts_until_a_new_set_was_tried_once() {
    let server = Server::start().await;
    server.say("503 Service Unavailable", "");
    let set = || key(&[Algorithm::ES256], None, KeyMaterial::JwksUrl(server.url.clone()));
    let file = || key(&[Algorithm::ES256], None, KeyMaterial::Pem(P256.public_pem.clone()));
    let before = authenticator(vec![file()]);
    let owner = ask(&before, &sign(&P256, Algorithm::ES256, None, &claims(json!({})))).expect("a grant").owner.expect("an owner");
    // It may have moved to the set.
    let after = authenticator(vec![set()]).in_place_of(&before);
    let mut attempts = after.attempts().expect("tokens");
    assert!(!after.lost_key(&owner));
    tokio::select! {
        () = after.refresh_keys() => {}
        attempted = attempts.changed() => attempted.expect("an attempt"),
    }
    assert!(after.lost_key(&owner), "the set cannot be fetched");
    // A set that was tried before holds nothing back.
    let both = authenticator(vec![set(), file()]).in_place_of(&after);
    assert!(!both.lost_key(&owner));
    assert!(authenticator(vec![set()]).in_place_of(&both).lost_key(&owner));
}

/// So many seconds pass, and an attempt to fetch the sets that is due then has come to its end.
async fn attempted_after(seconds: u64, authenticator: &Authenticator) {
    let mut attempts = authenticator.attempts().expect("tokens");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
    tokio::time::timeout(PATIENCE, attempts.changed()).await.expect("in time").expect("an attempt");
}

#[tokio::test]
async fn a_key_is_lost_when_it_was_missing_twice() {
    let mut server = Server::start().await;
    server.keys(&[rsa_key("one"), jwk(&P256, Algorithm::ES256, json!({ "kid": "two" }))]);
    let authenticator = start(&mut server).await;
    let owner = |grant: Grant| grant.owner.expect("an owner");
    let first = owner(patiently(&authenticator, &rsa("one")).await.expect("a grant"));
    let second = sign(&P256, Algorithm::ES256, Some("two"), &claims(json!({})));
    let second = owner(patiently(&authenticator, &second).await.expect("a grant"));
    let third = owner(ask(&authenticator, &hs256(&claims(json!({})))).expect("a grant"));
    let lost = || [&first, &second, &third].map(|owner| authenticator.lost_key(owner));
    assert_eq!(lost(), [false; 3]);
    // By another name it is the same key.
    let without_two = |name| server.keys(&[rsa_key(name)]);
    for (set, expected) in [("one", [false; 3]), ("other", [false, true, false]), ("other", [false, true, false])] {
        without_two(set);
        attempted_after(400, &authenticator).await;
        assert_eq!(lost(), expected, "{set}");
    }
}

#[tokio::test]
async fn a_set_that_stays_without_keys_takes_the_last_ones_back() {
    let mut server = Server::start().await;
    server.keys(&[rsa_key("one")]);
    let authenticator = start(&mut server).await;
    let owner = patiently(&authenticator, &rsa("one")).await.expect("a grant").owner.expect("an owner");
    // Those of another kind are none either.
    server.say("200 OK", &json!({ "keys": [{ "kty": "oct", "k": "AAAA" }] }).to_string());
    let again = async |seconds| {
        attempted_after(seconds, &authenticator).await;
        ask(&authenticator, &rsa("one")).map(|_| authenticator.lost_key(&owner))
    };
    assert_eq!(again(400).await, Ok(false), "it may be a mistake");
    assert_eq!(again(61).await.expect_err("taken back"), AuthError::Invalid(Refused::UnknownKey));
    assert_eq!(again(400).await.expect_err("taken back"), AuthError::Invalid(Refused::UnknownKey));
    assert!(authenticator.lost_key(&owner));
    server.keys(&[rsa_key("one")]);
    assert_eq!(again(400).await, Ok(false));
}

#[tokio::test]
async fn a_set_without_keys_may_be_a_mistake_each_time_anew() {
    let mut server = Server::start().await;
    server.keys(&[rsa_key("one")]);
    let authenticator = start(&mut server).await;
    assert!(patiently(&authenticator, &rsa("one")).await.is_ok());
    let again = async |seconds| {
        attempted_after(seconds, &authenticator).await;
        ask(&authenticator, &rsa("one")).map(drop)
    };
    let none = || server.say("200 OK", r#"{"keys":[]}"#);
    none();
    assert_eq!(again(400).await, Ok(()), "it may be a mistake");
    server.keys(&[rsa_key("one")]);
    assert_eq!(again(61).await, Ok(()), "it was one");
    none();
    assert_eq!(again(400).await, Ok(()), "it may be one again");
}

#[test]
fn a_shorter_leeway_ends_no_stream_that_is_open() {
    let with = |leeway| {
        let mut settings = config(vec![secret()]);
        settings.issuers[0].leeway = Duration::from_secs(leeway);
        Authenticator::new(settings, TOKEN_BYTES)
    };
    let (before, after) = (with(30), with(5));
    let owner = ask(&before, &hs256(&claims(json!({ "exp": now() - 10 })))).expect("a grant").owner.expect("an owner");
    assert_eq!(patterns(&after.subscribes(Some(&owner), Timestamp::now())), ["a.>"]);
}

use std::time::Instant;

fn settled(authenticator: &Authenticator) -> bool {
    remotes(authenticator).all(Remote::failed)
}

#[tokio::test]
async fn without_remote_keys_there_is_nothing_to_refresh() {
    authenticator(vec![secret()]).refresh_keys().await;
    let none = Settings { issuers: vec![], ..config(vec![]) };
    Authenticator::new(none, TOKEN_BYTES).refresh_keys().await;
}

#[tokio::test]
async fn an_error_never_shows_the_password_in_a_url() {
    let remote =
        Remote::new(Place::Set("http://user:geheim@127.0.0.1:1/x?key=geheim".parse().expect("a URL")), None, vec![Algorithm::RS256]);
    let error = remote.attempt(&mut Before::default()).await.expect_err("nobody listens");
    let shown = format!("{} {error:?}", crate::support::causes::chain(&error));
    assert!(shown.starts_with("the key set could not be fetched: "), "{shown}");
    assert!(!shown.contains("geheim"), "{shown}");
    assert!(!format!("{remote:?}").contains("geheim"));
}
