//! What the clients of the family speak, each written down from what its own code does, and not from
//! `src/wire/dialect`, which these tests check.

pub use Place::*;

/// A request, a reply, or an element of a list in a reply. Chats are the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Login,
    Logout,
    Register,
    Chat,
    AddFriend,
    CreateGroup,
    JoinGroup,
    GroupChat,
    Update,
    LoginAck,
    RegisterAck,
    /// Every reply.
    Acks,
    Friend,
    Group,
    Member,
}

/// How the client frames what it sends, and what it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// NUL in both directions.
    Nul,
    /// Nothing: what one read returns is one object, and a NUL in it is no JSON.
    Bare,
    /// A new connection for each register and login, which nothing follows; then NUL.
    Connections,
    /// NUL behind requests; a length of four bytes before what it reads.
    LengthOfReplies,
    /// A length before everything.
    Lengths,
}

/// A reply that the original has not, for which the client waits.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    pub to: Place,
    pub number: i64,
    pub needs: &'static [&'static str],
}

/// One client. What it needs of a message, or calls by another name, stands here as a place, the original's key and
/// its own.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    pub name: &'static str,
    /// Its server is started with `--dialect`.
    pub is_given: bool,
    pub login: i64,
    pub login_ack: i64,
    pub logout: i64,
    pub register: i64,
    pub register_ack: i64,
    pub chat: i64,
    pub add_friend: i64,
    pub create_group: i64,
    pub join_group: i64,
    pub group_chat: i64,
    pub update: Option<i64>,
    pub acks: &'static [Ack],
    /// The numbers that it reads over.
    pub ignores: &'static [i64],
    pub msgid: &'static str,
    pub keys: &'static [(Place, &'static str, &'static str)],
    /// What it needs besides what every client does.
    pub needs: &'static [(Place, &'static str)],
    /// What its requests leave out, so that its reader cannot need it.
    pub omits: &'static [(Place, &'static str)],
    pub framing: Framing,
    /// The most that it reads at a time, in bytes.
    pub reader: usize,
    /// Its lists of groups and their members consist of objects.
    pub has_objects: bool,
    /// It reads the login ack's lists in `data`, where they consist of objects, and never looks at offline messages.
    pub has_data: bool,
    /// It says that it is the user 0.
    pub is_nobody: bool,
    /// Its chats bear an empty name.
    pub is_nameless: bool,
    /// Its group chats bear the group's name.
    pub names_groups: bool,
    /// It can only chat.
    pub only_chats: bool,
}

pub const CANON: Profile = Profile {
    name: "canon",
    is_given: false,
    login: 1,
    login_ack: 2,
    logout: 3,
    register: 4,
    register_ack: 5,
    chat: 6,
    add_friend: 7,
    create_group: 8,
    join_group: 9,
    group_chat: 10,
    update: None,
    acks: &[],
    ignores: &[],
    msgid: "msgid",
    keys: &[],
    needs: &[],
    omits: &[],
    framing: Framing::Nul,
    reader: 1024,
    has_objects: false,
    has_data: false,
    is_nobody: false,
    is_nameless: false,
    names_groups: false,
    only_chats: false,
};

pub const B: Profile = Profile {
    name: "b",
    logout: 10,
    register: 3,
    register_ack: 4,
    chat: 5,
    add_friend: 6,
    create_group: 7,
    join_group: 8,
    group_chat: 9,
    ..CANON
};

pub const B_OFFLINE_MSG: Profile =
    Profile { name: "b-offlineMsg", is_given: true, keys: &[(LoginAck, "offlinemsg", "offlineMsg")], ..B };

pub const B_USERID: Profile = Profile {
    name: "b-userid",
    is_given: true,
    keys: &[
        (CreateGroup, "id", "userid"),
        (JoinGroup, "id", "userid"),
        (GroupChat, "id", "userid"),
        (Group, "id", "groupid"),
        (Member, "id", "userid"),
    ],
    ..B
};

pub const B_SINGULAR: Profile = Profile {
    name: "b-singular",
    is_given: true,
    keys: &[
        (CreateGroup, "id", "userid"),
        (JoinGroup, "id", "userid"),
        (Chat, "toid", "to"),
        (LoginAck, "friends", "friend"),
        (LoginAck, "groups", "group"),
        (LoginAck, "offlinemsg", "offlinemessage"),
        (Group, "users", "user"),
    ],
    omits: &[(Chat, "time"), (GroupChat, "name"), (GroupChat, "time")],
    ..B
};

pub const B_OBJECTS: Profile = Profile {
    name: "b-objects",
    is_given: true,
    keys: &[(Chat, "toid", "friendid")],
    framing: Framing::Connections,
    has_objects: true,
    ..B
};

pub const C: Profile = Profile {
    name: "c",
    is_given: true,
    login_ack: 5,
    logout: 2,
    register: 3,
    register_ack: 4,
    ignores: &[2],
    ..CANON
};

pub const C_USERID: Profile = Profile {
    name: "c-userid",
    keys: &[(LoginAck, "errno", "error"), (LoginAck, "id", "userid"), (LoginAck, "name", "username")],
    needs: &[(RegisterAck, "error")],
    ..C
};

pub const D: Profile = Profile { name: "d", logout: 4, register: 3, register_ack: 5, ..CANON };

pub const E: Profile = Profile {
    name: "e",
    is_given: true,
    login_ack: 3,
    logout: 2,
    ignores: &[2],
    keys: &[
        (CreateGroup, "id", "userid"),
        (JoinGroup, "id", "userid"),
        (GroupChat, "id", "userid"),
        (Friend, "state", "status"),
        (Group, "users", "groupusers"),
        (Member, "state", "status"),
    ],
    ..CANON
};

pub const F: Profile = Profile {
    name: "f",
    create_group: 9,
    join_group: 10,
    group_chat: 11,
    acks: &[Ack { to: AddFriend, number: 8, needs: &["friendid", "flag"] }],
    ..CANON
};

pub const G: Profile = Profile {
    name: "g",
    logout: 5,
    register: 3,
    register_ack: 4,
    join_group: 10,
    group_chat: 12,
    acks: &[
        Ack { to: CreateGroup, number: 9, needs: &["errno", "groupid", "groupname"] },
        Ack { to: JoinGroup, number: 11, needs: &["errno", "uid", "groupid"] },
    ],
    keys: &[
        (Chat, "toid", "to"),
        (LoginAck, "offlinemsg", "offlineMsg"),
        (Group, "id", "gid"),
        (Group, "groupname", "gname"),
        (Group, "groupdesc", "gdesc"),
        (Group, "users", "gusers"),
        (Member, "id", "uid"),
        (Member, "name", "uname"),
    ],
    needs: &[(LoginAck, "state")],
    ..CANON
};

pub const CANON_999: Profile = Profile {
    name: "canon-999",
    login: 1000,
    login_ack: 1001,
    logout: 1002,
    register: 1003,
    register_ack: 1004,
    chat: 1005,
    add_friend: 1006,
    create_group: 1007,
    join_group: 1008,
    group_chat: 1009,
    ..CANON
};

pub const ZERO: Profile = Profile {
    name: "zero",
    login: 0,
    login_ack: 1,
    logout: 11,
    register: 2,
    register_ack: 3,
    chat: 7,
    add_friend: 4,
    create_group: 5,
    join_group: 6,
    group_chat: 8,
    update: Some(9),
    acks: &[Ack { to: Logout, number: 12, needs: &[] }, Ack { to: Update, number: 10, needs: &["id", "name"] }],
    keys: &[(Chat, "toid", "to"), (AddFriend, "friendid", "friend"), (Acks, "errno", "errid")],
    reader: 4096,
    is_nameless: true,
    names_groups: true,
    ..CANON
};

pub const FRAMED: Profile = Profile {
    name: "framed",
    is_given: true,
    logout: 15,
    register: 3,
    register_ack: 4,
    chat: 5,
    add_friend: 7,
    create_group: 9,
    join_group: 11,
    group_chat: 13,
    acks: &[
        Ack { to: Chat, number: 6, needs: &["errno"] },
        Ack { to: AddFriend, number: 8, needs: &["errno"] },
        Ack { to: CreateGroup, number: 10, needs: &["errno", "groupid"] },
        Ack { to: JoinGroup, number: 12, needs: &["errno"] },
        Ack { to: Logout, number: 16, needs: &["errno"] },
    ],
    keys: &[
        (Chat, "toid", "to"),
        (Chat, "name", "from"),
        (GroupChat, "name", "from"),
        (CreateGroup, "groupname", "name"),
        (CreateGroup, "groupdesc", "desc"),
        (JoinGroup, "id", "userid"),
        (Group, "groupname", "name"),
        (Group, "groupdesc", "desc"),
        (Group, "users", "members"),
    ],
    needs: &[(RegisterAck, "name")],
    framing: Framing::LengthOfReplies,
    reader: 1 << 20,
    ..CANON
};

pub const CANON_USERID: Profile = Profile {
    name: "canon-userid",
    keys: &[
        (Login, "id", "userid"),
        (Logout, "id", "userid"),
        (AddFriend, "id", "userid"),
        (CreateGroup, "id", "userid"),
        (JoinGroup, "id", "userid"),
        (Chat, "id", "fromid"),
        (GroupChat, "id", "fromid"),
        (LoginAck, "id", "userid"),
        (Friend, "id", "userid"),
        (Group, "id", "groupid"),
        (Group, "users", "groupusers"),
        (Member, "id", "userid"),
        (Member, "name", "username"),
        (RegisterAck, "id", "userid"),
    ],
    ..CANON
};

pub const CANON_TO: Profile = Profile {
    name: "canon-to",
    is_given: true,
    keys: &[(Chat, "toid", "to"), (LoginAck, "offlinemsg", "offlinemessage"), (Acks, "errmsg", "errormsg")],
    only_chats: true,
    ..CANON
};

pub const CANON_MSGID: Profile = Profile {
    name: "canon-msgId",
    msgid: "msgId",
    keys: &[(Chat, "toid", "to"), (AddFriend, "friendid", "friendId")],
    ..CANON
};

pub const CANON_DATA: Profile =
    Profile { name: "canon-data", is_given: true, framing: Framing::Bare, has_data: true, is_nobody: true, ..CANON };

/// Its numbers and keys are the original's; the first byte of its connection, a NUL, tells it.
pub const CANON_LENGTH: Profile = Profile { name: "canon-length", framing: Framing::Lengths, reader: 1 << 20, ..CANON };

pub const ALL: [Profile; 20] = [
    CANON,
    B,
    B_OFFLINE_MSG,
    B_USERID,
    B_SINGULAR,
    B_OBJECTS,
    C,
    C_USERID,
    D,
    E,
    F,
    G,
    CANON_999,
    ZERO,
    FRAMED,
    CANON_USERID,
    CANON_TO,
    CANON_MSGID,
    CANON_DATA,
    CANON_LENGTH,
];

impl Profile {
    pub fn number(&self, request: Place) -> i64 {
        match request {
            Login => self.login,
            Logout => self.logout,
            Register => self.register,
            Chat => self.chat,
            AddFriend => self.add_friend,
            CreateGroup => self.create_group,
            JoinGroup => self.join_group,
            GroupChat => self.group_chat,
            Update => self.update.expect("a client that sends it"),
            _ => panic!("{request:?} is no request"),
        }
    }

    pub fn ack(&self, request: Place) -> Option<&'static Ack> {
        self.acks.iter().find(|ack| ack.to == request)
    }

    /// What it calls a key of the original.
    pub fn key(&self, place: Place, canon: &'static str) -> &'static str {
        if canon == "msgid" {
            return self.msgid;
        }
        let is_ack = matches!(place, LoginAck | RegisterAck);
        let found = self.keys.iter().find(|(at, key, _)| (*at == place || is_ack && *at == Acks) && *key == canon);
        found.map_or(canon, |(.., theirs)| theirs)
    }

    /// The keys of the original that it replaces at a place, with its own.
    pub fn replaced(&self, place: Place) -> impl Iterator<Item = (&'static str, &'static str)> {
        let is_ack = matches!(place, LoginAck | RegisterAck | Acks);
        let keys = self.keys.iter().filter(move |(at, ..)| *at == place || is_ack && *at == Acks);
        keys.map(|(_, canon, theirs)| (*canon, *theirs)).chain((self.msgid != "msgid").then_some(("msgid", self.msgid)))
    }

    pub fn omits(&self, place: Place, canon: &str) -> bool {
        self.omits.iter().any(|(at, key)| *at == place && *key == canon)
    }
}
