"""DuckDB as a reader of the lake: a query a line on standard input, its rows as a line of JSON on standard output."""

import json
import pathlib
import sys

import duckdb
import duckdb_extension_delta

extension = next(pathlib.Path(duckdb_extension_delta.__file__).parent.rglob("delta.duckdb_extension"))
connection = duckdb.connect()
connection.execute(f"LOAD '{extension}'")
connection.execute("SET TimeZone = 'UTC'")
for line in sys.stdin:
    try:
        answer = connection.execute(json.loads(line)).fetchall()
    except Exception as error:
        answer = {"error": str(error)}
    print(json.dumps(answer, default=str), flush=True)
