-- What Tributary keeps beside the entities' own tables. Names start with an underscore: no entity's name does.
-- Keys are bytes, because text is compared without its trailing blanks in most collations; LSNs are ASCII, whose text sorts as the LSN does.

-- Every change at or below lsn is in this database. One row for each part of the key space that is written by itself; today that is 'all'.
CREATE TABLE _tributary_frontier (
    part varchar(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    lsn char(22) CHARACTER SET ascii COLLATE ascii_bin NOT NULL
) ENGINE = InnoDB;

-- Changes of an entity below lsn are superseded by what is here, whether or not a trace of them is left. A row for each entity, empty at first: writers lock it.
CREATE TABLE _tributary_floor (
    entity varchar(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    lsn char(22) CHARACTER SET ascii COLLATE ascii_bin NOT NULL
) ENGINE = InnoDB;

-- Entities that are gone, and since when: an older version that comes late must not bring them back.
CREATE TABLE _tributary_tombstone (
    entity varchar(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    `key` varbinary(2000) NOT NULL,
    version char(22) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    commit_time_ms bigint NOT NULL,
    PRIMARY KEY (entity, `key`)
) ENGINE = InnoDB;
