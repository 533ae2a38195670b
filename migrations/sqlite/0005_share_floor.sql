-- Of a part of the key space that is written by itself: changes of an entity below lsn are superseded by what a load of that part has left here.
CREATE TABLE _tributary_share_floor (
    entity TEXT NOT NULL,
    part TEXT NOT NULL,
    lsn TEXT NOT NULL,
    PRIMARY KEY (entity, part)
) STRICT;
