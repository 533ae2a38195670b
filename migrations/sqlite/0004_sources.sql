-- Of several sources: the LSN of each that the frontier stands for, as source=LSN;source=LSN; null of one source, whose LSN it is.
ALTER TABLE _tributary_frontier ADD COLUMN sources TEXT;
