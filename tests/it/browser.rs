//! Chromium: the dashboard, and pages of the test's own with a plain EventSource.

use serde_json::{Value, json};

use crate::support::chromium::Chromium;
use crate::support::proxy::Proxy;
use crate::support::token::{jwt, mint};
use crate::support::{Bridge, Nats, eventually};

/// A page that notes all that its EventSource tells.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>test</title><script src="page.js"></script>"#;
const SCRIPT: &str = r#"
window.seen = [];
window.errors = 0;
window.start = (url, options) => {
  window.source = new EventSource(url, options);
  const note = (e) => window.seen.push({ type: e.type, id: e.lastEventId, data: e.data });
  for (const type of ["message", "brokercast.gap", "brokercast.closing"]) source.addEventListener(type, note);
  source.onerror = () => { window.errors += 1; };
};
window.numbers = () => window.seen.filter((e) => e.type === "message").map((e) => JSON.parse(e.data).data.n);
"#;

fn with_page(extra: &str) -> crate::support::bridge::Builder {
    let config = format!(
        "auth: {{ anonymous: {{ subscribe: [\">\"], publish: [\">\"] }} }}\nsources: {{ inbox: {{ http: {{ subjects: [\"demo.>\"] }} }} }}\n{extra}\n"
    );
    pages(Bridge::builder(&config))
}

/// Serves the page at `/dashboards/test.html`.
pub(crate) fn pages(builder: crate::support::bridge::Builder) -> crate::support::bridge::Builder {
    let pages = builder.folder().join("pages");
    std::fs::create_dir(&pages).unwrap();
    std::fs::write(pages.join("test.html"), PAGE).unwrap();
    std::fs::write(pages.join("page.js"), SCRIPT).unwrap();
    let folder = pages.display().to_string();
    builder.env("BROKERCAST__SERVER__DASHBOARDS", folder).env("BROKERCAST__SERVER__RETRY", "1s")
}

#[tokio::test]
async fn dashboard_shows_events_in_a_wide_and_a_narrow_window() {
    let bridge = Bridge::bare().start().await;
    let browser = Chromium::start().await;
    browser.open(&bridge.url("/")).await;
    let state = "return document.querySelector('#state').dataset.state";
    if browser.run(state).await != json!("open") {
        browser.run("document.querySelector('#connect').click()").await;
    }
    browser.until("the stream to be open", &format!("{state} === 'open'")).await;
    bridge.publish("demo.hello", "{\"hello\":\"marker-42\"}").await;
    browser.until("the event in the page", "return document.querySelector('#events').textContent.includes('marker-42')").await;
    assert_eq!(browser.run("return document.querySelector('#events').textContent.includes('demo.hello')").await, json!(true));
    browser.until("the ticker in the rates", "return document.querySelector('#rates').textContent.includes('clock.tick')").await;
    browser.resize(400, 800).await;
    let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert!(browser.run(overflow).await.as_i64().unwrap() <= 1, "the narrow page scrolls sideways");
    // Markup in a payload stays text.
    bridge.publish("demo.xss", "\"<img src=x onerror='window.owned=1'>\"").await;
    browser.until("the markup as text", "return document.querySelector('#events').textContent.includes('<img src=x')").await;
    assert_eq!(browser.run("return window.owned === undefined").await, json!(true));
    // What turns the order of characters is shown as what it is, and a row that is opened holds what came.
    bridge.publish("demo.%E2%80%AEgnp", "\"a\u{202e}gnp.exe\"").await;
    let row = "const row = [...document.querySelectorAll('#events details')].find((d) => d.textContent.includes('gnp.exe'));";
    browser.until("its row", &format!("{row} return row")).await;
    let line = browser.run(&format!("{row} row.open = true; return row.querySelector('summary').textContent")).await;
    let line = line.as_str().unwrap();
    assert!(line.contains("demo.\\u202egnp") && line.contains("a\\u202egnp.exe"), "{line}");
    browser.until("what came", &format!("{row} return row.querySelector('pre')?.textContent === 'a\\u202egnp.exe'")).await;
    let console = browser.console().await;
    assert!(!console.iter().any(|l| l.starts_with("SEVERE")), "{console:?}");
}

#[tokio::test]
async fn dashboard_takes_a_token_and_shows_refusals() {
    let browser = Chromium::start().await;
    takes_a_token(&browser, "").await;
    // Under the name that the server looks for.
    takes_a_token(&browser, "  carriers: { cookie: \"it's&own\" }\n").await;
    let closed = "auth: { carriers: { cookie: false } }";
    let bridge = Bridge::start(closed).await;
    browser.open(&bridge.url("/")).await;
    browser.run("document.querySelector('#token').value = 'a.b.c'; document.querySelector('#connect').click()").await;
    browser.until("why not", "return document.querySelector('#refusal').textContent.includes('auth.carriers.cookie')").await;
}

async fn takes_a_token(browser: &Chromium, carriers: &str) {
    let config = format!("auth:\n{}{carriers}sources: {{ inbox: {{ http: {{ subjects: [\"demo.>\"] }} }} }}\n", jwt());
    let bridge = Bridge::start(&config).await;
    browser.open(&bridge.url("/")).await;
    browser.run("document.querySelector('#connect').click()").await;
    browser
        .until("the refusal to be shown", "const r = document.querySelector('#refusal'); return !r.hidden && r.textContent.length > 5")
        .await;
    let token = mint(json!({"subjects": ["demo.>"], "publish": ["demo.>"]}));
    let connect = format!(
        "const t = document.querySelector('#token'); t.value = '{token}'; t.dispatchEvent(new Event('input', {{bubbles: true}}));\
         t.dispatchEvent(new Event('change', {{bubbles: true}})); document.querySelector('#connect').click()"
    );
    browser.run(&connect).await;
    browser.until("the stream to be open", "return document.querySelector('#state').dataset.state === 'open'").await;
    bridge.http.post(bridge.url("/publish/demo.a")).bearer_auth(&token).body("\"marker-43\"").send().await.unwrap();
    browser.until("the event in the page", "return document.querySelector('#events').textContent.includes('marker-43')").await;
    assert!(!browser.run("return location.href").await.as_str().unwrap().contains(&token));
}

#[tokio::test]
async fn event_source_survives_cuts_and_a_restart_and_misses_nothing_unsaid() {
    let mut bridge = with_page("").start().await;
    let port: u16 = bridge.address().rsplit(':').next().unwrap().parse().unwrap();
    let proxy = Proxy::start(port);
    let browser = Chromium::start().await;
    browser.open(&format!("http://127.0.0.1:{}/dashboards/test.html", proxy.port())).await;
    browser.run("start('/events?subject=demo.>')").await;
    browser.until("the stream to be open", "return source.readyState === 1").await;
    let mut n = 0;
    for bytes in [u64::MAX, 700, 1333, 50] {
        proxy.cut_after(bytes);
        bridge.publish_numbers("demo.a", n..n + 30).await;
        n += 30;
        browser.until("all numbers", &format!("return numbers().length >= {n}")).await;
    }
    assert_eq!(browser.run("return numbers()").await, json!((0..n).collect::<Vec<_>>()));
    assert_eq!(browser.run("return seen.filter((e) => e.type !== 'message').length").await, json!(0));
    assert!(browser.run("return errors").await.as_u64().unwrap() >= 3);

    // A bridge without a broker's log has lost its window with the restart, and says so.
    bridge.kill();
    browser.until("the loss to be noticed", "return source.readyState === 0").await;
    bridge.restart().await;
    browser.until("the stream to be open again", "return source.readyState === 1").await;
    bridge.publish_numbers("demo.a", n..n + 5).await;
    browser.until("the new numbers", &format!("return numbers().length >= {}", n + 5)).await;
    let tail = browser.run(&format!("return seen.slice({n})")).await;
    assert_eq!(tail[0]["type"], "brokercast.gap");
    let told: Value = serde_json::from_str(tail[0]["data"].as_str().unwrap()).unwrap();
    assert_eq!((told["source"].as_str(), told["reason"].as_str()), (Some("inbox"), Some("restart")));
    assert_eq!(tail.as_array().unwrap().len(), 6, "{tail}");
    assert_eq!(browser.run("return numbers()").await, json!((0..n + 5).collect::<Vec<_>>()));
}

#[tokio::test]
async fn event_source_resumes_exactly_over_restarts_from_the_brokers_log() {
    let nats = Nats::start().await;
    let builder = with_page("");
    let path = builder.folder().join("log.yaml");
    let source =
        format!("log: {{ nats: {{ servers: [\"{}\"], subjects: [\"log.>\"], jetstream: {{ stream: LOG, create: true }} }} }}", nats.url());
    std::fs::write(&path, format!("sources: {{ {source} }}\n")).unwrap();
    let mut bridge = builder.file(path).start().await;
    let browser = Chromium::start().await;
    browser.open(&bridge.url("/dashboards/test.html")).await;
    browser.run("start('/events?subject=log.>')").await;
    browser.until("the stream to be open", "return source.readyState === 1").await;
    let context = nats.jetstream().await;
    let publish = async |numbers: std::ops::Range<u64>| {
        for n in numbers {
            context.publish("log.a", format!("{{\"n\":{n}}}").into()).await.unwrap().await.unwrap();
        }
    };
    publish(0..20).await;
    browser.until("the first numbers", "return numbers().length >= 20").await;
    for round in 1..3_u64 {
        // Once killed, once ended in good order; what is written meanwhile waits in the log.
        if round == 1 {
            bridge.kill()
        } else {
            bridge.terminate().await;
        };
        publish(20 * round..20 * round + 10).await;
        bridge.restart().await;
        publish(20 * round + 10..20 * round + 20).await;
        browser.until("the next numbers", &format!("return numbers().length >= {}", 20 * round + 20)).await;
    }
    assert_eq!(browser.run("return numbers()").await, json!((0..60).collect::<Vec<_>>()));
    assert_eq!(browser.run("return seen.filter((e) => e.type === 'brokercast.gap').length").await, json!(0));
    assert_eq!(browser.run("return seen.filter((e) => e.type === 'brokercast.closing').length").await, json!(1));
}

#[tokio::test]
async fn refusal_by_the_cap_does_not_kill_event_source() {
    let bridge = with_page("subscribers: { max: 1 }").start().await;
    let held = bridge.subscribe("").await;
    let browser = Chromium::start().await;
    browser.open(&bridge.url("/dashboards/test.html")).await;
    browser.run("start('/events')").await;
    browser.until("two refusals", "return seen.filter((e) => e.type === 'brokercast.closing').length >= 2").await;
    assert_ne!(browser.run("return source.readyState").await, json!(2));
    let told: Value = serde_json::from_str(browser.run("return seen[0].data").await.as_str().unwrap()).unwrap();
    assert_eq!(told["reason"], "busy");
    drop(held);
    eventually("the browser's slot", async || (bridge.metric("brokercast_subscribers", &[]).await == 1.0).then_some(())).await;
    browser.until("the stream to be open", "return source.readyState === 1").await;
    bridge.publish_numbers("demo.a", [7]).await;
    browser.until("the event", "return numbers().includes(7)").await;
}

#[tokio::test]
async fn page_of_another_origin_reads_with_cookies_only_where_it_is_listed() {
    let server = with_page("").start().await;
    let origin = server.url("");
    let config = format!(
        "auth:\n{}server: {{ cors: {{ origins: [\"{origin}\"], credentials: true }} }}\nsources: {{ inbox: {{ http: {{ subjects: [\"demo.>\"] }} }} }}\n",
        jwt()
    );
    let (listed, unlisted) = (Bridge::start(&config).await, Bridge::start(&config.replace(&origin, "https://elsewhere.example.com")).await);
    let browser = Chromium::start().await;
    browser.open(&server.url("/dashboards/test.html")).await;
    // Cookies know no ports: what one bridge's page sets, the others are sent.
    let token = mint(json!({"subjects": ["demo.>"], "publish": ["demo.>"]}));
    browser.run(&format!("document.cookie = 'brokercast={token}; path=/; SameSite=Strict'")).await;
    browser.run(&format!("start('{}', {{ withCredentials: true }})", listed.url("/events"))).await;
    browser.until("the stream to be open", "return source.readyState === 1").await;
    listed.http.post(listed.url("/publish/demo.a")).bearer_auth(&token).body("{\"n\":1}").send().await.unwrap();
    browser.until("the event", "return numbers().includes(1)").await;
    browser.run(&format!("source.close(); start('{}', {{ withCredentials: true }})", unlisted.url("/events"))).await;
    browser.until("the stream to be closed for good", "return source.readyState === 2").await;
    // A publish by a page of another origin, with the cookie, goes nowhere.
    let refused = browser
        .run(&format!(
            "return fetch('{}', {{ method: 'POST', mode: 'no-cors', credentials: 'include', body: '{{\"n\":66}}' }}).then(() => 'sent', () => 'failed')",
            unlisted.url("/publish/demo.a")
        ))
        .await;
    assert!(refused == json!("sent") || refused == json!("failed"), "{refused}");
    let mut all = crate::support::Sse::open(unlisted.events("since=all").bearer_auth(&token)).await;
    all.stays_quiet(std::time::Duration::from_millis(300)).await;
}
