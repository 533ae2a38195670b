#!/usr/bin/env python3
"""Flink SQL reads a file of events by its format debezium-json.

usage: flink.py FILE COLUMNS SELECTED     COLUMNS as in CREATE TABLE, SELECTED as in SELECT; prints the changelog, one JSON array a line: the kind of row, then its values
"""
import json, sys

from pyflink.table import EnvironmentSettings, TableEnvironment

path, columns, selected = sys.argv[1:]
env = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
env.get_config().set("parallelism.default", "1")
env.execute_sql(
    f"CREATE TABLE events ({columns}) WITH ('connector'='filesystem', 'path'='file://{path}', 'format'='debezium-json',"
    "'debezium-json.timestamp-format.standard'='ISO-8601')"
)


def plain(value):
    return value.hex() if isinstance(value, (bytes, bytearray)) else value


with env.execute_sql(f"SELECT {selected} FROM events").collect() as rows:
    for row in rows:
        print(json.dumps([row.get_row_kind().name, *map(plain, row)], default=str), flush=True)
