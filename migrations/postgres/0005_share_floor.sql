-- Of a part of the key space that is written by itself: changes of an entity below lsn are superseded by what a load of that part has left here.
CREATE TABLE _tributary_share_floor (
    entity text COLLATE "C" NOT NULL,
    part text COLLATE "C" NOT NULL,
    lsn text COLLATE "C" NOT NULL,
    PRIMARY KEY (entity, part)
);
