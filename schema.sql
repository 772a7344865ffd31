-- The database `chat` for MySQL or MariaDB, as the server itself makes it where there is none:
--
--     mysql -u root -p < schema.sql
--
-- Tables that exist are left as they are. C++ servers that share the database insert by position
-- and `select *`, so the columns and their order are theirs, and what is added is invisible
-- (MySQL 8.0.23, MariaDB 10.3).
--
-- Names are unique twice. By their bytes, so that C++ servers cannot add an exact double; and by namekey,
-- the SHA-256 of what makes two names the same: NFKC(casefold(NFKC(name))), less the blanks at its ends, and
-- with one space for each run of blanks between. Our servers fill it in, also for the rows of C++ servers, where it
-- is NULL at first. Where a name was there already, it stays NULL, and namesake is the id of the row that
-- has it. To rename a row by hand, set both to NULL as well.

CREATE DATABASE IF NOT EXISTS chat CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_520_ci;
USE chat;

-- node and epoch are the claim by which one of our nodes has the user; both are NULL where none has. dialect is
-- what the account's client last spoke, and NULL where that is the protocol itself, or is not known.
CREATE TABLE IF NOT EXISTS User (
    id       INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name     VARCHAR(50) COLLATE utf8mb4_bin NOT NULL UNIQUE,
    password VARCHAR(255) NOT NULL,
    state    ENUM('online', 'offline') DEFAULT 'offline',
    node     BIGINT UNSIGNED NULL INVISIBLE,
    epoch    BIGINT UNSIGNED NULL INVISIBLE,
    namekey  BINARY(32) NULL INVISIBLE UNIQUE,
    namesake BIGINT UNSIGNED NULL INVISIBLE,
    dialect  VARCHAR(255) CHARACTER SET ascii NULL INVISIBLE,
    KEY (node),
    KEY (namekey, namesake)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS Friend (
    userid   INT NOT NULL,
    friendid INT NOT NULL,
    PRIMARY KEY (userid, friendid)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS AllGroup (
    id        INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    groupname VARCHAR(50) COLLATE utf8mb4_bin NOT NULL UNIQUE,
    groupdesc VARCHAR(200) DEFAULT '',
    namekey   BINARY(32) NULL INVISIBLE UNIQUE,
    namesake  BIGINT UNSIGNED NULL INVISIBLE,
    KEY (namekey, namesake)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS GroupUser (
    groupid   INT NOT NULL,
    userid    INT NOT NULL,
    grouprole ENUM('creator', 'normal') DEFAULT 'normal',
    PRIMARY KEY (groupid, userid),
    KEY (userid)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_520_ci;

-- once names a message for good, so that a node that got no answer to its COMMIT can see whether it
-- stands here. It is NULL in the rows of C++ servers.
CREATE TABLE IF NOT EXISTS OfflineMessage (
    id      BIGINT UNSIGNED NOT NULL AUTO_INCREMENT INVISIBLE PRIMARY KEY,
    userid  INT NOT NULL,
    message MEDIUMTEXT NOT NULL,
    once    BINARY(16) NULL INVISIBLE UNIQUE,
    KEY (userid, id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_520_ci;

-- The nodes of a cluster, C++ servers not among them. Each has two rows, which it writes when it starts. Every
-- transaction of the node locks the row with its mark for sharing, and does nothing if other nodes, which took
-- it for dead, have marked it, or have deleted the row. The row with the counter is raised whenever the node
-- looks at its mark: whoever marks it, marks it only if the counter still is what it was.
CREATE TABLE IF NOT EXISTS NodeMark (
    node   BIGINT UNSIGNED NOT NULL PRIMARY KEY,
    marked BOOLEAN NOT NULL DEFAULT FALSE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS NodeLooks (
    node  BIGINT UNSIGNED NOT NULL PRIMARY KEY,
    looks BIGINT UNSIGNED NOT NULL DEFAULT 0
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_520_ci;
