-- What Tributary keeps beside the entities' own tables. Names start with an underscore: no entity's name does.

-- Every change at or below lsn is in this database. One row for each part of the key space that is written by itself; today that is 'all'.
CREATE TABLE _tributary_frontier (
    part TEXT PRIMARY KEY NOT NULL,
    lsn TEXT NOT NULL
) STRICT;

-- Changes of an entity below lsn are superseded by what is here, whether or not a trace of them is left.
CREATE TABLE _tributary_floor (
    entity TEXT PRIMARY KEY NOT NULL,
    lsn TEXT NOT NULL
) STRICT;

-- Entities that are gone, and since when: an older version that comes late must not bring them back.
CREATE TABLE _tributary_tombstone (
    entity TEXT NOT NULL,
    key TEXT NOT NULL,
    version TEXT NOT NULL,
    commit_time_ms INTEGER NOT NULL,
    PRIMARY KEY (entity, key)
) STRICT, WITHOUT ROWID;
