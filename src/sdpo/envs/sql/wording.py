"""The wording of SQL feedback: the columns of the tables it is about, then what went wrong.

In this order because a small model reads it so: the correction first, the mistake last and only in
SQLite's own words (docs/results.md has the numbers). The query and the rows that are right are not
known here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sdpo.envs.text import cut_middle, escape, safe

INCORRECT_FORMAT = "Answer with one SQL query only, nothing before or after it."
TRUNCATED = "The answer was too long and cut off. Answer with one SQL query only."
REFUSED = "The database can only be read: {what} is not allowed. Answer with one SELECT query."
TIME_LIMIT = "The query was stopped after {seconds:g} seconds."
MEMORY_LIMIT = "The query was stopped: it needed too much memory."
ROW_LIMIT = "The query was stopped: it returned more than {rows} rows."
OUTPUT_LIMIT = "The query was stopped: its rows hold too much text."
CRASH = "The query made SQLite crash."
WRONG_ORDER = "The query returned the right rows in the wrong order."
WRONG_VALUES = "The query ran and returned {rows}, as expected, but not the right values."
WRONG_COUNT = "The query ran and returned {got}; {expected} expected."

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def identifier(name: str) -> str:
    """A name as a query must write it."""
    if _PLAIN.fullmatch(name):
        return name
    return '"' + escape(name).replace('"', '""') + '"'


def table_line(name: str, columns: Sequence[str]) -> str:
    """One table of the database, as feedback says it."""
    return f"Table {identifier(name)} has the columns {', '.join(map(identifier, columns))}."


def table_head(name: str, columns: Sequence[str]) -> str:
    """One table of the database, as a prompt lists it."""
    return f"{identifier(name)}({', '.join(map(identifier, columns))})"


def sqlite_error(message: str) -> str:
    """SQLite's own message, which may quote the attempt."""
    return f"{safe(message)}."


def wrong_rows(got: Sequence[int], expected: Sequence[int]) -> str:
    """What differs between (rows, columns) of an answer and of the right one."""
    if tuple(got) == tuple(expected):
        return WRONG_VALUES.format(rows=_rows(got[0]))
    if got[1] == expected[1]:
        were = "was" if expected[0] == 1 else "were"
        return WRONG_COUNT.format(got=_rows(got[0]), expected=f"{expected[0]} {were}")
    were = "was" if expected[1] == 1 else "were"
    return WRONG_COUNT.format(got=_columns(got[1]), expected=f"{expected[1]} {were}")


def feedback(tables: Sequence[str], problem: str, limit: int) -> str:
    """Lines about tables, then what went wrong, in at most `limit` characters: the lines are cut
    first."""
    room = max(0, limit - len(problem) - 1)
    about = cut_middle("\n".join(tables), room) if tables else ""
    return cut_middle(f"{about}\n{problem}" if about else problem, limit)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"
