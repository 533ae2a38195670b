-- What the tables of an entity were made to be beside key, version, commit_time_ms and document: a row for each version of them, the highest is in force. `shape` is JSON, `statements` what was run to get there,
-- `filled` whether every row has been written since.
CREATE TABLE _tributary_shape (
    entity varchar(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    version int NOT NULL,
    shape longtext CHARACTER SET utf8mb4 NOT NULL,
    statements longtext CHARACTER SET utf8mb4 NOT NULL,
    filled tinyint(1) NOT NULL,
    applied_at datetime(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (entity, version)
) ENGINE = InnoDB;
