-- Names are known by a hash of their key, as in the MySQL database. It is filled in by the server, and
-- stays NULL where the name of a row that was there earlier is the same. The tables are made anew, because
-- SQLite cannot take back a UNIQUE; ids that were used once stay used.

CREATE TABLE NewUser (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    name     TEXT NOT NULL,
    password TEXT NOT NULL,
    state    TEXT NOT NULL DEFAULT 'offline' CHECK (state IN ('online', 'offline')),
    namekey  BLOB UNIQUE
);
INSERT INTO sqlite_sequence (name, seq) SELECT 'NewUser', seq FROM sqlite_sequence WHERE name = 'User';
INSERT INTO NewUser (id, name, password, state) SELECT id, name, password, state FROM User ORDER BY id;
DROP TABLE User;
ALTER TABLE NewUser RENAME TO User;

CREATE TABLE NewGroup (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    groupname TEXT NOT NULL,
    groupdesc TEXT NOT NULL DEFAULT '',
    namekey   BLOB UNIQUE
);
INSERT INTO sqlite_sequence (name, seq) SELECT 'NewGroup', seq FROM sqlite_sequence WHERE name = 'AllGroup';
INSERT INTO NewGroup (id, groupname, groupdesc) SELECT id, groupname, groupdesc FROM AllGroup ORDER BY id;
DROP TABLE AllGroup;
ALTER TABLE NewGroup RENAME TO AllGroup;
