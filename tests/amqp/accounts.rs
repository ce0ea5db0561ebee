//! Users with just the rights that README lists, passwords that change, and several addresses.

use std::time::Duration;

use brokercast::internals::ErrorKind::Denied;
use brokercast::internals::Start;
use serde_json::json;

use crate::support::drive::{Reading, chain, source, texts};
use crate::support::port::Port;
use crate::support::rabbit::Rabbit;
use crate::support::wait::within;

/// The user `few` gets these rights: configure, write, read.
fn grant(rabbit: &Rabbit, rights: [&str; 3]) {
    rabbit.ctl(&[&["set_permissions", "few"][..], &rights].concat());
}

/// A source of the user `few`.
fn of_few(rabbit: &Rabbit, mut config: serde_json::Value) -> std::sync::Arc<dyn brokercast::internals::Adapter> {
    if config.get("url").or(config.get("urls")).is_none() {
        config["url"] = rabbit.url().into();
    }
    config["user"] = "few".into();
    if config.get("password").is_none() {
        config["password"] = "hush".into();
    }
    source("s", config)
}

fn with_rights(rabbit: &Rabbit, rights: [&str; 3], config: serde_json::Value) -> std::sync::Arc<dyn brokercast::internals::Adapter> {
    grant(rabbit, rights);
    of_few(rabbit, config)
}

/// All that there is at the broker.
fn made(rabbit: &Rabbit) -> String {
    [&["list_queues", "name"][..], &["list_exchanges"], &["list_bindings"]].map(|list| rabbit.ctl(list)).concat()
}

/// What `check --connect` says of a source.
async fn faults(source: &std::sync::Arc<dyn brokercast::internals::Adapter>) -> Vec<String> {
    source.check().await.iter().map(|error| chain(error)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "a table of what can be wrong")]
async fn all_that_is_wrong_is_found_at_once_with_its_key_and_nothing_is_made() {
    let rabbit = Rabbit::start().await;
    rabbit.ctl(&["add_user", "few", "hush"]);
    rabbit.ctl(&["add_vhost", "other"]);
    let client = rabbit.client().await;
    for kind in ["stream", "classic"] {
        let mut table = lapin::types::FieldTable::default();
        table.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString(kind.into()));
        let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
        client.channel.queue_declare(kind.into(), options, table).await.unwrap();
    }
    let before = made(&rabbit);
    let (nobody, all) = (Port::take(), [".*", ".*", ".*"]);
    let (url, dead) = (rabbit.url(), format!("amqp://{}", nobody.address()));
    let cases = [
        (all, json!({ "queue": "none" }), vec!["queue `none` is not there yet (`queue`; `declare: true`"]),
        (all, json!({ "queue": "stream" }), vec!["`queue_type: stream` reads it as one"]),
        (all, json!({ "queue": "classic", "queue_type": "stream" }), vec!["is no stream: `queue_type` says otherwise"]),
        (all, json!({ "exchange": "amq.fanout", "binding_keys": ["a.b"] }), vec!["`exchange_type` must be its type"]),
        (all, json!({ "exchange": "x", "exchange_type": "x-never" }), vec!["(`exchange_type`; is its plugin"]),
        (all, json!({ "exchange": "amq.mine" }), vec!["exchange `amq.mine` is not there, and this user may not make it (`exchange`)"]),
        (
            all,
            json!({ "exchange": "x", "exchange_type": "x-never", "queue": "amq.mine", "declare": true }),
            vec!["(`exchange_type`; is its plugin", "queue `amq.mine` is not there, and this user may not make it (`queue`)"],
        ),
        (all, json!({ "password": "wrong", "queue": "none" }), vec!["(`user`, `password`)"]),
        (
            all,
            json!({ "url": url.replace("%2f", "other"), "queue": "none" }),
            vec!["(`url` names the vhost, which `user`, `password` must"],
        ),
        (all, json!({ "url": url.replace("%2f", "nowhere"), "queue": "none" }), vec!["(`url` names the vhost)"]),
        (all, json!({ "url": dead, "queue": "none" }), vec!["(`url`)"]),
        (all, json!({ "urls": [dead, format!("{dead}/other")], "queue": "none" }), vec!["(`urls`)"]),
        (
            all,
            json!({ "queue_type": "super_stream", "partitions": ["none-0", "stream", "classic", "none-1"] }),
            vec![
                "queue `none-0` is not there yet (`partitions`;",
                "queue `classic` is no stream",
                "queue `none-1` is not there yet (`partitions`;",
            ],
        ),
        (all, json!({ "url": dead, "queue_type": "super_stream", "partitions": ["none-0", "none-1"] }), vec!["(`url`)"]),
        (all, json!({ "exchange": "new" }), vec![]),
        (all, json!({ "exchange": "new", "queue_type": "stream" }), vec![]),
        (all, json!({ "queue": "new", "declare": true, "queue_type": "quorum" }), vec![]),
        (
            ["^$", "^$", "^$"],
            json!({ "exchange": "X", "binding_keys": ["a.#", "b.#"] }),
            vec![
                "exchange `X` is not there",
                "a queue of this process is not there",
                "cannot bind a queue to exchange `X`",
                "cannot consume from queue `amq.gen-brokercast-check` (`exchange`)",
            ],
        ),
        (
            ["^$", "^$", "^$"],
            json!({ "exchange": "X", "queue": "Q", "declare": true, "queue_type": "quorum" }),
            vec![
                "exchange `X` is not there",
                "queue `Q` is not there",
                "cannot bind a queue to exchange `X`",
                "cannot consume from queue `Q`",
            ],
        ),
        (["^$", "^$", "^$"], json!({ "queue": "stream", "queue_type": "stream" }), vec!["cannot consume from queue `stream`"]),
        (["^$", "^$", "^$"], json!({ "queue": "classic" }), vec!["queue `classic`"]),
    ];
    let mut given = None;
    for (rights, config, expected) in cases {
        if given.replace(rights) != Some(rights) {
            grant(&rabbit, rights);
        }
        let source = of_few(&rabbit, config.clone());
        let faults = faults(&source).await;
        assert_eq!(faults.len(), expected.len(), "{config}: {faults:#?}");
        assert!(faults.iter().zip(expected).all(|(fault, words)| fault.contains(words)), "{config}: {faults:#?}");
        assert!(faults.iter().all(|fault| !fault.contains("hush")), "{faults:?}");
    }
    assert_eq!(made(&rabbit), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_binding_key_is_tried_and_what_several_questions_meet_is_said_once() {
    let rabbit = Rabbit::start().await;
    rabbit.ctl(&["add_user", "few", "hush"]);
    rabbit.ctl(&["set_topic_permissions", "few", "amq.topic", "^$", "^orders\\."]);
    let exchange = json!({ "exchange": "amq.topic", "binding_keys": ["orders.#", "other.#", "orders.*", "third.#"] });
    let mut queue = exchange.clone();
    queue["queue"] = "new".into();
    queue["declare"] = true.into();
    for config in [exchange, queue] {
        let few = with_rights(&rabbit, [".*", ".*", ".*"], config.clone());
        let found = faults(&few).await;
        let named = |key: &str| found.iter().filter(|fault| fault.contains(&format!("topic '{key}'"))).count();
        assert_eq!((found.len(), named("other.#"), named("third.#")), (2, 1, 1), "{config}: {found:#?}");
        let error = Reading::open(&few, Start::Now).await.err().unwrap();
        assert_eq!(chain(&error), found[0], "{config}");
        assert!(error.kind() == Denied && found[0].contains("(`binding_keys`)"), "{config}: {found:#?}");
    }
    rabbit.ctl(&["set_user_limits", "few", r#"{"max-channels": 0}"#]);
    let found = faults(&of_few(&rabbit, json!({ "exchange": "X" }))).await;
    assert!(found.len() == 1 && found[0].contains("cannot open a channel"), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_rights_are_enough_and_a_missing_one_is_named() {
    let rabbit = Rabbit::start().await;
    rabbit.ctl(&["add_user", "few", "hush"]);
    let client = rabbit.client().await;
    let queue = json!({ "queue": "Q", "declare": true, "exchange": "X" });
    let stream = json!({ "queue": "S", "declare": true, "exchange": "X", "queue_type": "stream" });
    for (rights, config) in [
        // Makes them, then finds them, then may not even bind them.
        (["^(Q|X)$", "^Q$", "^(Q|X)$"], &queue),
        (["^$", "^Q$", "^(Q|X)$"], &queue),
        (["^$", "^$", "^Q$"], &queue),
        (["^$", "^$", "^Q$"], &json!({ "queue": "Q" })),
        (["^(S|X)$", "^S$", "^(S|X)$"], &stream),
        (["^$", "^S$", "^(S|X)$"], &stream),
        (["^$", "^$", "^S$"], &json!({ "queue": "S", "queue_type": "stream" })),
        (["^amq\\.gen", "^amq\\.gen", "^(amq\\.gen.*|X)$"], &json!({ "exchange": "X" })),
    ] {
        let few = with_rights(&rabbit, rights, config.clone());
        assert_eq!(faults(&few).await, Vec::<String>::new(), "{rights:?} {config}");
        let mut reading = Reading::open(&few, Start::Now).await.unwrap_or_else(|e| panic!("{rights:?} {config}: {}", chain(&e)));
        let text = format!("{rights:?} {config}");
        client.publish("X", "a", text.as_bytes()).await;
        assert_eq!(texts(&reading.messages(1).await), [text]);
        reading.close().await;
    }
    for (rights, config, named) in [
        (["^$", "^$", "^$"], json!({ "queue": "Q" }), "queue 'Q'"),
        (["^$", "^$", ".*"], json!({ "exchange": "X" }), "queue 'amq.gen"),
        (["^new$", "^$", ".*"], json!({ "queue": "new", "declare": true, "exchange": "X" }), "queue 'new'"),
        (["^$", "^$", ".*"], json!({ "exchange": "none" }), "exchange 'none'"),
    ] {
        let few = with_rights(&rabbit, rights, config);
        let faults = faults(&few).await;
        assert!(faults.iter().any(|fault| fault.contains(named)), "{rights:?}: {faults:?}");
        // Also at the next attempt: what was made half is taken back.
        for _ in 0..2 {
            let error = Reading::open(&few, Start::Now).await.err().unwrap();
            assert!(error.kind() == Denied && chain(&error).contains(named), "{rights:?}: {}", chain(&error));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_is_read_again_at_the_next_connect_and_told_to_a_living_one() {
    let rabbit = Rabbit::start().await;
    rabbit.ctl(&["add_user", "turning", "one"]);
    rabbit.ctl(&["set_permissions", "turning", ".*", ".*", ".*"]);
    let folder = tempfile::tempdir().unwrap();
    let (file, url_file) = (folder.path().join("password"), folder.path().join("url"));
    std::fs::write(&file, "one\n").unwrap();
    std::fs::write(&url_file, rabbit.url().replace("amqp://", "amqp://turning:one@")).unwrap();
    let name = json!({ "queue": "s", "declare": true, "queue_type": "stream" });
    let mut configs = [name.clone(), name];
    configs[0]["url"] = rabbit.url().into();
    configs[0]["user"] = "turning".into();
    configs[0]["password_file"] = file.to_str().unwrap().into();
    configs[1]["url_file"] = url_file.to_str().unwrap().into();
    let sources = configs.map(|config| source("s", config));
    let client = rabbit.client().await;
    let mut live = Reading::open(&sources[0], Start::Earliest).await.unwrap();
    client.publish("", "s", b"1").await;
    let last = live.messages(1).await[0].position.unwrap();

    rabbit.ctl(&["change_password", "turning", "two"]);
    for source in &sources {
        assert_eq!(Reading::open(source, Start::Now).await.err().unwrap().kind(), Denied);
    }
    std::fs::write(&file, "two\n").unwrap();
    std::fs::write(&url_file, rabbit.url().replace("amqp://", "amqp://turning:two@")).unwrap();
    client.publish("", "s", b"2").await;
    for source in &sources {
        let mut reading = Reading::open(source, Start::After(last)).await.unwrap();
        assert_eq!(texts(&reading.messages(1).await), ["2"]);
        assert!(reading.gaps().is_empty());
    }
    // The one that stood all the time has been told meanwhile, and reads on.
    live.during(Duration::from_secs(7)).await;
    client.publish("", "s", b"3").await;
    assert_eq!(texts(&live.messages(3).await), ["1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_addresses_are_tried_in_turn_and_lists_name_the_host() {
    let rabbit = Rabbit::start().await;
    let (nobody, mute) = (Port::take(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let urls = json!([format!("amqp://{}", nobody.address()), format!("amqp://{}", mute.local_addr().unwrap()), rabbit.url()]);
    let several = source("s", json!({ "urls": urls, "name": "web", "queue": "q", "declare": true }));
    for _ in 0..3 {
        let reading = Reading::open(&several, Start::Now).await.unwrap();
        let host = rustix::system::uname().nodename().to_string_lossy().split('.').next().unwrap().to_owned();
        let named = within(Duration::from_secs(20), "the connection to be listed", async || {
            let listed =
                rabbit.ctl(&["-q", "list_connections", "client_properties"]) + &rabbit.ctl(&["-q", "list_consumers", "consumer_tag"]);
            (listed.contains(&format!("web@{host} s")) && listed.contains(&format!("web@{host}.s."))).then_some(())
        });
        named.await;
        reading.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_says_nothing_is_waited_for_once_and_not_by_each_reader() {
    let rabbit = Rabbit::start().await;
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let urls = json!([format!("amqp://{}", mute.local_addr().unwrap()), rabbit.url()]);
    for kind in ["stream", "classic"] {
        let config = json!({ "urls": urls, "queue": kind, "declare": true, "queue_type": kind });
        let source = source("s", config);
        let reading = Reading::open(&source, Start::Now).await.unwrap();
        let begun = std::time::Instant::now();
        if kind == "stream" {
            for _ in 0..3 {
                Reading::history(&source, Start::Earliest).await.unwrap().close().await;
            }
        }
        reading.close().await;
        for _ in 0..3 {
            Reading::open(&source, Start::Now).await.unwrap().close().await;
        }
        source.publish(kind, "1".into()).await.unwrap();
        assert!(source.check().await.is_empty());
        assert!(begun.elapsed() < Duration::from_secs(9), "{kind}: {:?}", begun.elapsed());
    }
}
