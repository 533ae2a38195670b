-- What the tables of an entity were made to be beside key, version, commit_time_ms and document: a row for each version of them, the highest is in force.
CREATE TABLE _tributary_shape (
    entity TEXT NOT NULL,
    version INTEGER NOT NULL,
    -- Columns, children and the rest, as JSON.
    shape TEXT NOT NULL,
    -- What was run to get there.
    statements TEXT NOT NULL,
    -- Whether every row has been written since.
    filled INTEGER NOT NULL,
    applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')),
    PRIMARY KEY (entity, version)
) STRICT, WITHOUT ROWID;
