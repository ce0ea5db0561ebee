//! Users with just the rights that README lists, passwords that change, and several addresses.

use std::time::Duration;

use brokercast::internals::ErrorKind::Denied;
use brokercast::internals::Start;
use serde_json::json;

use crate::support::drive::{Reading, chain, source, texts};
use crate::support::port::Port;
use crate::support::rabbit::Rabbit;
use crate::support::wait::within;

/// A source of the user `few`, who gets these rights: configure, write, read.
fn with_rights(rabbit: &Rabbit, rights: [&str; 3], mut config: serde_json::Value) -> std::sync::Arc<dyn brokercast::internals::Adapter> {
    rabbit.ctl(&[&["set_permissions", "few"][..], &rights].concat());
    config["url"] = rabbit.url().into();
    config["user"] = "few".into();
    config["password"] = "hush".into();
    source("s", config)
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
        let error = Reading::open(&few, Start::Now).await.err().unwrap();
        assert!(error.kind() == Denied && chain(&error).contains(named), "{rights:?}: {}", chain(&error));
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
