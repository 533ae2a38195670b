-- What the tables of an entity were made to be beside key, version, commit_time_ms and document: a row for each version of them, the highest is in force.
CREATE TABLE _tributary_shape (
    entity text COLLATE "C" NOT NULL,
    version integer NOT NULL,
    -- Columns, children and the rest, as JSON.
    shape text NOT NULL,
    -- What was run to get there.
    statements text NOT NULL,
    -- Whether every row has been written since.
    filled boolean NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (entity, version)
);
