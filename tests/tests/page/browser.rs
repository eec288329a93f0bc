//! A headless Chromium, driven through chromedriver's WebDriver protocol.
//!
//! Knows nothing of leaktrace. Invariant: every wait has a limit, and browser and driver end with the value.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest time for one command of the protocol.
const COMMAND: Duration = Duration::from_secs(120);

/// Keys that have no character, as WebDriver names them.
pub mod key {
    pub const ENTER: char = '\u{e007}';
    pub const ESCAPE: char = '\u{e00c}';
    pub const END: char = '\u{e010}';
    pub const HOME: char = '\u{e011}';
    pub const RIGHT: char = '\u{e014}';
    pub const DOWN: char = '\u{e015}';
    pub const UP: char = '\u{e013}';
}

/// Whether a browser is here.
pub fn is_installed() -> bool {
    ["/usr/bin/chromium", "/usr/bin/chromedriver"]
        .iter()
        .all(|file| Path::new(file).exists())
}

/// A browser with one window.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    /// What was asked for so far: the driver tells each log entry once.
    requests: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    /// Starts one with a window of so many pixels.
    ///
    /// # Errors
    /// When driver or browser do not start.
    pub fn start(width: u32, height: u32) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        // A group of its own: the browser's processes are ended with the driver's.
        let mut driver = Command::new("/usr/bin/chromedriver")
            .arg("--port=0")
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start chromedriver")?;
        let port = announced_port(&mut driver);
        let mut browser = Self {
            driver,
            port: 0,
            session: String::new(),
            requests: Vec::new(),
            _profile: profile,
        };
        browser.port = port?;
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            format!("--user-data-dir={}", browser._profile.path().display()),
            format!("--window-size={width},{height}"),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            // An alert is a mistake of the page: whatever is asked next fails.
            "unhandledPromptBehavior": "dismiss and notify",
            "goog:chromeOptions": {"args": arguments, "binary": "/usr/bin/chromium"},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let session = browser.command("POST", "/session", &wanted)?;
        browser.session = session["sessionId"].as_str().context("no session")?.to_owned();
        Ok(browser)
    }

    /// One command; its `value`.
    fn command(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(COMMAND))?;
        stream.set_write_timeout(Some(COMMAND))?;
        let body = if method == "POST" {
            body.to_string()
        } else {
            String::new()
        };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            ensure!(reader.read_line(&mut line)? > 0, "chromedriver closed the connection");
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(number) = line.strip_prefix("content-length:") {
                length = number.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer)?;
        let mut answer: Value = serde_json::from_slice(&answer)?;
        let value = answer["value"].take();
        if let Some(error) = value.get("error").and_then(Value::as_str) {
            bail!(
                "{method} {path}: {error}: {}",
                value["message"].as_str().unwrap_or_default()
            );
        }
        Ok(value)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        self.command(method, &format!("/session/{}{path}", self.session), body)
    }

    /// Opens an address, from an empty page: another hash alone would load nothing.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn open(&self, url: &str) -> Result<()> {
        self.ask("POST", "/url", &json!({"url": "about:blank"}))?;
        self.ask("POST", "/url", &json!({"url": url}))?;
        Ok(())
    }

    /// What a script returns.
    ///
    /// # Errors
    /// When it throws.
    pub fn run(&self, script: &str) -> Result<Value> {
        self.ask("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// What an expression is, as text.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when it is no text.
    pub fn text(&self, expression: &str) -> Result<String> {
        let value = self.run(&format!("return {expression}"))?;
        value
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("`{expression}` is {value}, no text"))
    }

    /// What an expression is, as a number.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when it is no number.
    pub fn number(&self, expression: &str) -> Result<f64> {
        let value = self.run(&format!("return {expression}"))?;
        value
            .as_f64()
            .with_context(|| format!("`{expression}` is {value}, no number"))
    }

    /// Waits until an expression is true; how long that took.
    ///
    /// # Errors
    /// When it is not within `limit`.
    pub fn wait(&self, expression: &str, limit: Duration) -> Result<Duration> {
        let begin = Instant::now();
        while self.run(&format!("return Boolean({expression})"))? != Value::Bool(true) {
            if begin.elapsed() > limit {
                let seen = self.text("document.body.innerText.slice(0, 600)").unwrap_or_default();
                bail!("`{expression}` did not come true within {limit:?}; the page says:\n{seen}");
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        Ok(begin.elapsed())
    }

    /// Presses keys one after the other.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn press(&self, keys: impl IntoIterator<Item = char>) -> Result<()> {
        let actions: Vec<Value> = keys
            .into_iter()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()})))
            .collect();
        let body = json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]});
        self.ask("POST", "/actions", &body)?;
        Ok(())
    }

    /// Clicks in the middle of the first element that a selector names.
    ///
    /// # Errors
    /// When there is none.
    pub fn click(&self, selector: &str) -> Result<()> {
        let found = self.ask("POST", "/element", &json!({"using": "css selector", "value": selector}))?;
        let element = found
            .as_object()
            .and_then(|object| object.values().next())
            .and_then(Value::as_str)
            .context("no element")?;
        self.ask("POST", &format!("/element/{element}/click"), &json!({}))?;
        Ok(())
    }

    /// Makes the page so many pixels wide and high.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let parameters = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        let body = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": parameters});
        self.ask("POST", "/goog/cdp/execute", &body)?;
        Ok(())
    }

    /// Has the system prefer `dark` or `light`.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn prefer(&self, scheme: &str) -> Result<()> {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        let body = json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}});
        self.ask("POST", "/goog/cdp/execute", &body)?;
        Ok(())
    }

    /// Errors on the console since the last call.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn console_errors(&self) -> Result<Vec<String>> {
        let entries = self.ask("POST", "/se/log", &json!({"type": "browser"}))?;
        let entries = entries.as_array().cloned().unwrap_or_default();
        Ok(entries
            .iter()
            .filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING")
            .map(|entry| entry["message"].to_string())
            .collect())
    }

    /// Every address that a page asked for, from the start on.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn requests(&mut self) -> Result<&[String]> {
        let entries = self.ask("POST", "/se/log", &json!({"type": "performance"}))?;
        for entry in entries.as_array().into_iter().flatten() {
            let event: Value = serde_json::from_str(entry["message"].as_str().unwrap_or("{}"))?;
            let event = &event["message"];
            if event["method"] == "Network.requestWillBeSent"
                && let Some(url) = event["params"]["request"]["url"].as_str()
                // The browser's own first page; a page from elsewhere cannot ask for these.
                && !url.starts_with("chrome:")
            {
                self.requests.push(url.to_owned());
            }
        }
        Ok(&self.requests)
    }
}

/// The port that the driver says it listens on.
fn announced_port(driver: &mut Child) -> Result<u16> {
    let output = driver.stdout.take().context("chromedriver has no output")?;
    let mut reader = BufReader::new(output);
    let mut said = String::new();
    for _ in 0..50 {
        let before = said.len();
        if reader.read_line(&mut said)? == 0 {
            break;
        }
        let line = &said[before..];
        if let Some((_, rest)) = line.split_once("successfully on port ") {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            // Whatever it says later must not fill the pipe.
            std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
            return digits.parse().context("chromedriver names no port");
        }
    }
    bail!("chromedriver did not start: {said}")
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // The driver then ends the browser in good order; what is left is killed below.
            let _ = self.ask("DELETE", "", &Value::Null);
        }
        if let Ok(pid) = i32::try_from(self.driver.id()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.driver.wait();
    }
}
