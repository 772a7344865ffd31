-- The store in one SQLite file: the tables and columns of the MySQL database, by the same names.
--
-- AUTOINCREMENT, because an id must never be used again. `namekey` is the name in lower case as
-- Rust has it: SQLite's own NOCASE knows only the letters of ASCII.

CREATE TABLE User (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    name     TEXT NOT NULL,
    password TEXT NOT NULL,
    state    TEXT NOT NULL DEFAULT 'offline' CHECK (state IN ('online', 'offline')),
    namekey  TEXT NOT NULL UNIQUE
);

CREATE TABLE Friend (
    userid   INTEGER NOT NULL,
    friendid INTEGER NOT NULL,
    PRIMARY KEY (userid, friendid)
) WITHOUT ROWID;

CREATE TABLE AllGroup (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    groupname TEXT NOT NULL,
    groupdesc TEXT NOT NULL DEFAULT '',
    namekey   TEXT NOT NULL UNIQUE
);

CREATE TABLE GroupUser (
    groupid   INTEGER NOT NULL,
    userid    INTEGER NOT NULL,
    grouprole TEXT NOT NULL DEFAULT 'normal' CHECK (grouprole IN ('creator', 'normal')),
    PRIMARY KEY (groupid, userid)
) WITHOUT ROWID;

-- The groups of a user. The table's key stands behind every entry: this is (userid, groupid).
CREATE INDEX GroupUser_userid ON GroupUser (userid);

CREATE TABLE OfflineMessage (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    userid  INTEGER NOT NULL,
    message TEXT NOT NULL
);

-- The messages of a user in order. As above: this is (userid, id).
CREATE INDEX OfflineMessage_userid ON OfflineMessage (userid);
