//! Somebody in front of a page.

use serde_json::json;

use crate::browser::Window;

pub struct User {
    pub window: Window,
    pub id: u32,
    pub name: String,
}

impl User {
    #[track_caller]
    pub fn register(window: Window, name: &str) -> User {
        window.click("#to-register");
        window.fill("#who", name);
        window.fill("#password", "secret");
        window.press_enter();
        window.until("!document.getElementById('app').hidden");
        let id = window.look("Number(document.querySelector('.my-id').textContent.match(/\\d+/)[0])");
        User { window, id: id.as_u64().expect("an id") as u32, name: name.to_owned() }
    }

    /// The same account in another window.
    pub fn elsewhere(&self, window: Window) -> User {
        User { window, id: self.id, name: self.name.clone() }
    }

    /// The same account in a second tab of the same browser.
    pub fn in_another_tab(&self) -> User {
        self.elsewhere(self.window.another())
    }

    pub fn try_to_log_in(&self, password: &str) {
        self.window.click("#to-login");
        self.window.fill("#who", &self.id.to_string());
        self.window.fill("#password", password);
        self.window.press_enter();
    }

    #[track_caller]
    pub fn log_in(&self) {
        self.try_to_log_in("secret");
        self.window.until("!document.getElementById('app').hidden");
    }

    #[track_caller]
    pub fn log_out(&self) {
        self.dialog("#leave", &[]);
        self.window.until("document.getElementById('app').hidden");
    }

    /// Opens a dialog, fills its fields and waits until it is done.
    #[track_caller]
    pub fn dialog(&self, button: &str, fields: &[&str]) {
        self.window.click(button);
        for (number, text) in fields.iter().enumerate() {
            self.window.fill(&format!("dialog label:nth-of-type({}) input", number + 1), text);
        }
        self.window.press_enter();
        self.window.until("!document.getElementById('dialog').open");
    }

    #[track_caller]
    pub fn add_friend(&self, friend: &User) {
        self.dialog("#add-friend", &[&friend.id.to_string()]);
        let title = format!("document.getElementById('title').textContent === {}", json!(friend.name));
        self.window.until(&title);
    }

    #[track_caller]
    pub fn open(&self, other: &User) {
        self.window.click(&format!("[data-key=u{}]", other.id));
    }

    #[track_caller]
    pub fn say(&self, text: &str) {
        self.window.fill("#box", text);
        self.window.press_enter();
    }

    /// The texts of the conversation that is open.
    #[track_caller]
    pub fn texts(&self) -> Vec<String> {
        let texts = self.window.look("[...document.querySelectorAll('.text')].map(({ textContent }) => textContent)");
        serde_json::from_value(texts).expect("texts")
    }

    /// Waits until the last message is this one.
    #[track_caller]
    pub fn sees(&self, text: &str) {
        self.window.until(&format!("[...document.querySelectorAll('.text')].at(-1)?.textContent === {}", json!(text)));
    }

    /// Waits until the last message is this one, of this user, and has come so far.
    #[track_caller]
    pub fn last_is(&self, text: &str, state: &str) {
        self.sees(text);
        let last = "document.getElementById('log').lastElementChild?.dataset.state";
        self.window.until(&format!("{last} === {}", json!(state)));
    }
}
