//! A headless Chromium, driven over WebDriver.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::port::Port;
use super::process::Process;
use super::wait::{eventually, within};

const INSTALL: &str = "apt-get install chromium chromium-driver";

/// A browser with one tab.
#[derive(Debug)]
pub struct Chromium {
    port: Port,
    session: String,
    http: reqwest::Client,
    _driver: Process,
    _folder: TempDir,
}

impl Chromium {
    pub async fn start() -> Self {
        let (port, folder) = (Port::take(), TempDir::with_prefix("brokercast-chromium-").unwrap());
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={}", port.number())).arg("--allowed-ips=127.0.0.1").current_dir(folder.path());
        let driver = Process::spawn("chromedriver", &folder.path().join("log"), INSTALL, &mut command);
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(90)).build().unwrap();
        let base = format!("http://{}", port.address());
        eventually("chromedriver to answer", async || http.get(format!("{base}/status")).send().await.ok()).await;
        let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            // Ends the browser with its driver.
            "--remote-debugging-pipe",
            &profile,
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let answer: Value = http.post(format!("{base}/session")).json(&wanted).send().await.unwrap().json().await.unwrap();
        let session = answer["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("no browser ({INSTALL}): {answer}")).to_owned();
        Self { port, session, http, _driver: driver, _folder: folder }
    }

    async fn call(&self, command: &str, body: Value) -> Value {
        let url = format!("http://{}/session/{}/{command}", self.port.address(), self.session);
        let answer: Value = self.http.post(url).json(&body).send().await.unwrap().json().await.unwrap();
        assert!(answer["value"].get("error").is_none(), "{command}: {answer}");
        answer["value"].clone()
    }

    /// Opens a page.
    pub async fn open(&self, url: &str) {
        self.call("url", json!({ "url": url })).await;
    }

    /// The tab that all is done in.
    pub async fn tab(&self) -> Value {
        let url = format!("http://{}/session/{}/window", self.port.address(), self.session);
        let answer: Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
        answer["value"].clone()
    }

    /// Opens another tab, in which all is done from now on.
    pub async fn open_tab(&self) -> Value {
        let handle = self.call("window/new", json!({ "type": "tab" })).await["handle"].clone();
        self.switch(&handle).await;
        handle
    }

    /// From now on all is done in this tab.
    pub async fn switch(&self, tab: &Value) {
        self.call("window", json!({ "handle": tab })).await;
    }

    /// Runs the body of a function in the page.
    pub async fn run(&self, script: &str) -> Value {
        self.call("execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// Sets the size of the window.
    pub async fn resize(&self, width: u32, height: u32) {
        self.call("window/rect", json!({ "width": width, "height": height })).await;
    }

    /// Runs a script until it gives something true.
    pub async fn until(&self, what: &str, script: &str) -> Value {
        let truth = |v: &Value| !(v.is_null() || *v == json!(false) || *v == json!("") || *v == json!(0));
        within(Duration::from_secs(45), what, async || {
            let value = self.run(script).await;
            truth(&value).then_some(value)
        })
        .await
    }

    /// What the page wrote to its console, the browser's own complaints included.
    pub async fn console(&self) -> Vec<String> {
        let log = self.call("se/log", json!({ "type": "browser" })).await;
        log.as_array().unwrap().iter().map(|e| format!("{}: {}", e["level"].as_str().unwrap(), e["message"].as_str().unwrap())).collect()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // Closed in good order, so that nothing is left in /tmp.
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port.number())) else { return };
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok();
        let request = format!("DELETE /session/{} HTTP/1.0\r\nHost: {}\r\n\r\n", self.session, self.port.address());
        if stream.write_all(request.as_bytes()).is_ok() {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).ok();
        }
    }
}
