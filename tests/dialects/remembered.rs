//! A login tells nothing of most dialects, so what the client of an account speaks is remembered with it.

use serde_json::json;

use crate::client::Strict;
use crate::mixed::{expect_chat, online};
use crate::profiles::{B, CANON, Profile};
use crate::steps::{kept, logged_out, name};
use crate::support::{Account, Client, Config, World};

tests! { everywhere:
    a_client_that_only_logs_in_is_written_to_in_its_dialect,
    a_client_of_canon_is_known_by_its_first_request_that_tells,
    a_client_with_seq_speaks_canon_whatever_is_remembered,
    a_client_with_seq_is_never_taken_for_another,
}

/// Ann, a client with `seq`; her group; and the account of a client of b, who is in it and has told what it speaks.
struct Known {
    world: World,
    ann: Client,
    group: u32,
    account: Account,
}

impl Known {
    fn new(config: &'static Config) -> Known {
        let world = config.shared();
        let mut ann = world.online("ann");
        let group = ann.create_group(&name("k"));
        let mut client = online(&world, 0, &B, "b");
        client.join_group(group);
        client.group_chat(group, "here I am");
        expect_chat(&mut ann, &client.account, "groupid", group, "here I am");
        let account = client.account.clone();
        let known = Known { world, ann, group, account };
        known.lose(client);
        known
    }

    /// A client of this account on a new connection, on the other node if there is one, that has only logged in.
    fn login(&self, profile: &Profile) -> Strict {
        let mut client = Strict::of(profile, self.world.server_on(1).address, &self.account);
        client.login();
        client
    }

    /// The client goes without a word.
    fn lose(&self, client: Strict) {
        client.quit();
        logged_out(&self.world, self.account.id);
    }

    /// Ann writes to the account and to its group while nobody uses the account.
    fn leave_messages(&mut self) {
        self.ann.chat(self.account.id, "hello");
        self.ann.group_chat(self.group, "hello all");
        kept(&self.world, self.account.id, 2);
    }

    fn finds_messages(&self, client: &mut Strict) {
        client.hears(self.ann.me(), "hello");
        client.hears_in_group(self.group, self.ann.me(), "hello all");
    }

    fn finds_messages_in_canon(&self, client: &mut Client) {
        expect_chat(client, self.ann.me(), "toid", self.account.id, "hello");
        expect_chat(client, self.ann.me(), "groupid", self.group, "hello all");
    }

    fn is_written_to(&mut self, client: &mut Strict) {
        self.ann.chat(self.account.id, "hello again");
        client.hears(self.ann.me(), "hello again");
        self.ann.group_chat(self.group, "hello again, all");
        client.hears_in_group(self.group, self.ann.me(), "hello again, all");
    }

    fn is_written_to_in_canon(&mut self, client: &mut Client) {
        self.ann.chat(self.account.id, "hello again");
        expect_chat(client, self.ann.me(), "toid", self.account.id, "hello again");
    }
}

fn a_client_that_only_logs_in_is_written_to_in_its_dialect(config: &'static Config) {
    let mut known = Known::new(config);
    let mut client = known.login(&B);
    known.is_written_to(&mut client);
    known.lose(client);
    known.leave_messages();
    let mut client = known.login(&B);
    known.finds_messages(&mut client);
    known.lose(client);
}

fn a_client_of_canon_is_known_by_its_first_request_that_tells(config: &'static Config) {
    let mut known = Known::new(config);
    let mut client = known.login(&CANON);
    let ann = known.ann.id();
    client.chat(ann, "I speak canon");
    expect_chat(&mut known.ann, &client.account, "toid", ann, "I speak canon");
    known.is_written_to(&mut client);
    known.lose(client);
    // That is remembered, too.
    known.leave_messages();
    let mut client = known.login(&CANON);
    known.finds_messages(&mut client);
    known.is_written_to(&mut client);
    known.lose(client);
}

fn a_client_with_seq_speaks_canon_whatever_is_remembered(config: &'static Config) {
    let mut known = Known::new(config);
    known.leave_messages();
    let mut client = known.world.login_on(1, &known.account);
    known.finds_messages_in_canon(&mut client);
    known.is_written_to_in_canon(&mut client);
    client.logout();
    // The other client of this account is still known.
    let mut client = known.login(&B);
    known.is_written_to(&mut client);
    known.lose(client);
}

fn a_client_with_seq_is_never_taken_for_another(config: &'static Config) {
    let mut known = Known::new(config);
    let mut client = known.world.client();
    known.account = client.register(&name("s"), "secret");
    client.login(&known.account);
    let group_chat_of_b = json!({"msgid": 9, "id": known.account.id, "groupid": known.group, "msg": "hello"});
    // In canon this joins the group, whatever else stands there.
    assert_eq!(client.must(group_chat_of_b.clone())["msgid"], 200);
    assert_eq!(client.refused(group_chat_of_b.clone()), 18);
    known.is_written_to_in_canon(&mut client);
    // So it is without `seq`, once the client has used it.
    client.post(&group_chat_of_b);
    let refused = client.push();
    assert_eq!((&refused["msgid"], &refused["request"], &refused["errno"]), (&201.into(), &9.into(), &18.into()));
    client.logout();
    logged_out(&known.world, known.account.id);
    known.leave_messages();
    let mut client = known.world.login(&known.account);
    known.finds_messages_in_canon(&mut client);
}
