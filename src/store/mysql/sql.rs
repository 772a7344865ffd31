//! The statements, with the tables' names as they were found.

use super::migrate::Layout;
use super::text::Texts;
use crate::store::{NodeId, UserId};
use crate::wire::reply::LISTED_MEMBERS;

/// A user is online if one of our nodes has it, even where a C++ server's end has set everybody
/// offline, or if a C++ server says so.
const ONLINE: &str = "(node IS NOT NULL OR COALESCE(state = 'online', FALSE))";

/// How to add names to a table in which some stand twice, so that no index keeps them apart.
pub(super) struct Named {
    pub lock: String,
    pub find: String,
}

impl Named {
    fn new(table: &str, column: &str) -> Named {
        Named {
            lock: format!("SELECT id FROM {table} ORDER BY id LIMIT 1 FOR UPDATE"),
            find: format!("SELECT id FROM {table} WHERE {column} = ? LIMIT 1"),
        }
    }
}

/// Statements that do not change, and the names for those that do.
pub(super) struct Sql {
    user: String,
    offline_message: String,

    pub users: Named,
    pub groups_by_name: Named,

    pub account: String,
    pub friends: String,
    pub groups: String,
    pub listed: String,
    pub count_members: String,
    pub members: String,
    pub group_exists: String,
    pub page: String,
    // As far as a number.
    pub messages_of: String,
    pub friends_of: String,
    pub groups_of: String,
    pub members_of: String,

    pub register: String,
    pub registered: String,
    pub set_password: String,
    pub claim: String,
    /// For C++ servers, who see no claims.
    pub show: String,
    pub release: String,
    pub add_friend: String,
    pub create_group: String,
    pub created_group: String,
    pub add_creator: String,
    pub join_group: String,
    // What a quota undoes.
    pub remove_friend: String,
    pub remove_group: String,
    pub remove_member: String,
    /// Which messages of a range of keys stand there.
    pub stored: String,

    pub claims: String,
    pub nodes: String,
    pub claimed_by: String,
    pub robbed: String,
    pub free_all: String,
}

impl Sql {
    /// `mixed`: a claim is not shown at once.
    pub fn new(layout: &Layout, texts: &Texts, mixed: bool) -> Sql {
        let quoted = |name: &str| format!("`{}`", name.replace('`', "``"));
        let user = quoted(&layout.user);
        let friend = quoted(&layout.friend);
        let all_group = quoted(&layout.all_group);
        let group_user = quoted(&layout.group_user);
        let message = quoted(&layout.offline_message);
        let name = texts.columns("name");
        Sql {
            users: Named::new(&user, "name"),
            groups_by_name: Named::new(&all_group, "groupname"),

            account: format!("SELECT {name}, {} FROM {user} WHERE id = ?", texts.columns("password")),
            friends: format!(
                "SELECT u.id, {ONLINE}, {name} FROM {friend} AS f JOIN {user} AS u ON u.id = f.friendid
                 WHERE f.userid = ? ORDER BY f.friendid"
            ),
            groups: format!(
                "SELECT g.id, {}, {} FROM {group_user} AS m JOIN {all_group} AS g ON g.id = m.groupid
                 WHERE m.userid = ? ORDER BY m.groupid",
                texts.columns("groupname"),
                texts.columns("groupdesc"),
            ),
            listed: format!(
                "SELECT u.id, {ONLINE}, {name}, COALESCE(m.grouprole = 'creator', FALSE)
                 FROM {group_user} AS m JOIN {user} AS u ON u.id = m.userid
                 WHERE m.groupid = ? ORDER BY m.userid LIMIT {LISTED_MEMBERS}"
            ),
            count_members: format!("SELECT COUNT(*) FROM {group_user} WHERE groupid = ?"),
            members: format!("SELECT userid FROM {group_user} WHERE groupid = ? ORDER BY userid"),
            group_exists: format!("SELECT 1 FROM {all_group} WHERE id = ?"),
            page: format!(
                "SELECT id, {} FROM {message} WHERE userid = ? AND id > ? ORDER BY id LIMIT ?",
                texts.columns_if("once IS NULL", "message"),
            ),
            messages_of: count_some(&message, "userid"),
            friends_of: count_some(&friend, "userid"),
            groups_of: count_some(&group_user, "userid"),
            members_of: count_some(&group_user, "groupid"),

            register: format!("INSERT INTO {user} (name, password, state) VALUES (?, ?, 'offline')"),
            registered: format!("SELECT id FROM {user} WHERE name = ? AND BINARY password = BINARY ?"),
            set_password: format!("UPDATE {user} SET password = ? WHERE id = ?"),
            claim: format!(
                "UPDATE {user} SET state = '{}', node = ?, epoch = ? WHERE id = ?",
                if mixed { "offline" } else { "online" },
            ),
            show: format!("UPDATE {user} SET state = 'online' WHERE id = ?"),
            release: format!("UPDATE {user} SET state = 'offline', node = NULL, epoch = NULL WHERE id = ?"),
            add_friend: format!("INSERT INTO {friend} (userid, friendid) SELECT ?, id FROM {user} WHERE id = ?"),
            create_group: format!("INSERT INTO {all_group} (groupname, groupdesc) VALUES (?, ?)"),
            created_group: format!(
                "SELECT g.id FROM {all_group} AS g JOIN {group_user} AS m ON m.groupid = g.id
                 WHERE g.groupname = ? AND m.userid = ? AND m.grouprole = 'creator'"
            ),
            add_creator: format!("INSERT INTO {group_user} (groupid, userid, grouprole) VALUES (?, ?, 'creator')"),
            join_group: format!(
                "INSERT INTO {group_user} (groupid, userid, grouprole)
                 SELECT id, ?, 'normal' FROM {all_group} WHERE id = ?"
            ),
            remove_friend: format!("DELETE FROM {friend} WHERE userid = ? AND friendid = ?"),
            remove_group: format!("DELETE FROM {all_group} WHERE id = ?"),
            remove_member: format!("DELETE FROM {group_user} WHERE userid = ? AND groupid = ?"),
            stored: format!("SELECT id, once FROM {message} WHERE once BETWEEN ? AND ?"),

            claims: format!("SELECT id, epoch FROM {user} WHERE node = ?"),
            nodes: format!("SELECT DISTINCT node FROM {user} WHERE node IS NOT NULL"),
            claimed_by: format!("SELECT id FROM {user} WHERE node = ? ORDER BY id LIMIT ?"),
            free_all: format!(
                "UPDATE {user} SET state = 'offline', node = NULL, epoch = NULL
                 WHERE state = 'online' OR node IS NOT NULL"
            ),
            robbed: format!("SELECT id FROM {user} WHERE node = ? AND state = 'offline' ORDER BY id LIMIT ?"),

            user,
            offline_message: message,
        }
    }

    /// Locks users until the transaction's end, and tells who has them. `ids` in ascending order:
    /// the rows are locked in it, by everybody, so that nobody waits in a circle.
    pub fn lock_users(&self, ids: &[UserId]) -> String {
        format!(
            "SELECT id, state, node, epoch FROM {} FORCE INDEX (PRIMARY) WHERE id IN ({}) ORDER BY id FOR UPDATE",
            self.user,
            list(ids),
        )
    }

    /// Sets those of the users offline whom the node still has.
    pub fn free(&self, node: NodeId, ids: &[UserId]) -> String {
        format!(
            "UPDATE {} FORCE INDEX (PRIMARY) SET state = 'offline', node = NULL, epoch = NULL
             WHERE id IN ({}) AND node = {}",
            self.user,
            list(ids),
            node.0,
        )
    }

    /// Sets those of the users online whom the node still has.
    pub fn reassert(&self, node: NodeId, ids: &[UserId]) -> String {
        format!(
            "UPDATE {} FORCE INDEX (PRIMARY) SET state = 'online'
             WHERE id IN ({}) AND node = {} AND state = 'offline'",
            self.user,
            list(ids),
            node.0,
        )
    }

    pub fn remove(&self, user: UserId, rows: &[u64]) -> String {
        format!("DELETE FROM {} WHERE userid = {user} AND id IN ({})", self.offline_message, list(rows))
    }

    pub fn insert_messages(&self, count: usize) -> String {
        let rows = vec!["(?, ?, ?)"; count].join(", ");
        format!("INSERT INTO {} (userid, message, once) VALUES {rows}", self.offline_message)
    }
}

/// Counts rows of something, as far as a number.
fn count_some(table: &str, column: &str) -> String {
    format!("SELECT COUNT(*) FROM (SELECT 1 FROM {table} WHERE {column} = ? LIMIT ?) AS counted")
}

fn list(numbers: &[impl ToString]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
