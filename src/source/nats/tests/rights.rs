//! Users who may do little: what needs a right that is missing ends, and all else goes on.

use super::*;

fn permissions(subscribe: &str, publish: &str) -> String {
    format!("authorization {{ users: [ {{ user: u, password: p, permissions: {{ subscribe: {subscribe}, publish: {publish} }} }} ] }}")
}

fn source(server: &Server, subjects: &[impl AsRef<str>]) -> Arc<dyn Adapter> {
    let subjects: Vec<_> = subjects.iter().map(AsRef::as_ref).collect();
    adapter(serde_json::json!({"servers": [server.url()], "subjects": subjects, "user": "u", "password": "p"}))
}

/// A server with a user `u` of these permissions, and a client who may do anything.
async fn limited(subscribe: &str) -> (Server, async_nats::Client) {
    let server = Server::configured(&with_admin(subscribe)).await;
    let client = async_nats::ConnectOptions::with_user_and_password("admin".into(), "p".into()).connect(server.url()).await;
    (server, client.expect("connects"))
}

fn with_admin(subscribe: &str) -> String {
    permissions(subscribe, "{ deny: \">\" }").replace("users: [", "users: [ { user: admin, password: p },")
}

async fn publish(client: &async_nats::Client, subject: &'static str, body: &str) {
    client.publish(subject, body.to_owned().into()).await.expect("publishes");
    client.flush().await.expect("flushes");
}

#[tokio::test]
async fn a_core_source_needs_no_right_but_to_subscribe_to_its_subjects() {
    let (server, client) = limited("[\"a.>\", \"b\"]").await;
    let running = Running::start(source(&server, &["a.>", "b"]));
    running.until_state(State::Up).await;
    publish(&client, "a.x", "1").await;
    publish(&client, "b", "2").await;
    running.until_messages(2).await;
    assert_eq!(running.handle.counters.reconnects(), 0);
}

#[tokio::test]
async fn a_subject_that_is_refused_leaves_the_others_alone() {
    let (server, client) = limited("[\"a.>\", \"c.d\"]").await;
    // `c.d` is covered by `c.>`, which is refused.
    let running = Running::start(source(&server, &["a.x", "b", "c.>", "c.d"]));
    running.until_state(State::Up).await;
    for (n, subject) in ["a.x", "b", "c.d", "c.e", "a.x"].into_iter().enumerate() {
        publish(&client, subject, &n.to_string()).await;
    }
    running.until_messages(3).await;
    let mut bodies = running.bodies();
    bodies.sort_unstable();
    assert_eq!(bodies, ["0", "2", "4"]);
    assert_eq!((running.handle.counters.reconnects(), running.gaps().len()), (0, 0));
}

#[tokio::test]
async fn a_check_names_each_subject_that_is_refused() {
    let (server, _client) = limited("[\"a\", \"c\"]").await;
    let check = async |subjects: &[&str]| source(&server, subjects).check().await.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(check(&["a", "c"]).await, [""; 0]);
    let wrong = check(&["a", "b", "c", "d"]).await;
    assert!(matches!(&wrong[..], [b, d] if b.contains("`b`") && d.contains("`d`") && d.contains("`subjects`")), "{wrong:?}");
    let nobody = adapter(serde_json::json!({"servers": [server.url()], "subjects": ["a"]})).check().await;
    assert!(matches!(&nobody[..], [error] if error.kind() == ErrorKind::Denied), "{nobody:?}");
}

#[tokio::test]
async fn each_of_many_refusals_is_heard() {
    let (server, client) = limited("\"a.7.>\"").await;
    let subjects: Vec<String> = (0..600).map(|n| format!("a.{n}.x")).collect();
    let running = Running::start(source(&server, &subjects));
    running.until_state(State::Up).await;
    publish(&client, "a.7.x", "1").await;
    running.until_messages(1).await;
    let none: Vec<String> = (8..600).map(|n| format!("a.{n}.x")).collect();
    let error = source(&server, &none).connect(Start::Now).await.err().expect("nothing is permitted");
    assert_eq!(error.kind(), ErrorKind::Denied);
    let text = error.to_string();
    assert!(text.contains("Subscription to") && text.contains("`a.8.x`") && text.contains("`subjects`"), "{text}");
}

#[tokio::test]
async fn a_right_that_is_taken_away_and_given_back_concerns_its_subject_alone() {
    let (server, client) = limited("[\"a\", \"b\"]").await;
    let running = Running::start(source(&server, &["a", "b"]));
    running.until_state(State::Up).await;
    let conf = server.folder.path().join("nats.conf");
    let text = std::fs::read_to_string(&conf).expect("reads");
    let reload = |text: &str| {
        std::fs::write(&conf, text).expect("writes");
        server.signal(rustix::process::Signal::HUP);
    };
    reload(&text.replace("[\"a\", \"b\"]", "\"a\""));
    let mut sent = 0;
    eventually("`b` to be refused", async || {
        publish(&client, "b", "b").await;
        sleep(Duration::from_millis(50)).await;
        let came = running.bodies().iter().filter(|body| *body == "b").count();
        sent += 1;
        if came < sent { Ok(()) } else { Err(format!("{came} of {sent}")) }
    })
    .await;
    publish(&client, "a", "a 1").await;
    reload(&text);
    running.until_gap(GapReason::Reconnect).await;
    publish(&client, "b", "b again").await;
    publish(&client, "a", "a 2").await;
    eventually("both", async || {
        let bodies = running.bodies();
        let all = ["a 1", "a 2", "b again"].iter().all(|body| bodies.iter().any(|b| b == body));
        if all { Ok(()) } else { Err(format!("{bodies:?}")) }
    })
    .await;
    assert_eq!((running.handle.counters.reconnects(), running.gaps().len()), (0, 1));
}
