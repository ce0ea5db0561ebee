//! Secrets that change while messages are published: nothing is lost, and nobody has to restart anything.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::json;

use crate::support::bridge::numbers;
use crate::support::token::now;
use crate::support::{Bridge, Rabbit, eventually};

/// How long a token is good, in seconds.
const LIFE: u64 = 12;

/// A file is replaced as secrets are: no reader sees half of it.
fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

fn token(key: &EncodingKey) -> String {
    let header = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::RS256) };
    let scope = ["configure", "write", "read"].map(|right| format!("rabbitmq.{right}:*/*/*"));
    encode(&header, &json!({ "aud": ["rabbitmq"], "scope": scope, "sub": "bridge", "exp": now() + LIFE }), key).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "one story, in its order")]
async fn rabbitmq_passwords_and_oauth2_tokens_are_rotated_under_load_and_durable_sources_lose_nothing() {
    let mut rabbit = Rabbit::absent(
        "auth_backends.1 = internal\nauth_backends.2 = rabbit_auth_backend_oauth2\nauth_oauth2.resource_server_id = rabbitmq\n\
         auth_oauth2.default_key = one\nauth_oauth2.signing_keys.one = {folder}/public.pem",
    );
    let pair = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    std::fs::write(rabbit.folder().join("public.pem"), pair.public_key_pem()).unwrap();
    rabbit.enable(&["rabbitmq_auth_backend_oauth2"]);
    rabbit.restart().await;
    rabbit.ctl(&["add_user", "turning", "zero"]);
    rabbit.ctl(&["set_permissions", "turning", ".*", ".*", ".*"]);
    let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (password, secret) = (folder.path().join("password"), folder.path().join("token"));
    replace(&password, "zero\n");
    replace(&secret, &token(&key));
    let (url, password_file, token_file) = (rabbit.url(), password.display(), secret.display());
    let bridge = Bridge::start(&format!(
        r##"
auth: {{ anonymous: {{ subscribe: [">"] }} }}
sources:
  passwords: {{ amqp: {{ url: "{url}", user: turning, password_file: "{password_file}", exchange: X, queue_type: stream }} }}
  tokens: {{ amqp: {{ url: "{url}", user: whoever, password_file: "{token_file}", exchange: X, queue_type: stream }} }}
routes:
  - {{ match: {{ source: passwords }}, subject: passwords }}
  - {{ match: {{ source: tokens }}, subject: tokens }}
"##
    ))
    .await;
    let mut clients = [bridge.subscribe("subject=passwords").await, bridge.subscribe("subject=tokens").await];
    let (done, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let publishing = tokio::spawn({
        let (done, count, client) = (done.clone(), count.clone(), rabbit.client().await);
        async move {
            while !done.load(Ordering::Relaxed) {
                let n = count.load(Ordering::Relaxed);
                client.publish("X", "a", format!("{{\"n\":{n}}}").as_bytes()).await;
                count.store(n + 1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let rotating = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            replace(&secret, &token(&key));
        }
    });
    let begun = std::time::Instant::now();
    let reconnects = async |source: &str| bridge.metric("brokercast_source_reconnects_total", &[source]).await;
    for round in 1..=2 {
        rabbit.ctl(&["change_password", "turning", &format!("round{round}")]);
        replace(&password, &format!("round{round}\n"));
        // A lost connection needs the new password.
        let before = reconnects("passwords").await;
        let listed = rabbit.ctl(&["-q", "list_connections", "pid", "user", "--no-table-headers"]);
        for line in listed.lines().filter(|line| line.contains("turning")) {
            rabbit.ctl(&["close_connection", line.split('\t').next().unwrap(), "rotated"]);
        }
        eventually("another connection", async || (reconnects("passwords").await > before).then_some(())).await;
    }
    // Longer than the first token lives.
    tokio::time::sleep(Duration::from_secs(LIFE + 2).saturating_sub(begun.elapsed())).await;
    rotating.abort();
    done.store(true, Ordering::Relaxed);
    publishing.await.unwrap();
    let count = count.load(Ordering::Relaxed);
    for client in &mut clients {
        for n in 0..count {
            let event = client.event().await;
            assert!(!event.is_control(), "{event:?} at {n}");
            assert_eq!(numbers(&[event]), [n]);
        }
    }
    // That of a token that was told after the first one, with a few seconds for whatever was under way.
    let expiry = bridge.metric("brokercast_source_credentials_expiry_timestamp_seconds", &["\"tokens\"", "credential=\"token\""]).await;
    let first = (now() - begun.elapsed().as_secs()) as f64 + LIFE as f64;
    assert!(expiry > first && expiry <= (now() + LIFE) as f64, "{expiry} where the first expired at {first}");
    // Told on the living connection, a token costs none.
    assert_eq!(reconnects("tokens").await, 0.0, "{}", bridge.log());
    assert!(count > 200, "{count}");
}
