"""What runs in the sandbox: one query on one database, read only; its rows or what was wrong.

Sent there as text (`judge.py`), so it imports the standard library only. A query cannot run Python,
so what this answers is as true as SQLite; limits of time and memory are the sandbox's.
"""

from __future__ import annotations

import sqlite3
from typing import Any
from urllib.parse import quote

MAX_VALUE_BYTES = 16 << 20
"""Longest text or blob that SQLite makes or reads."""
MAX_QUERY_BYTES = 100_000
READING = (
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
)
"""All that a query may do."""
WRITING = (
    "ALTER_TABLE", "ANALYZE", "ATTACH", "CREATE_INDEX", "CREATE_TABLE", "CREATE_TEMP_INDEX",
    "CREATE_TEMP_TABLE", "CREATE_TEMP_TRIGGER", "CREATE_TEMP_VIEW", "CREATE_TRIGGER",
    "CREATE_VIEW", "CREATE_VTABLE", "DELETE", "DETACH", "DROP_INDEX", "DROP_TABLE",
    "DROP_TEMP_INDEX", "DROP_TEMP_TABLE", "DROP_TEMP_TRIGGER", "DROP_TEMP_VIEW", "DROP_TRIGGER",
    "DROP_VIEW", "DROP_VTABLE", "INSERT", "PRAGMA", "REINDEX", "SAVEPOINT", "TRANSACTION",
    "UPDATE",
)  # fmt: skip
"""What else SQLite asks leave for; the names of its constants."""
NAMES = {getattr(sqlite3, f"SQLITE_{name}"): name.replace("_", " ") for name in WRITING}
FORBIDDEN_FUNCTIONS = ("load_extension", "fts3_tokenizer", "readfile", "writefile", "edit")


def connect(path: str | None, data: bytes | None) -> sqlite3.Connection:
    """A connection that only reads: to the file at `path`, or to a copy of the database `data`."""
    if data is not None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.deserialize(data)
    else:
        # Immutable: no locks and no journal, which would need system calls that the jail refuses.
        uri = f"file:{quote(str(path))}?mode=ro&immutable=1"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    # Databases found in the wild hold bytes of any encoding.
    connection.text_factory = lambda text: text.decode(errors="replace")
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchall()
    return connection


def build(script: str) -> bytes:
    """The database that an SQL script makes."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(script)
    return connection.serialize()


def tables(path: str | None, data: bytes | None) -> list[Any]:
    """(name, its columns) of every table and view, in the order they were made."""
    connection = connect(path, data)
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
        " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"
    ).fetchall()
    return [
        (name, [row[1] for row in connection.execute(f"PRAGMA table_info({_quoted(name)})")])
        for (name,) in names
    ]


def ask(path: str | None, data: bytes | None, query: str, max_rows: int) -> dict[str, Any]:
    """`{"rows", "num_columns", "tables"}` of a query that ran, `{"rows": None}` of one with more
    than `max_rows`, else `{"error": SQLite's message}` or `{"refused": what it tried}`.

    `tables` are those that the query reads. What cannot be opened raises.
    """
    connection = connect(path, data)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_QUERY_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    read: set[str] = set()
    refused: list[str] = []

    def allow(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        is_function = action == sqlite3.SQLITE_FUNCTION
        if action not in READING or (is_function and str(second).lower() in FORBIDDEN_FUNCTIONS):
            refused.append(str(second) if is_function else NAMES.get(action, "a command"))
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_READ and first:
            read.add(first)
        return sqlite3.SQLITE_OK

    connection.set_authorizer(allow)
    try:
        cursor = connection.execute(query)
        rows = cursor.fetchmany(max_rows + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        return {"refused": refused[0]} if refused else {"error": str(error)}
    if refused:
        return {"refused": refused[0]}
    if len(rows) > max_rows:
        return {"rows": None}
    # A comment alone is a statement without columns.
    width = len(cursor.description or ())
    return {"rows": rows, "num_columns": width, "tables": sorted(read)}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
