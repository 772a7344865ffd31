//! The page in a browser, which chats with other pages and with the terminal client.

mod browser;
#[path = "../support/mod.rs"]
mod support;
mod user;

use std::fs;
use std::path::Path;

use browser::Browser;
use serde_json::json;
use support::{ChatClient, Config, World};
use user::User;

static ONE: Config = Config::new(2);

fn address(world: &World) -> String {
    format!("http://{}/", world.server().address)
}

/// A new user, who has registered in a window.
fn registered(world: &World, tag: &str) -> User {
    User::register(Browser::shared().window(&address(world)), &world.name(tag))
}

/// Its policy would forbid it anyway; this says so before a browser does.
#[test]
fn the_page_is_one_small_file_and_takes_nothing_from_elsewhere() {
    const PAGE: &str = include_str!("../../src/web/page.html");
    assert!(PAGE.len() < 40_000, "{} bytes", PAGE.len());
    for forbidden in
        ["://", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", " style=", " onclick="]
    {
        assert!(!PAGE.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn two_register_become_friends_and_chat() {
    let world = ONE.shared();
    let (zhang, li) = (registered(&world, "zhang"), registered(&world, "li"));
    zhang.add_friend(&li);
    zhang.window.until("document.getElementById('facts').textContent.includes('online')");
    zhang.say("hello");
    zhang.last_is("hello", "delivered");
    // She has not added him: he is shown all the same, and counted.
    li.window.until(&format!(
        "document.querySelector('[data-key=u{}] .badge')?.textContent.startsWith('1') === true",
        zhang.id
    ));
    li.window.until("document.title === '(1) Chat'");
    li.open(&zhang);
    li.window.until("document.title === 'Chat'");
    li.window.shows("not among your friends");
    li.sees("hello");
    for number in 0..20 {
        li.say(&format!("answer {number}"));
    }
    zhang.sees("answer 19");
    li.last_is("answer 19", "delivered");
    let answers: Vec<String> = (0..20).map(|number| format!("answer {number}")).collect();
    assert_eq!(zhang.texts()[1..], answers);
}

#[test]
fn a_page_and_a_terminal_client_chat() {
    let world = ONE.shared();
    let page = registered(&world, "page");
    let account = world.account("terminal");
    let mut terminal = ChatClient::login(world.server().address.port(), account.id);
    terminal.line(&format!("chat:{}:from the terminal", page.id));
    terminal.wait_for(&format!("delivered to {}\n", page.id));
    page.window.click(&format!("[data-key=u{}]", account.id));
    page.sees("from the terminal");
    page.say("from the page: <b>你好</b>");
    terminal.wait_for(&format!(" [{}]", page.id));
    terminal.wait_for(" said: from the page: <b>你好</b>\n");
    page.last_is("from the page: <b>你好</b>", "delivered");
    terminal.line("loginout");
    terminal.wait_for("logged out\n");
    page.say("are you there?");
    page.last_is("are you there?", "stored");
}

#[test]
fn a_group_is_made_joined_and_talked_in() {
    let world = ONE.shared();
    let (zhang, li) = (registered(&world, "zhang"), registered(&world, "li"));
    let name = world.name("readers");
    zhang.dialog("#new-group", &[&name, "of muduo"]);
    zhang.window.until(&format!("document.getElementById('title').textContent === {}", json!(name)));
    let group = zhang.window.look("Number(document.querySelector('#facts button').textContent.match(/\\d+/)[0])");
    zhang.say("nobody hears this");
    zhang.last_is("nobody hears this", "delivered");
    zhang.window.shows("nobody else is here yet");
    li.dialog("#join-group", &[&group.to_string()]);
    li.window.shows("2 members");
    li.say("hello all");
    li.last_is("hello all", "delivered");
    li.window.shows("delivered to 1");
    zhang.sees("hello all");
    assert_eq!(zhang.window.look("document.querySelector('.from bdi').textContent"), li.name);
    li.window.look("[...document.querySelectorAll('#facts button')].at(-1).click()");
    li.window.shows("made the group");
    zhang.window.click("#join-group");
    zhang.window.fill("dialog input", "4711");
    zhang.window.press_enter();
    zhang.window.shows("There is no such group.");
}

#[test]
fn what_comes_while_one_is_away_comes_at_the_next_login() {
    let world = ONE.shared();
    let (zhang, li) = (registered(&world, "zhang"), registered(&world, "li"));
    zhang.add_friend(&li);
    li.log_out();
    for number in 0..3 {
        zhang.say(&format!("number {number}"));
    }
    zhang.last_is("number 2", "stored");
    zhang.window.shows("stored until they log in");
    zhang.window.until("document.getElementById('facts').textContent.includes('offline')");
    li.log_in();
    li.open(&zhang);
    li.sees("number 2");
    assert_eq!(li.texts(), ["number 0", "number 1", "number 2"]);
    zhang.say("and now?");
    zhang.last_is("and now?", "delivered");
    // A reload takes the connection, but not what was shown.
    li.window.load();
    li.log_in();
    li.open(&zhang);
    assert_eq!(li.texts(), ["number 0", "number 1", "number 2", "and now?"]);
}

#[test]
fn what_is_typed_while_the_server_is_away_is_kept_and_sent() {
    let world = ONE.own(&[]);
    let (zhang, li) = (registered(&world, "zhang"), registered(&world, "li"));
    zhang.add_friend(&li);
    zhang.say("before");
    zhang.last_is("before", "delivered");
    world.stop("TERM");
    zhang.window.shows("Trying again");
    zhang.say("meanwhile");
    zhang.say("and this");
    zhang.last_is("and this", "waiting");
    world.start_again();
    zhang.window.until("document.getElementById('status').hidden");
    zhang.window.until(
        "[...document.querySelectorAll('.mine')].every(({ dataset }) => /stored|delivered/.test(dataset.state))",
    );
    li.window.until("document.getElementById('status').hidden");
    li.open(&zhang);
    li.sees("and this");
    assert_eq!(li.texts(), ["before", "meanwhile", "and this"]);
}

#[test]
fn what_may_have_arrived_is_sent_again_only_if_the_user_says_so() {
    let world = ONE.own(&[]);
    let (zhang, li) = (registered(&world, "zhang"), registered(&world, "li"));
    zhang.add_friend(&li);
    zhang.say("before");
    zhang.last_is("before", "delivered");
    world.server().signal("STOP");
    zhang.say("in doubt");
    zhang.last_is("in doubt", "sending");
    world.kill();
    zhang.last_is("in doubt", "doubt");
    world.start_again();
    li.window.until("document.getElementById('status').hidden");
    zhang.window.until("document.getElementById('status').hidden");
    zhang.say("after");
    zhang.last_is("after", "delivered");
    zhang.window.click("[data-state=doubt] button");
    zhang.last_is("in doubt", "delivered");
    li.open(&zhang);
    li.sees("in doubt");
    assert_eq!(li.texts(), ["before", "after", "in doubt"]);
}

#[test]
fn of_two_tabs_the_newer_one_has_the_account() {
    let world = ONE.shared();
    let (zhang, li) = (registered(&world, "zhang"), registered(&world, "li"));
    let newer = zhang.in_another_tab();
    newer.log_in();
    zhang.window.shows("This account is in use in another window");
    li.dialog("#add-friend", &[&zhang.id.to_string()]);
    li.say("to whom?");
    li.last_is("to whom?", "delivered");
    newer.open(&li);
    newer.sees("to whom?");
    zhang.window.click("#retry");
    newer.window.shows("This account is in use in another window");
    zhang.window.until("document.getElementById('status').hidden");
    li.say("and now?");
    li.last_is("and now?", "delivered");
    zhang.open(&li);
    zhang.sees("and now?");
    // One that does not know of the other one is told, and leaves it alone.
    let elsewhere = zhang.elsewhere(Browser::shared().window(&address(&world)));
    elsewhere.try_to_log_in("secret");
    elsewhere.window.shows("This account is in use elsewhere");
    li.say("still there?");
    zhang.sees("still there?");
}

#[test]
fn what_others_write_is_text_and_stays_in_its_place() {
    let world = ONE.shared();
    let (zhang, li) = (registered(&world, "zhang"), registered(&world, "li"));
    zhang.add_friend(&li);
    li.window.click("#add-friend");
    li.window.fill("dialog input", &zhang.id.to_string());
    li.window.press_enter();
    li.window.until("document.getElementById('title').textContent !== ''");
    let markup = "<img src=x onerror=alert(1)><script>alert(2)</script><b>bold</b> &amp; javascript:alert(3)";
    let turned = "abc \u{202e}fdp.exe \u{2066}\u{2067} שלום \u{200f}";
    let covering = format!("a{}", "\u{301}".repeat(500));
    let long = "0123456789abcdef".repeat(60 * 64);
    for text in [markup, turned, &covering, &long] {
        zhang.say(text);
        li.sees(text);
        zhang.last_is(text, "delivered");
    }
    for user in [&zhang, &li] {
        assert_eq!(user.window.look("document.querySelectorAll('#log img, #log script, #log b').length"), 0);
        let fits = "[...document.querySelectorAll('#log, #log *, #list *')].every(node => \
                    node.getBoundingClientRect().right <= innerWidth) && document.body.scrollWidth <= innerWidth";
        assert_eq!(user.window.look(fits), true);
        user.window.show(390, "light");
        assert_eq!(user.window.look(fits), true);
    }
    // What is beside the text stands where it stood.
    let name = li.window.look("document.getElementById('title').textContent");
    assert_eq!(name, zhang.name);
    zhang.window.fill("#box", &"\"".repeat(40_000));
    zhang.window.shows("Too long by");
}

#[test]
fn what_is_refused_is_told_in_words() {
    let world = ONE.shared();
    let zhang = registered(&world, "zhang");
    let other = zhang.elsewhere(Browser::shared().window(&address(&world)));
    other.window.click("#to-register");
    other.window.fill("#who", &zhang.name);
    other.window.fill("#password", "secret");
    other.window.press_enter();
    other.window.shows("this name is taken!");
    zhang.log_out();
    other.try_to_log_in("guess");
    other.window.shows("The id or the password is wrong.");
    other.try_to_log_in("secret");
    other.window.until("!document.getElementById('app').hidden");
    other.window.click("#add-friend");
    other.window.fill("dialog input", "4711");
    other.window.press_enter();
    other.window.shows("There is no such user.");
}

#[test]
fn it_speaks_the_language_of_the_browser() {
    let world = ONE.shared();
    let window = Browser::shared().window_in(&address(&world), "zh-CN");
    assert_eq!(window.look("document.documentElement.lang"), "zh-CN");
    window.shows("注册");
    let zhang = User::register(window, &world.name("张三"));
    zhang.window.shows(&format!("你的 id 是 {}", zhang.id));
    let li = registered(&world, "li");
    zhang.dialog("#add-friend", &[&li.id.to_string()]);
    zhang.window.shows("在线");
    zhang.say("你好");
    zhang.window.shows("已送达");
}

/// Pictures in `target/pictures`, for people to look at.
#[test]
fn it_can_be_looked_at() {
    let world = ONE.own(&[]);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pictures");
    fs::create_dir_all(&folder).unwrap();
    let door = Browser::shared().window(&address(&world));
    let register = |name| User::register(Browser::shared().window(&address(&world)), name);
    let (zhang, li) = (register("Zhang San"), register("李四"));
    let picture = |user: &User, name: &str| {
        for (width, scheme) in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")] {
            user.window.show(width, scheme);
            user.window.picture(&folder.join(format!("{name}-{width}-{scheme}.png")));
        }
        user.window.show(1280, "light");
    };
    picture(&zhang.elsewhere(door), "door");
    picture(&zhang, "empty");
    zhang.add_friend(&li);
    li.dialog("#add-friend", &[&zhang.id.to_string()]);
    zhang.say(
        "Shall we meet at noon? The weather is fine, and there is a place by the river that I have wanted to show you.",
    );
    li.say("好的，中午见！");
    zhang.sees("好的，中午见！");
    zhang.dialog("#new-group", &["Readers", "of muduo"]);
    zhang.say("Welcome, all who read this.");
    li.dialog("#join-group", &["1"]);
    li.say("Hello!");
    zhang.sees("Hello!");
    li.log_out();
    zhang.open(&li);
    zhang.say("See you there");
    zhang.last_is("See you there", "stored");
    picture(&zhang, "chat");
}
