-- The database `chat` for MySQL or MariaDB, as the server itself makes it where there is none:
--
--     mysql -u root -p < schema.sql
--
-- Tables that exist are left as they are. C++ servers that share the database insert by position
-- and `select *`, so the columns and their order are theirs, and what is added is invisible
-- (MySQL 8.0.23, MariaDB 10.3). Names are unique without regard to case: the collation sees to it.
-- It is the one that both databases have and that tells one emoji from another. A name that differs
-- only in accents, or in spaces at its end, is the same name to it.

CREATE DATABASE IF NOT EXISTS chat CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_520_ci;
USE chat;

-- node and epoch are the claim by which one of our nodes has the user; both are NULL where none has.
CREATE TABLE IF NOT EXISTS User (
    id       INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name     VARCHAR(50) NOT NULL UNIQUE,
    password VARCHAR(255) NOT NULL,
    state    ENUM('online', 'offline') DEFAULT 'offline',
    node     BIGINT UNSIGNED NULL INVISIBLE,
    epoch    BIGINT UNSIGNED NULL INVISIBLE,
    KEY (node)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS Friend (
    userid   INT NOT NULL,
    friendid INT NOT NULL,
    PRIMARY KEY (userid, friendid)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_520_ci;

CREATE TABLE IF NOT EXISTS AllGroup (
    id        INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    groupname VARCHAR(50) NOT NULL UNIQUE,
    groupdesc VARCHAR(200) DEFAULT ''
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
