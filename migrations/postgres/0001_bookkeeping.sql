-- What Tributary keeps beside the entities' own tables. Names start with an underscore: no entity's name does.
-- Text is compared bytewise (COLLATE "C"): an LSN's text sorts as the LSN does.

-- Every change at or below lsn is in this schema. One row for each part of the key space that is written by itself; today that is 'all'.
CREATE TABLE _tributary_frontier (
    part text COLLATE "C" PRIMARY KEY,
    lsn text COLLATE "C" NOT NULL
);

-- Changes of an entity below lsn are superseded by what is here, whether or not a trace of them is left.
CREATE TABLE _tributary_floor (
    entity text COLLATE "C" PRIMARY KEY,
    lsn text COLLATE "C" NOT NULL
);

-- Entities that are gone, and since when: an older version that comes late must not bring them back.
CREATE TABLE _tributary_tombstone (
    entity text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    version text COLLATE "C" NOT NULL,
    commit_time_ms bigint NOT NULL,
    PRIMARY KEY (entity, key)
);
