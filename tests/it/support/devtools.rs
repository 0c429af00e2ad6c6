//! A page in a real browser, controlled over the DevTools protocol.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::listener::{Socket, receive_any, send};
use super::process::Browser;
use super::{PATIENCE, until};

/// A browser with one page.
pub(crate) struct Page {
    socket: Socket,
    calls: u64,
    _browser: Browser,
    _folder: TempDir,
}

impl Page {
    /// Opens an empty page, once no other test has a browser. That may take longer than a device is online without a heartbeat,
    /// or a short token is valid: a test opens its page first, then begins whatever ends by itself.
    pub(crate) async fn open() -> Page {
        let folder = tempfile::tempdir().unwrap();
        let browser = Browser::open(folder.path(), "about:blank").await;
        let address = debugger(folder.path()).await;
        let (socket, _) = tokio_tungstenite::connect_async(address).await.unwrap();
        Page {
            socket,
            calls: 0,
            _browser: browser,
            _folder: folder,
        }
    }

    pub(crate) async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let answer = ask(&mut self.socket, self.calls, method, params).await;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Sets the cookie with a token, and opens a URL.
    pub(crate) async fn go(&mut self, url: &str, token: &str) {
        let cookie = json!({"name": "tidings_token", "value": token, "url": url, "httpOnly": true});
        self.call("Network.setCookie", cookie).await;
        self.visit(url).await;
    }

    /// Opens a URL with the existing cookies.
    pub(crate) async fn visit(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url })).await;
    }

    /// Sets the width of the window, and whether the colour scheme is dark.
    pub(crate) async fn look(&mut self, width: u32, dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media).await;
        let size =
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        self.call("Emulation.setScrollbarsHidden", json!({"hidden": true}))
            .await;
    }

    /// Emulates a small phone with a touch screen.
    pub(crate) async fn phone(&mut self) {
        self.look(360, false).await;
        let size = json!({"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        self.call(
            "Emulation.setTouchEmulationEnabled",
            json!({"enabled": true}),
        )
        .await;
    }

    /// Emulates print on A4 paper, at 96 dots per inch.
    pub(crate) async fn paper(&mut self) {
        self.look(794, false).await;
        self.call("Emulation.setEmulatedMedia", json!({"media": "print"}))
            .await;
    }

    /// Saves the page as a PDF file.
    pub(crate) async fn pdf(&mut self, path: &Path) {
        let answer = self.call("Page.printToPDF", json!({})).await;
        keep(path, &answer["data"]);
    }

    /// Saves a screenshot of the page as a PNG file.
    pub(crate) async fn screenshot(&mut self, path: &Path) {
        let params = json!({"format": "png", "captureBeyondViewport": true});
        let answer = self.call("Page.captureScreenshot", params).await;
        keep(path, &answer["data"]);
    }

    /// Returns the value of a JavaScript expression.
    pub(crate) async fn evaluate(&mut self, script: &str) -> Value {
        let answer = self.try_evaluate(script).await;
        assert!(
            answer.get("exceptionDetails").is_none(),
            "{script}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    /// Evaluates a JavaScript expression that may fail, for example because the page is navigating.
    async fn try_evaluate(&mut self, script: &str) -> Value {
        let params = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
        self.calls += 1;
        let answer = ask(&mut self.socket, self.calls, "Runtime.evaluate", params).await;
        match answer.get("error") {
            Some(error) => json!({ "exceptionDetails": error }),
            None => answer["result"].clone(),
        }
    }

    /// Waits until a JavaScript expression is true.
    pub(crate) async fn until(&mut self, script: &str) {
        self.until_within(script, PATIENCE.as_secs()).await;
    }

    /// Waits up to `secs` seconds until a JavaScript expression is true. Failures are ignored, because much fails until
    /// the document has loaded.
    pub(crate) async fn until_within(&mut self, script: &str, secs: u64) {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(secs);
        while self.try_evaluate(script).await["result"]["value"] != true {
            if tokio::time::Instant::now() > deadline {
                let text = self.evaluate("document.body.innerText").await;
                panic!("never came true: {script}\n{text}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

/// Decodes base64 from the browser, and saves it to a file.
fn keep(path: &Path, data: &Value) {
    let bytes =
        base64::prelude::Engine::decode(&base64::prelude::BASE64_STANDARD, data.as_str().unwrap());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes.unwrap()).unwrap();
}

async fn ask(socket: &mut Socket, id: u64, method: &str, params: Value) -> Value {
    let message = json!({"id": id, "method": method, "params": params});
    send(socket, &message.to_string()).await;
    loop {
        let answer = receive_any(socket).await.unwrap();
        if answer["id"] == id {
            return answer;
        }
    }
}

/// Returns the URL of the page's debugger.
async fn debugger(folder: &Path) -> String {
    let file = folder.join("profile/DevToolsActivePort");
    let mut found = None;
    until("the browser listens", async || {
        let Ok(text) = std::fs::read_to_string(&file) else {
            return false;
        };
        let port = text.lines().next().unwrap_or_default();
        let pages = reqwest::get(format!("http://127.0.0.1:{port}/json/list")).await;
        let Ok(pages) = pages else { return false };
        let pages: Vec<Value> = pages.json().await.unwrap_or_default();
        let page = pages.iter().find(|page| page["type"] == "page");
        found = page.and_then(|page| page["webSocketDebuggerUrl"].as_str().map(str::to_owned));
        found.is_some()
    })
    .await;
    found.unwrap()
}
