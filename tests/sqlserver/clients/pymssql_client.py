"""Talks to the stand-in by pymssql: HOST PORT PASSWORD. Prints "ok" when everything was as it should be."""
import datetime
import decimal
import sys
import uuid

import pymssql

host, port, password = sys.argv[1:4]


def connect(**options):
    return pymssql.connect(server=host, port=port, user="sa", password=password, database="shop", **options)


with connect() as connection:
    cursor = connection.cursor()
    cursor.execute(
        "CREATE TABLE dbo.py (id int IDENTITY PRIMARY KEY, name nvarchar(40) NOT NULL, price decimal(10,2), at datetime2(3), flag bit, guid uniqueidentifier, raw varbinary(10), f float)"
    )
    connection.commit()
    guid = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
    row = ("Zoë", decimal.Decimal("12.34"), datetime.datetime(2024, 2, 29, 13, 14, 15, 167000), True, guid, b"\x00\xff", 1.5)
    cursor.execute("INSERT INTO dbo.py (name, price, at, flag, guid, raw, f) VALUES (%s, %s, %s, %s, %s, %s, %s)", row)
    cursor.execute("SELECT SCOPE_IDENTITY()")
    assert cursor.fetchone()[0] == 1
    connection.commit()
    cursor.execute("SELECT name, price, at, flag, guid, raw, f FROM dbo.py WHERE name = %s", ("zoë",))
    found = cursor.fetchone()
    assert found == row, found

    # A rollback takes everything back.
    cursor.execute("DELETE FROM dbo.py")
    assert cursor.rowcount == 1
    connection.rollback()
    cursor.execute("SELECT COUNT(*) FROM dbo.py")
    assert cursor.fetchone()[0] == 1

    cursor.executemany("INSERT INTO dbo.py (name, price) VALUES (%s, %s)", [(f"n{i}", decimal.Decimal(i)) for i in range(500)])
    connection.commit()
    cursor.execute("SELECT SUM(price), COUNT(*) FROM dbo.py")
    assert cursor.fetchone() == (decimal.Decimal("124762.34"), 501)

    for sql, number in [
        ("SELECT * FROM dbo.absent", 208),
        ("SELECT absent FROM dbo.py", 207),
        ("SELECT 1/0", 8134),
        ("SELEC * FROM dbo.py", 102),
        ("EXEC dbo.absent_procedure", 2812),
        ("INSERT INTO dbo.py (name) VALUES (NULL)", 515),
        ("INSERT INTO dbo.py (name) VALUES (REPLICATE('x', 41))", 2628),
    ]:
        try:
            cursor.execute(sql)
            cursor.fetchall()
        except pymssql.Error as error:
            assert error.args[0] == number, (sql, error)
        else:
            raise AssertionError(f"{sql} did not fail")
        connection.rollback()

try:
    pymssql.connect(server=host, port=port, user="sa", password="wrong", database="shop")
except pymssql.Error as error:
    assert "18456" in str(error) or "Login failed" in str(error), error
else:
    raise AssertionError("a wrong password was taken")
print("ok")
