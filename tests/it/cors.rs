//! Browsers of other origins: CORS, preflights, cookies.

use serde_json::json;

use crate::support::token::{jwt, mint};
use crate::support::{Bridge, Sse};

const LISTED: &str = "https://dash.example.com";

fn config() -> String {
    format!(
        "auth:\n{}  anonymous: {{ subscribe: [\"public.>\"], publish: [\"public.>\"] }}\nserver: {{ cors: {{ origins: [\"{LISTED}\"], credentials: true }} }}\n\
         sources: {{ inbox: {{ http: {{ subjects: [\"public.>\", \"private.>\"] }} }} }}\n",
        jwt()
    )
}

#[tokio::test]
async fn listed_origin_reads_answers_and_errors_and_others_do_not() {
    let bridge = Bridge::start(&config()).await;
    for query in ["", "subject=a..b", "subject=private.a"] {
        let answer = bridge.events(query).header("Origin", LISTED).send().await.unwrap();
        assert_eq!(answer.headers()["access-control-allow-origin"], LISTED, "{query}");
        assert_eq!(answer.headers()["access-control-allow-credentials"], "true");
        let vary = answer.headers().get_all("vary").iter().map(|v| v.to_str().unwrap().to_lowercase()).collect::<Vec<_>>().join(",");
        assert!(vary.contains("origin"), "{vary}");
    }
    for origin in
        ["https://evil.example.com", "null", "https://dash.example.com.evil.com", "http://dash.example.com", "https://dash.example.com:444"]
    {
        let answer = bridge.events("").header("Origin", origin).send().await.unwrap();
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{origin}");
    }
}

#[tokio::test]
async fn preflight_allows_what_a_client_needs() {
    let bridge = Bridge::start(&config()).await;
    let preflight = |path: &str, method: &str, origin: &str| {
        bridge
            .http
            .request(reqwest::Method::OPTIONS, bridge.url(path))
            .header("Origin", origin.to_owned())
            .header("Access-Control-Request-Method", method.to_owned())
            .header("Access-Control-Request-Headers", "authorization,baggage,last-event-id,sentry-trace,traceparent")
    };
    for (path, method) in [("/events", "GET"), ("/publish/public.a", "POST")] {
        let answer = preflight(path, method, LISTED).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        assert_eq!(answer.headers()["access-control-allow-origin"], LISTED);
        assert_eq!(answer.headers()["access-control-allow-credentials"], "true");
        let headers = answer.headers()["access-control-allow-headers"].to_str().unwrap().to_lowercase();
        for name in ["authorization", "last-event-id", "baggage", "sentry-trace", "traceparent", "tracestate"] {
            assert!(headers.split(", ").any(|allowed| allowed == name), "{name} in {headers}");
        }
        assert!(answer.headers()["access-control-allow-methods"].to_str().unwrap().contains(method));
        let foreign = preflight(path, method, "https://evil.example.com").send().await.unwrap();
        assert!(!foreign.headers().contains_key("access-control-allow-origin"), "{foreign:?}");
    }
}

#[tokio::test]
async fn publishing_from_another_origin_is_refused() {
    let bridge = Bridge::start(&config()).await;
    let post = || bridge.http.post(bridge.url("/publish/public.a")).body("1");
    assert_eq!(post().send().await.unwrap().status(), 202);
    assert_eq!(post().header("Origin", bridge.url("")).send().await.unwrap().status(), 202);
    assert_eq!(post().header("Origin", LISTED).send().await.unwrap().status(), 202);
    for origin in ["https://evil.example.com", "null", "http://127.0.0.1:1", "http://localhost"] {
        let refused = post().header("Origin", origin).send().await.unwrap();
        assert_eq!(refused.status(), 403, "{origin}");
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
    }
    let cookie = post().header("Cookie", "brokercast=x").header("Sec-Fetch-Site", "cross-site");
    assert_eq!(cookie.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn cookie_reads_but_never_publishes() {
    let bridge = Bridge::start(&config()).await;
    let token = mint(json!({"subjects": ["private.>"], "publish": ["private.>"]}));
    let cookie = format!("theme=dark; brokercast={token}; x=y");
    let mut sse = Sse::open(bridge.events("subject=private.%3E").header("Cookie", &cookie)).await;
    sse.id().await;
    let post = || bridge.http.post(bridge.url("/publish/private.a")).body("1");
    let refused = post().header("Cookie", &cookie).send().await.unwrap();
    assert!([401, 403].contains(&refused.status().as_u16()), "{refused:?}");
    assert_eq!(post().bearer_auth(&token).send().await.unwrap().status(), 202);
    assert_eq!(sse.event().await.payload(), json!(1));
    sse.stays_quiet(std::time::Duration::from_millis(200)).await;
}

#[tokio::test]
async fn public_url_says_what_the_same_origin_is_behind_a_proxy() {
    let bridge =
        Bridge::start(&format!("{}\n", config().replace("server: {", "server: { public_url: \"https://live.example.com\","))).await;
    let post = || bridge.http.post(bridge.url("/publish/public.a")).body("1");
    assert_eq!(post().header("Origin", "https://live.example.com").send().await.unwrap().status(), 202);
    assert_eq!(post().header("Origin", bridge.url("")).send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn what_a_trusted_proxy_says_of_scheme_and_name_counts_and_follows_a_reload() {
    let config = |server: &str| {
        format!(
            "reload: {{ watch: false }}\n{}",
            config().replace("server: {", &format!("server: {{ trusted_proxies: [127.0.0.1], {server}"))
        )
    };
    let bridge = Bridge::start(&config("")).await;
    let post = async |headers: &[(&str, &str)]| {
        let request = bridge.http.post(bridge.url("/publish/public.a")).body("1").header("Origin", "https://live.example.com");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.send().await.unwrap().status().as_u16()
    };
    let x = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "live.example.com")];
    let standard = [("Forwarded", "for=192.0.2.1;proto=https;host=live.example.com")];
    let host = [("X-Forwarded-Proto", "https"), ("Host", "live.example.com")];
    let statuses = async || [post(&x).await, post(&standard).await, post(&host).await, post(&x[..1]).await, post(&[]).await];
    assert_eq!(statuses().await, [202, 403, 421, 403, 403]);
    let reload = async |server: &str| {
        bridge.configure(&config(server));
        assert_eq!(bridge.http.post(bridge.admin_url("/reload")).send().await.unwrap().status(), 200);
    };
    reload("forwarded: forwarded,").await;
    assert_eq!(statuses().await, [403, 202, 421, 403, 403]);
    reload("hosts: [live.example.com],").await;
    assert_eq!(statuses().await, [202, 421, 202, 421, 421]);
}
