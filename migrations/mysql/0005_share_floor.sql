-- Of a part of the key space that is written by itself: changes of an entity below lsn are superseded by what a load of that part has left here.
CREATE TABLE _tributary_share_floor (
    entity varchar(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    part varchar(63) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    lsn char(22) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    PRIMARY KEY (entity, part)
) ENGINE = InnoDB;
