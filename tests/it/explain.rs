//! Why somebody sees a subject or does not: `check --explain`, and the admin listener's `/explain`.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::bridge::{command, run};
use crate::support::certs::Certs;
use crate::support::port::Port;
use crate::support::token::{jwt, mint, now};
use crate::support::{Bridge, eventually};

fn config(rest: &str) -> String {
    format!(
        "auth:\n{}  grants:\n    subscribe:\n      - 'tenant.{{tenant}}.>'\n      - 'user.{{sub}}.>'\n\
         sources: {{ inbox: {{ http: {{ subjects: ['user.>', 'raw.*'] }} }} }}\n{rest}",
        jwt()
    )
}

const ROUTES: &str =
    "routes:\n  - { match: { subject: 'user.*.secret' }, drop: true }\n  - { match: { subject: 'raw.*' }, subject: 'user.{1}.raw' }\n";

/// Runs the program and reads what it prints.
fn explain(arguments: &[&str]) -> (Option<i32>, Value, String) {
    let output = run(&[&["check", "--explain"], arguments].concat());
    let all = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), all)
}

#[tokio::test]
async fn the_configuration_and_the_bridge_that_runs_say_the_same() {
    let bridge = Bridge::start(&config(ROUTES)).await;
    let file = bridge.folder().join("config.yaml").display().to_string();
    let admin = format!("http://{}", bridge.admin_address());
    let ada = mint(json!({"sub": "ada"}));
    let expired = mint(json!({"sub": "ada", "exp": now() - 100}));
    for (token, subject, code, why) in [
        (&ada, "user.ada.x", 0, "auth.grants.subscribe[1]"),
        (&ada, "user.ada.raw", 0, "auth.grants.subscribe[1]"),
        (&ada, "user.ada.secret", 1, "routes[0]"),
        (&ada, "user.eve.x", 1, "no rule grants it"),
        (&ada, "raw.ada", 1, "no rule grants it"),
        (&expired, "user.ada.x", 1, "it has expired"),
    ] {
        let (exit, told, all) = explain(&["--config", &file, "--token", token, "--subject", subject]);
        assert_eq!((exit, told["seen"].as_bool()), (Some(code), Some(code == 0)), "{subject}: {all}");
        assert!(told["why"].as_str().unwrap().contains(why), "{all}");
        assert!(!all.contains(token.as_str()), "{all}");
        let (exit, asked, all) = explain(&["--admin", &admin, "--token", token, "--subject", subject]);
        assert_eq!(exit, Some(code), "{all}");
        for part in ["seen", "grants", "token"] {
            let plain = |told: &Value| told[part].to_string().replace(&file, "");
            assert_eq!(plain(&asked), plain(&told), "{part}");
        }
    }
    let (_, told, _) = explain(&["--config", &file, "--token", &ada, "--subject", "user.ada.secret"]);
    let route = &told["sources"][0]["routes"][0];
    assert_eq!((&route["rule"], &route["file"], &route["line"]), (&json!("routes[0]"), &json!(file), &json!(9)));
    // From standard input, and for somebody without a token.
    let mut process = command();
    process.args(["check", "--config", &file, "--explain", "--token", "-", "--subject", "user.ada.x"]);
    let mut process = process.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(format!("{ada}\n").as_bytes()).unwrap();
    assert_eq!(process.wait_with_output().unwrap().status.code(), Some(0));
    assert_eq!(explain(&["--config", &file, "--subject", "user.ada.x"]).0, Some(1));
    // Nobody to ask.
    let nobody = format!("http://{}", Port::take().address());
    assert_eq!(explain(&["--admin", &nobody, "--subject", "a"]).0, Some(69));
    assert_eq!(explain(&["--admin", &bridge.url(""), "--subject", "a"]).0, Some(69), "that is another listener");
    assert_eq!(explain(&["--config", &file, "--subject", "a.>"]).0, Some(2));
    assert_eq!(explain(&["--config", "/nowhere.yaml", "--subject", "a"]).0, Some(78));
}

#[tokio::test]
async fn a_bridge_behind_a_token_and_client_certificates_is_asked() {
    let certs = Certs::new();
    let path = |name: &str| certs.path(name).display().to_string();
    std::fs::write(path("token"), "opensesame\n").unwrap();
    std::fs::write(path("wrong"), "openbarley\n").unwrap();
    let [certificate, key] = ["client.crt", "client.key"].map(|name| std::fs::read_to_string(path(name)).unwrap());
    std::fs::write(path("both.pem"), certificate + &key).unwrap();
    let tls = format!("certificate: {}, private_key: {}, client_ca: {}", path("server.crt"), path("server.key"), path("ca.crt"));
    let admin = format!("admin: {{ token_file: {}, tls: {{ {tls} }} }}\n", path("token"));
    let mut bridge = Bridge::builder(&config(&admin)).build();
    bridge.launch();
    let (admin, ada) = (format!("https://{}", bridge.admin_address()), mint(json!({"sub": "ada"})));
    let [token, wrong, ca, both, key] = ["token", "wrong", "ca.crt", "both.pem", "client.key"].map(path);
    let ask = |subject: &str, more: &[(&str, &str)]| {
        let more = more.iter().flat_map(|(option, file)| [*option, *file]);
        let all: Vec<_> = ["--admin", &admin, "--token", &ada, "--subject", subject].into_iter().chain(more).collect();
        explain(&all)
    };
    let (by_token, by_ca, by_certificate) = (("--admin-token-file", &*token), ("--admin-ca", &*ca), ("--admin-certificate", &*both));
    let all = [by_token, by_ca, by_certificate];
    eventually("the bridge to answer", async || (ask("user.ada.x", &all).0 == Some(0)).then_some(())).await;
    let (exit, told, said) = ask("user.eve.x", &all);
    assert_eq!((exit, told["seen"].as_bool()), (Some(1), Some(false)), "{said}");
    for (options, part) in [
        (&[by_ca, by_certificate][..], "token"),
        (&[("--admin-token-file", &*wrong), by_ca, by_certificate], "token"),
        (&[by_token, by_certificate], "certificate"),
        (&[by_token, by_ca], "client certificate"),
        (&[by_token, ("--admin-ca", &*key), by_certificate], "no"),
        (&[("--admin-token-file", "/nowhere"), by_ca, by_certificate], "/nowhere"),
        (&[by_token, ("--admin-ca", "/nowhere"), by_certificate], "/nowhere"),
        (&[by_token, by_ca, ("--admin-certificate", &*ca)], "ca.crt"),
    ] {
        let (exit, _, said) = ask("user.ada.x", options);
        assert!(exit == Some(69) && said.contains(part), "{options:?}: {exit:?} {said}");
        assert!(!said.contains("opensesame") && !said.contains("openbarley") && !said.contains(&ada), "{options:?}: {said}");
    }
}

#[tokio::test]
async fn a_bridge_explains_what_counts_now() {
    let bridge = Bridge::start(&config("")).await;
    let post = async |body: String| {
        let answer = bridge.http.post(bridge.admin_url("/explain")).body(body).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str::<Value>(&answer.text().await.unwrap()).unwrap_or_default())
    };
    let ask = async |token: &str| post(json!({"token": token, "subject": "user.ada.secret"}).to_string()).await.1;
    let ada = mint(json!({"sub": "ada", "jti": "1"}));
    let told = ask(&ada).await;
    assert_eq!((&told["seen"], &told["grants"][2]["line"]), (&json!(true), &json!(6)), "{told:#}");
    for body in ["", "{}", "[]", r#"{"token":"x"}"#, r#"{"subject":"a b"}"#, r#"{"subject":"a","other":1}"#, r#"{"subject":5}"#] {
        assert_eq!(post(body.to_owned()).await.0, 400, "{body}");
    }
    assert_eq!(post(format!(r#"{{"subject":"{}"}}"#, "a".repeat(70_000))).await.0, 413);
    assert_eq!(bridge.http.get(bridge.admin_url("/explain")).send().await.unwrap().status(), 405);
    let page = bridge.http.post(bridge.admin_url("/explain")).header("origin", "http://127.0.0.1").body(r#"{"subject":"a"}"#);
    assert_eq!(page.send().await.unwrap().status(), 403);
    // Another line, and another route: the watcher applies it.
    bridge.configure(&format!("\n\n{}", config(ROUTES)));
    let told = eventually("the bridge to have reloaded", async || Some(ask(&ada).await).filter(|told| told["seen"] == false)).await;
    assert_eq!((&told["grants"][2]["line"], &told["sources"][0]["routes"][0]["line"]), (&json!(8), &json!(11)), "{told:#}");
    // Revoked.
    let revoke = bridge.http.post(bridge.admin_url("/revocations")).body(r#"{"token_id":"1","until":"1h"}"#);
    assert_eq!(revoke.send().await.unwrap().status(), 201);
    let told = ask(&ada).await;
    let last = told["token"]["checks"].as_array().unwrap().last().unwrap();
    assert_eq!((&told["seen"], &last["check"], &last["passed"]), (&json!(false), &json!("revocation"), &json!(false)), "{told:#}");
    assert!(!bridge.log().contains(&ada) && !bridge.log().contains("token refused"), "{}", bridge.log());
}
