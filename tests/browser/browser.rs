//! A headless Chromium, driven over its debugging pipe: JSON objects, each with a NUL behind it.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{DEADLINE, Process, eventually};

pub struct Browser {
    /// Ends with this, since its pipe does.
    _process: Process,
    commands: Mutex<(ChildStdin, u64)>,
    incoming: Arc<Incoming>,
    user_agent: String,
    _profile: TempDir,
}

#[derive(Default)]
struct Incoming {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    replies: HashMap<u64, Value>,
    /// What pages have complained of, by session: exceptions, and what their policy forbids.
    complaints: HashMap<String, Vec<String>>,
    ended: bool,
}

impl Browser {
    /// The one of all tests that run at the moment; each of them has windows of its own.
    pub fn shared() -> Arc<Browser> {
        static SHARED: Mutex<Weak<Browser>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let browser = Arc::new(Browser::start());
            *shared = Arc::downgrade(&browser);
            browser
        })
    }

    fn start() -> Browser {
        let profile = tempfile::tempdir().expect("a temporary directory");
        // The pipe is descriptors 3 and 4. Root may not use the sandbox, and containers have little /dev/shm.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "chromium", "--headless"]);
        command.args(["--remote-debugging-pipe", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]);
        command.args(["--no-first-run", "--disable-background-networking", "--disable-component-update", "--lang=en"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        // Its settings, caches and temporary files belong to the test, too.
        command.env("HOME", profile.path()).env("TMPDIR", profile.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("sh can be started");
        let commands = Mutex::new((child.stdin.take().expect("stdin is piped"), 0));
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let incoming = Arc::new(Incoming::default());
        let reader = Arc::clone(&incoming);
        thread::spawn(move || reader.read(output));
        let mut browser =
            Browser { _process: Process(child), commands, incoming, user_agent: String::new(), _profile: profile };
        let version = browser.call(None, "Browser.getVersion", &json!({}));
        browser.user_agent = version["userAgent"].as_str().expect("a name").to_owned();
        browser
    }

    /// Sends a command and waits for its result.
    #[track_caller]
    fn call(&self, session: Option<&str>, method: &str, parameters: &Value) -> Value {
        let mut command = json!({"method": method, "params": parameters});
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        let id = {
            let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
            let (pipe, last) = &mut *commands;
            *last += 1;
            command["id"] = (*last).into();
            write!(pipe, "{command}\0").expect("chromium can be started, and lives");
            *last
        };
        let state = self.incoming.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |state: &mut State| !state.replies.contains_key(&id) && !state.ended;
        let waited = self.incoming.changed.wait_timeout_while(state, DEADLINE, waits);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let reply = state.replies.remove(&id).unwrap_or_else(|| panic!("chromium does not answer {method}"));
        assert!(reply["error"].is_null(), "{method}: {reply}");
        reply["result"].clone()
    }

    /// A window of a new user of the browser: nothing is shared with the others.
    pub fn window(self: &Arc<Browser>, address: &str) -> Window {
        self.window_in(address, "en")
    }

    /// The same, of a user who reads this language.
    pub fn window_in(self: &Arc<Browser>, address: &str, language: &str) -> Window {
        let context = self.call(None, "Target.createBrowserContext", &json!({}))["browserContextId"].clone();
        self.open(address, language, context)
    }

    fn open(self: &Arc<Browser>, address: &str, language: &str, context: Value) -> Window {
        let target = json!({"url": "about:blank", "browserContextId": context, "newWindow": true});
        let target = self.call(None, "Target.createTarget", &target)["targetId"].clone();
        let attached = self.call(None, "Target.attachToTarget", &json!({"targetId": target, "flatten": true}));
        let session = attached["sessionId"].as_str().expect("a session").to_owned();
        let window = Window { browser: Arc::clone(self), session, target, context, address: address.to_owned() };
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            window.call(domain, &json!({}));
        }
        // Without a focus that is said to be there, one window at a time would have it.
        window.call("Emulation.setFocusEmulationEnabled", &json!({"enabled": true}));
        let speaks = json!({"userAgent": self.user_agent, "acceptLanguage": language});
        window.call("Emulation.setUserAgentOverride", &speaks);
        window.show(1280, "light");
        window.load();
        window
    }
}

impl Incoming {
    fn read(&self, mut output: impl BufRead) {
        let mut object = Vec::new();
        while matches!(output.read_until(0, &mut object), Ok(1..)) {
            let Ok(value) = serde_json::from_slice::<Value>(object.strip_suffix(b"\0").unwrap_or(&object)) else {
                break;
            };
            object.clear();
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(id) = value["id"].as_u64() {
                state.replies.insert(id, value);
            } else if let Some(complaint) = complaint(&value) {
                let session = value["sessionId"].as_str().unwrap_or_default().to_owned();
                state.complaints.entry(session).or_default().push(complaint);
            }
            self.changed.notify_all();
        }
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.changed.notify_all();
    }
}

/// What a page should never give rise to. A connection that fails is none: the page tells it in its own words.
fn complaint(event: &Value) -> Option<String> {
    let parameters = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(parameters["exceptionDetails"].to_string()),
        "Log.entryAdded" if parameters["entry"]["source"] == "security" => Some(parameters["entry"].to_string()),
        "Page.javascriptDialogOpening" => Some(parameters["message"].to_string()),
        _ => None,
    }
}

/// A page in a window of its own.
pub struct Window {
    browser: Arc<Browser>,
    session: String,
    target: Value,
    /// What belongs to one user of the browser.
    context: Value,
    address: String,
}

impl Drop for Window {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("a window shows:\n{}", self.look("document.body.innerText").as_str().unwrap_or_default());
        } else {
            let state = self.browser.incoming.state.lock().unwrap_or_else(PoisonError::into_inner);
            let complaints = state.complaints.get(&self.session).cloned().unwrap_or_default();
            drop(state);
            assert_eq!(complaints, [""; 0], "what the page should not have given rise to");
        }
        self.browser.call(None, "Target.closeTarget", &json!({"targetId": self.target}));
    }
}

impl Window {
    #[track_caller]
    fn call(&self, method: &str, parameters: &Value) -> Value {
        self.browser.call(Some(&self.session), method, parameters)
    }

    /// Another window of the same user.
    pub fn another(&self) -> Window {
        self.browser.open(&self.address, "en", self.context.clone())
    }

    /// Loads the page, or loads it again.
    pub fn load(&self) {
        self.call("Page.navigate", &json!({"url": self.address}));
        self.until("document.readyState === 'complete' && location.protocol === 'http:'");
    }

    /// What an expression of JavaScript comes to.
    #[track_caller]
    pub fn look(&self, expression: &str) -> Value {
        let evaluate = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", &evaluate);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn until(&self, expression: &str) {
        eventually(expression, || self.look(expression) == true);
    }

    /// Waits until what it shows contains `text`.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        self.until(&format!("document.body.innerText.includes({})", json!(text)));
    }

    #[track_caller]
    pub fn click(&self, selector: &str) {
        let button = format!("document.querySelector({})", json!(selector));
        self.until(&format!("!!{button}?.checkVisibility()"));
        self.look(&format!("{button}.click()"));
    }

    /// Types into a field, in place of what stands there.
    #[track_caller]
    pub fn fill(&self, selector: &str, text: &str) {
        let field = format!("document.querySelector({})", json!(selector));
        self.until(&format!("!!{field}?.checkVisibility()"));
        self.look(&format!("{field}.focus(), {field}.select()"));
        self.call("Input.insertText", &json!({"text": text}));
    }

    #[track_caller]
    pub fn press_enter(&self) {
        let key = |kind, text| json!({"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": text});
        self.call("Input.dispatchKeyEvent", &key("keyDown", "\r"));
        self.call("Input.dispatchKeyEvent", &key("keyUp", ""));
    }

    /// How wide it is, and whether it is light or dark.
    pub fn show(&self, width: u32, scheme: &str) {
        let metrics = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &metrics);
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call("Emulation.setEmulatedMedia", &json!({"features": [feature]}));
    }

    pub fn picture(&self, file: &Path) {
        // What moves has come to rest.
        self.until("document.getAnimations().every(({ playState }) => playState === 'finished')");
        let picture = self.call("Page.captureScreenshot", &json!({}));
        fs::write(file, BASE64.decode(picture["data"].as_str().expect("a picture")).expect("base64")).unwrap();
    }
}
