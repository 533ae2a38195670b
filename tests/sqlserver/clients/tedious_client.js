// Talks to the stand-in by tedious: HOST PORT PASSWORD. Prints "ok" when everything was as it should be.
const assert = require("node:assert");
const { Connection, Request, TYPES } = require("tedious");

const [host, port, password] = process.argv.slice(2);

function connect(encrypt) {
  return new Promise((resolve, reject) => {
    const connection = new Connection({
      server: host,
      authentication: { type: "default", options: { userName: "sa", password } },
      options: { port: Number(port), database: "shop", encrypt, trustServerCertificate: true, useUTC: true, rowCollectionOnRequestCompletion: true },
    });
    connection.connect((error) => (error ? reject(error) : resolve(connection)));
  });
}

function run(connection, sql, parameters = []) {
  return new Promise((resolve, reject) => {
    const request = new Request(sql, (error, count, rows) =>
      error ? reject(error) : resolve({ count, rows: rows.map((row) => row.map((column) => column.value)) }));
    for (const [name, type, value, options] of parameters) request.addParameter(name, type, value, options);
    connection.execSql(request);
  });
}

function transaction(connection, step) {
  return new Promise((resolve, reject) => connection[step]((error) => (error ? reject(error) : resolve())));
}

async function main() {
  for (const encrypt of [false, true]) {
    const connection = await connect(encrypt);
    await run(connection, "IF OBJECT_ID('dbo.js') IS NULL CREATE TABLE dbo.js (id bigint PRIMARY KEY, name nvarchar(max), amount decimal(18,4), at datetimeoffset(7), day date)");
    await run(connection, "DELETE FROM dbo.js");
    const at = new Date(Date.UTC(2024, 1, 29, 13, 14, 15, 167));
    const long = "ü".repeat(20000);
    const inserted = await run(connection, "INSERT INTO dbo.js VALUES (@id, @name, @amount, @at, @day)", [
      ["id", TYPES.BigInt, "9007199254740993"], ["name", TYPES.NVarChar, long], ["amount", TYPES.Decimal, 12.3456, { precision: 18, scale: 4 }],
      ["at", TYPES.DateTimeOffset, at, { scale: 7 }], ["day", TYPES.Date, at],
    ]);
    assert.strictEqual(inserted.count, 1);
    const { rows } = await run(connection, "SELECT id, name, amount, at, day FROM dbo.js WHERE id = @id", [["id", TYPES.BigInt, "9007199254740993"]]);
    assert.deepStrictEqual(rows, [["9007199254740993", long, 12.3456, at, new Date(Date.UTC(2024, 1, 29))]]);
    await transaction(connection, "beginTransaction");
    await run(connection, "DELETE FROM dbo.js");
    await transaction(connection, "rollbackTransaction");
    assert.deepStrictEqual((await run(connection, "SELECT COUNT(*) FROM dbo.js")).rows, [[1]]);
    await assert.rejects(run(connection, "SELECT * FROM dbo.absent"), (error) => error.number === 208);
    connection.close();
  }
  console.log("ok");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
