-- Where several instances write, each a share of the keys: which shares have been written since, while not all have. Shares are ranges, separated by blanks; null for none.
ALTER TABLE _tributary_shape ADD COLUMN filled_by text;
