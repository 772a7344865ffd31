//! The statements, with the tables' names as they were found.

use super::migrate::Layout;
use super::text::Texts;
use crate::store::names::NameKey;
use crate::store::{Claim, Holder, NodeId, UserId};
use crate::wire::reply::LISTED_MEMBERS;

/// A user is online if one of our nodes has it, even if a C++ server has set all users offline at its
/// end, or if a C++ server says so.
const ONLINE: &str = "(node IS NOT NULL OR COALESCE(state = 'online', FALSE))";
/// The same for `u` in a join with another table, whose columns may have any names.
const U_ONLINE: &str = "(u.node IS NOT NULL OR COALESCE(u.state = 'online', FALSE))";

/// The names of a table: how they get their keys, and whether one is taken.
pub(super) struct Named {
    /// What the table is called in the log.
    pub table: String,
    quoted: String,
    name: String,
    /// Rows that have not been looked at yet: those of C++ servers.
    pub unseen: String,
    /// Rows without a key, from an id on.
    pub keyless: String,
    /// By its key, or by the name itself: an administrator may have renamed a user.
    pub taken: String,
}

impl Named {
    fn new(table: &str, column: &str, texts: &Texts) -> Named {
        let quoted = quoted(table);
        Named {
            table: table.to_owned(),
            name: texts.columns(column),
            unseen: format!(
                "SELECT id FROM {quoted} WHERE namekey IS NULL AND namesake IS NULL ORDER BY id LIMIT {NAMES}"
            ),
            keyless: format!("SELECT id FROM {quoted} WHERE namekey IS NULL AND id > ? ORDER BY id LIMIT {NAMES}"),
            taken: format!(
                "SELECT id FROM {quoted} WHERE namekey = ? UNION ALL SELECT id FROM {quoted} WHERE {column} = ? LIMIT 1"
            ),
            quoted,
        }
    }

    /// Rows that have no key because one of these has it, or had it.
    pub fn namesakes_of(&self, ids: &[u64]) -> String {
        format!("SELECT id FROM {} WHERE namekey IS NULL AND namesake IN ({})", self.quoted, list(ids))
    }

    /// Locks those of the rows that still have no key, in the order in which all statements lock rows, and
    /// reads their names.
    pub fn lock(&self, ids: &[u64]) -> String {
        let (Named { quoted, name, .. }, ids) = (self, list(ids));
        format!(
            "SELECT id, {name} FROM {quoted} FORCE INDEX (PRIMARY)
             WHERE id IN ({ids}) AND namekey IS NULL ORDER BY id FOR UPDATE"
        )
    }

    /// Which of the keys are there, and whose they are.
    pub fn owners(&self, keys: &[NameKey]) -> String {
        let keys: Vec<_> = keys.iter().map(literal).collect();
        format!("SELECT id, namekey FROM {} WHERE namekey IN ({})", self.quoted, keys.join(", "))
    }

    /// Gives each row its key, or the id of the row that has it.
    pub fn fill(&self, keys: &[(u64, NameKey)], namesakes: &[(u64, u64)]) -> String {
        let case = |arms: Vec<String>| match arms.is_empty() {
            true => "NULL".to_owned(),
            false => format!("CASE id {} END", arms.join(" ")),
        };
        let key = case(keys.iter().map(|(id, key)| format!("WHEN {id} THEN {}", literal(key))).collect());
        let namesake = case(namesakes.iter().map(|(id, owner)| format!("WHEN {id} THEN {owner}")).collect());
        let ids: Vec<_> = keys.iter().map(|(id, _)| *id).chain(namesakes.iter().map(|(id, _)| *id)).collect();
        format!(
            "UPDATE {} FORCE INDEX (PRIMARY) SET namekey = {key}, namesake = {namesake} WHERE id IN ({})",
            self.quoted,
            list(&ids),
        )
    }
}

/// How many names get their keys at a time.
pub(super) const NAMES: usize = 500;

fn literal(key: &NameKey) -> String {
    key.iter().fold("x'".to_owned(), |text, byte| text + &format!("{byte:02x}")) + "'"
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Statements that do not change, and the names for those that do.
pub(super) struct Sql {
    /// What `state` becomes by a claim.
    claimed: &'static str,
    /// Locks this node's mark until the transaction's end, and reads it. It says so itself: at READ COMMITTED
    /// a row that another statement joins, or looks for, is read without a lock. `None`: the node is alone.
    pub mark: Option<String>,
    /// The same as a condition of a statement that is a transaction of its own.
    unmarked: String,
    /// The same as the first rows of [`Sql::lists`].
    mark_list: String,
    user: String,
    node_mark: String,
    node_looks: String,
    offline_message: String,
    message_row: String,

    pub users: Named,
    pub groups_by_name: Named,

    account: String,
    lists: Lists,
    pub members: String,
    pub group_exists: String,
    // As far as a number.
    pub messages_of: String,
    pub friends_of: String,
    pub groups_of: String,
    pub members_of: String,

    pub register: String,
    pub registered: String,
    pub set_password: String,
    pub set_dialect: String,
    pub claim: String,
    pub release: String,
    pub add_friend: String,
    pub create_group: String,
    pub created_group: String,
    pub add_creator: String,
    pub join_group: String,
    pub lock_group: String,
    // What a quota undoes.
    pub remove_friend: String,
    pub remove_member: String,
    /// Which messages of a range of keys stand there.
    pub stored: String,

    pub claimed_by: String,
    pub robbed: String,
    pub free_all: String,
}

impl Sql {
    /// `mixed`: a claim is not shown at once. `node`: this one, if it is not alone.
    pub fn new(layout: &Layout, texts: &Texts, mixed: bool, node: Option<NodeId>) -> Sql {
        let user = quoted(&layout.user);
        let (node_mark, node_looks) = (quoted(&layout.node_mark), quoted(&layout.node_looks));
        let mark =
            node.map(|node| format!("SELECT marked FROM {node_mark} WHERE node = {} LOCK IN SHARE MODE", node.0));
        let mark_list = node.map(|node| {
            format!(
                "(SELECT {}, CAST(m.marked AS UNSIGNED), 0, FALSE, NULL, NULL, NULL, NULL
                  FROM {node_mark} AS m WHERE m.node = {} LOCK IN SHARE MODE) UNION ALL ",
                Kind::Mark as u8,
                node.0,
            )
        });
        let friend = quoted(&layout.friend);
        let all_group = quoted(&layout.all_group);
        let group_user = quoted(&layout.group_user);
        let (message, row) = (quoted(&layout.offline_message), quoted(&layout.message_row));
        let name = texts.columns("name");
        let claimed = if mixed { "offline" } else { "online" };
        Sql {
            claimed,
            unmarked: mark.as_ref().map_or_else(String::new, |mark| format!(" AND ({mark}) = 0")),
            mark,
            mark_list: mark_list.unwrap_or_default(),
            users: Named::new(&layout.user, "name", texts),
            groups_by_name: Named::new(&layout.all_group, "groupname", texts),

            account: format!("SELECT {name}, {} FROM {user} WHERE id = ", texts.columns("password")),
            lists: Lists::new([&user, &friend, &all_group, &group_user, &message], &row, texts),
            members: format!("SELECT userid FROM {group_user} WHERE groupid = ? ORDER BY userid"),
            group_exists: format!("SELECT 1 FROM {all_group} WHERE id = ?"),
            messages_of: count_some(&message, "userid"),
            friends_of: count_some(&friend, "userid"),
            groups_of: count_some(&group_user, "userid"),
            members_of: count_some(&group_user, "groupid"),

            register: format!("INSERT INTO {user} (name, password, state, namekey) VALUES (?, ?, 'offline', ?)"),
            registered: format!("SELECT id FROM {user} WHERE name = ? AND BINARY password = BINARY ?"),
            set_password: format!("UPDATE {user} SET password = ? WHERE id = ?"),
            set_dialect: format!("UPDATE {user} SET dialect = ? WHERE id = ?"),
            claim: format!("UPDATE {user} SET state = '{claimed}', node = ?, epoch = ? WHERE id = ?"),
            release: format!("UPDATE {user} SET state = 'offline', node = NULL, epoch = NULL WHERE id = ?"),
            add_friend: format!("INSERT INTO {friend} (userid, friendid) SELECT ?, id FROM {user} WHERE id = ?"),
            create_group: format!("INSERT INTO {all_group} (groupname, groupdesc, namekey) VALUES (?, ?, ?)"),
            created_group: format!(
                "SELECT g.id FROM {all_group} AS g JOIN {group_user} AS m ON m.groupid = g.id
                 WHERE g.groupname = ? AND m.userid = ? AND m.grouprole = 'creator'"
            ),
            add_creator: format!("INSERT INTO {group_user} (groupid, userid, grouprole) VALUES (?, ?, 'creator')"),
            join_group: format!(
                "INSERT INTO {group_user} (groupid, userid, grouprole)
                 SELECT id, ?, 'normal' FROM {all_group} WHERE id = ?"
            ),
            lock_group: format!("SELECT id FROM {all_group} WHERE id = ? FOR UPDATE"),
            remove_friend: format!("DELETE FROM {friend} WHERE userid = ? AND friendid = ?"),
            remove_member: format!("DELETE FROM {group_user} WHERE userid = ? AND groupid = ?"),
            stored: format!("SELECT {row}, once FROM {message} WHERE once BETWEEN ? AND ?"),

            claimed_by: format!("SELECT id FROM {user} WHERE node = ? ORDER BY id LIMIT ?"),
            free_all: format!(
                "UPDATE {user} SET state = 'offline', node = NULL, epoch = NULL
                 WHERE state = 'online' OR node IS NOT NULL"
            ),
            robbed: format!(
                "SELECT id, epoch FROM {user} WHERE node = ? AND id > ? AND epoch IS NOT NULL AND state = 'offline'
                 ORDER BY id LIMIT ?"
            ),

            user,
            node_mark,
            node_looks,
            offline_message: message,
            message_row: row,
        }
    }

    /// The account of a user.
    pub fn account(&self, user: UserId) -> String {
        format!("{}{user}", self.account)
    }

    /// What a user has of these lists, by one statement: a snapshot of all of them. Its rows are in no
    /// order, and each is of one [`Kind`]. With the user's messages comes this node's mark, which stays locked
    /// until all is read.
    pub fn lists(&self, kinds: &[Kind], user: UserId, max_bytes: usize) -> String {
        let branches = kinds.iter().map(|kind| match kind {
            Kind::Mark => "",
            Kind::Friend => &*self.lists.friends,
            Kind::Group => &self.lists.groups,
            Kind::Member => &self.lists.members,
            Kind::Message => &self.lists.page,
            Kind::Many => &self.lists.few,
            Kind::Dialect => &self.lists.dialect,
        });
        let lists = branches.filter(|branch| !branch.is_empty()).collect::<Vec<_>>().join(" UNION ALL ");
        let sql = format!("{}{lists}", if self.locks(kinds) { &*self.mark_list } else { "" });
        sql.replace(":user", &user.to_string()).replace(":bytes", &max_bytes.to_string())
    }

    /// Whether these lists lock this node's mark.
    pub fn locks(&self, kinds: &[Kind]) -> bool {
        self.mark.is_some() && kinds.iter().any(|kind| matches!(kind, Kind::Message | Kind::Many))
    }

    /// Takes a user for a claim, if it has no holder, or `past`, unless this node is marked. The statement is a
    /// transaction of its own: a transaction that stores for the user locks the same row.
    pub fn claim_alone(&self, user: UserId, mine: Claim, past: Option<Holder>) -> String {
        let past = match past {
            Some(Holder::Node(claim)) if claim != mine => format!(" OR {}", held_by(claim)),
            Some(Holder::Foreign) => " OR node IS NULL".to_owned(),
            Some(Holder::Node(_)) | None => String::new(),
        };
        let (Sql { user: table, claimed, unmarked, .. }, Claim { node, epoch }) = (self, mine);
        format!(
            "UPDATE {table} FORCE INDEX (PRIMARY) SET state = '{claimed}', node = {}, epoch = {epoch}
             WHERE id = {user} AND (NOT {ONLINE}{past}){unmarked}",
            node.0,
        )
    }

    /// Reads the holder of a user.
    pub fn holder(&self, user: UserId) -> String {
        format!("SELECT id, state, node, epoch FROM {} WHERE id = {user}", self.user)
    }

    /// Shows to C++ servers, which see no claims, that a user is online that this node has by this claim, unless the
    /// node is marked.
    pub fn show(&self, user: UserId, mine: Claim) -> String {
        let Sql { user: table, unmarked, .. } = self;
        format!(
            "UPDATE {table} FORCE INDEX (PRIMARY) SET state = 'online' WHERE id = {user} AND {}{unmarked}",
            held_by(mine),
        )
    }

    /// Locks users until the transaction's end, and reads their holders. `ids` in ascending order: all
    /// transactions lock the rows in this order, so that none of them wait in a circle.
    pub fn lock_users(&self, ids: &[UserId]) -> String {
        format!(
            "SELECT id, state, node, epoch FROM {} FORCE INDEX (PRIMARY) WHERE id IN ({}) ORDER BY id FOR UPDATE",
            self.user,
            list(ids),
        )
    }

    /// Sets those of the users offline that the node still has.
    pub fn free(&self, node: NodeId, ids: &[UserId]) -> String {
        format!(
            "UPDATE {} FORCE INDEX (PRIMARY) SET state = 'offline', node = NULL, epoch = NULL
             WHERE id IN ({}) AND node = {}",
            self.user,
            list(ids),
            node.0,
        )
    }

    /// Sets those of the users online that the node still has by these epochs.
    pub fn reassert(&self, node: NodeId, claims: &[(UserId, u64)]) -> String {
        let ids: Vec<UserId> = claims.iter().map(|(user, _)| *user).collect();
        let claims: Vec<String> = claims.iter().map(|(user, epoch)| format!("({user}, {epoch})")).collect();
        format!(
            "UPDATE {} FORCE INDEX (PRIMARY) SET state = 'online'
             WHERE id IN ({}) AND node = {} AND (id, epoch) IN ({}) AND state = 'offline'",
            self.user,
            list(&ids),
            node.0,
            claims.join(", "),
        )
    }

    pub fn remove(&self, user: UserId, rows: &[u64]) -> String {
        let Sql { offline_message, message_row, .. } = self;
        format!("DELETE FROM {offline_message} WHERE userid = {user} AND {message_row} IN ({})", list(rows))
    }

    pub fn insert_messages(&self, count: usize) -> String {
        let rows = vec!["(?, ?, ?)"; count].join(", ");
        format!("INSERT INTO {} (userid, message, once) VALUES {rows}", self.offline_message)
    }
}

/// What nodes see of each other.
impl Sql {
    /// Writes a node's rows, if they are not there, and reads its mark.
    pub fn enlist(&self, node: NodeId) -> String {
        let (Sql { node_mark, node_looks, .. }, node) = (self, node.0);
        format!(
            "; INSERT INTO {node_looks} (node, looks) VALUES ({node}, 0) ON DUPLICATE KEY UPDATE looks = looks;
             INSERT INTO {node_mark} (node, marked) VALUES ({node}, FALSE) ON DUPLICATE KEY UPDATE marked = marked;
             SELECT marked FROM {node_mark} WHERE node = {node}"
        )
    }

    /// Raises a node's counter, and then reads which nodes are marked, and its own mark: none if one of its
    /// rows is gone.
    pub fn look(&self, node: NodeId) -> String {
        let (Sql { node_mark, node_looks, .. }, node) = (self, node.0);
        format!(
            "; UPDATE {node_looks} SET looks = looks + 1 WHERE node = {node};
             SELECT node, marked FROM {node_mark}
             WHERE IF(node = {node}, EXISTS (SELECT 1 FROM {node_looks} AS own WHERE own.node = {node}), marked)"
        )
    }

    /// Reads a node's mark, and never waits.
    pub fn glance(&self, node: NodeId) -> String {
        format!("SELECT marked FROM {} WHERE node = {}", self.node_mark, node.0)
    }

    /// All nodes but one: its counter, whether it is marked, and whether it has claims. One statement, one
    /// snapshot: a node that has claims had its rows before.
    pub fn nodes(&self, but: NodeId) -> String {
        let (Sql { user, node_mark, node_looks, .. }, but) = (self, but.0);
        format!(
            "SELECT known.node, l.looks, l.node IS NULL OR COALESCE(m.marked, TRUE),
                    EXISTS (SELECT 1 FROM {user} AS u WHERE u.node = known.node)
             FROM (SELECT node FROM {node_looks} UNION SELECT node FROM {node_mark}
                   UNION SELECT DISTINCT node FROM {user} WHERE node IS NOT NULL) AS known
                  LEFT JOIN {node_looks} AS l ON l.node = known.node
                  LEFT JOIN {node_mark} AS m ON m.node = known.node
             WHERE known.node <> {but}"
        )
    }

    /// All nodes but one that are not marked.
    pub fn unmarked_nodes(&self, but: NodeId) -> String {
        format!("SELECT node FROM {} WHERE NOT marked AND node <> {}", self.node_mark, but.0)
    }

    /// Locks a node's counter, which every reaper locks before the mark.
    pub fn lock_looks(&self, node: NodeId) -> String {
        format!("SELECT looks FROM {} WHERE node = {} FOR UPDATE", self.node_looks, node.0)
    }

    /// Locks a node's mark when its open transactions are over.
    pub fn lock_mark(&self, node: NodeId) -> String {
        format!("SELECT marked FROM {} WHERE node = {} FOR UPDATE", self.node_mark, node.0)
    }

    pub fn set_mark(&self, node: NodeId) -> String {
        format!("UPDATE {} SET marked = TRUE WHERE node = {}", self.node_mark, node.0)
    }

    /// Deletes the rows of a node, or of all of them.
    pub fn strike(&self, node: Option<NodeId>) -> [String; 2] {
        let which = node.map_or_else(String::new, |node| format!(" WHERE node = {}", node.0));
        [&self.node_looks, &self.node_mark].map(|table| format!("DELETE FROM {table}{which}"))
    }
}

fn held_by(claim: Claim) -> String {
    format!("node = {} AND COALESCE(epoch, 0) = {}", claim.node.0, claim.epoch)
}

/// What a row of [`Sql::lists`] is, by its first column. The others are: an id, a number, whether it is so
/// (whether a user is online), and two texts of two columns each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Whether this node is marked, for an id. There is none if it has been struck off.
    Mark = 0,
    /// Its id and name.
    Friend = 1,
    /// Its id, how many members it has if not all are listed, name and description.
    Group = 2,
    /// The group's id, the member's id and name, and "1" for its creator.
    Member = 3,
    /// Its id, how many there are among the first [`PAGE_ROWS`], and its text.
    Message = 4,
    /// There are more than a few of those.
    Many = 5,
    /// What the user's client speaks, as text; there is none if that is canon, or not known.
    Dialect = 6,
}

/// The number of messages of the usual greatest size that make a page.
const FEW: u32 = 4;

/// The most messages of a page.
pub(super) const PAGE_ROWS: u64 = 4096;
/// To know how many messages make a page the database has to read them, and it may be a few large ones or
/// many small ones. So it looks at the first few, and only if they do not fill the page at some more.
const PAGE_STEPS: [u64; 4] = [0, 32, 512, PAGE_ROWS];

/// Statements that list what `:user` has, as text with the number in it, so that a lone login needs
/// nothing to be prepared.
struct Lists {
    friends: String,
    groups: String,
    members: String,
    page: String,
    /// The same, if there are only a few: then how many bytes they have need not be looked at, which takes
    /// longer than all else. If there are more, a row that says so.
    few: String,
    dialect: String,
}

impl Lists {
    fn new([user, friend, all_group, group_user, message]: [&str; 5], row: &str, texts: &Texts) -> Lists {
        let name = texts.columns("u.name");
        // A group's last member to be listed; NULL if all are.
        let groups = format!(
            "(SELECT m.groupid AS listed_group,
                     (SELECT x.userid FROM {group_user} AS x WHERE x.groupid = m.groupid
                      ORDER BY x.userid LIMIT 1 OFFSET {}) AS last
              FROM {group_user} AS m WHERE m.userid = :user) AS mine",
            LISTED_MEMBERS - 1,
        );
        let text = texts.columns_if("m.once IS NULL", "m.message");
        let one_more =
            format!("(SELECT {row} FROM {message} WHERE userid = :user ORDER BY {row} LIMIT 1 OFFSET {FEW})");
        let some = |lengths: &str, from: u64, upto: u64| {
            let what = format!("{lengths} FROM {message} WHERE userid = :user");
            match from {
                0 => format!("(SELECT {what} ORDER BY {row} LIMIT {upto})"),
                _ => format!(
                    "(SELECT {what} AND (SELECT SUM(bytes) FROM
                        (SELECT COALESCE(LENGTH(message), 0) AS bytes FROM {message} WHERE userid = :user ORDER BY {row} LIMIT {from})
                        AS first_of_all) <= :bytes
                      ORDER BY {row} LIMIT {} OFFSET {from})",
                    upto - from,
                ),
            }
        };
        let steps = PAGE_STEPS.iter().zip(&PAGE_STEPS[1..]);
        let lengths: Vec<String> = steps
            .map(|(from, upto)| some(&format!("{row} AS id, COALESCE(LENGTH(message), 0) AS bytes"), *from, *upto))
            .collect();
        Lists {
            friends: format!(
                "SELECT {}, CAST(u.id AS UNSIGNED), 0, {U_ONLINE}, {name}, NULL, NULL
                 FROM {friend} AS f JOIN {user} AS u ON u.id = f.friendid WHERE f.userid = :user",
                Kind::Friend as u8,
            ),
            groups: format!(
                "SELECT {}, CAST(g.id AS UNSIGNED),
                        IF(mine.last IS NULL, 0, (SELECT COUNT(*) FROM {group_user} AS c WHERE c.groupid = g.id)),
                        FALSE, {}, {}
                 FROM {groups} JOIN {all_group} AS g ON g.id = mine.listed_group",
                Kind::Group as u8,
                texts.columns("g.groupname"),
                texts.columns("g.groupdesc"),
            ),
            members: format!(
                "SELECT {}, CAST(mine.listed_group AS UNSIGNED), u.id, {U_ONLINE}, {name},
                        IF(n.grouprole = 'creator', CAST('1' AS BINARY), NULL), NULL
                 FROM {groups} JOIN {group_user} AS n ON n.groupid = mine.listed_group
                               AND n.userid <= COALESCE(mine.last, {})
                      JOIN {user} AS u ON u.id = n.userid",
                Kind::Member as u8,
                UserId::MAX,
            ),
            // The one that passes the limit comes along: the reader sees by it that there are more.
            page: format!(
                "SELECT {}, CAST(m.{row} AS UNSIGNED), page.there, FALSE, {}, NULL, NULL
                 FROM (SELECT id, SUM(bytes) OVER (ORDER BY id) - bytes AS ahead, COUNT(*) OVER () AS there
                       FROM ({}) AS lengths) AS page
                      STRAIGHT_JOIN {message} AS m ON m.{row} = page.id
                 WHERE page.ahead <= :bytes",
                Kind::Message as u8,
                text,
                lengths.join(" UNION ALL "),
            ),
            few: format!(
                "SELECT {}, CAST(m.{row} AS UNSIGNED), 0, FALSE, {text}, NULL, NULL
                 FROM {message} AS m WHERE m.userid = :user AND {one_more} IS NULL
                 UNION ALL SELECT {}, 0, 0, FALSE, NULL, NULL, NULL, NULL FROM DUAL WHERE {one_more} IS NOT NULL",
                Kind::Message as u8,
                Kind::Many as u8,
            ),
            dialect: format!(
                "SELECT {}, 0, 0, FALSE, CAST(u.dialect AS BINARY), NULL, NULL, NULL
                 FROM {user} AS u WHERE u.id = :user AND u.dialect IS NOT NULL",
                Kind::Dialect as u8,
            ),
        }
    }
}

/// Counts rows of something, as far as a number.
fn count_some(table: &str, column: &str) -> String {
    format!("SELECT COUNT(*) FROM (SELECT 1 FROM {table} WHERE {column} = ? LIMIT ?) AS counted")
}

fn list(numbers: &[impl ToString]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
