"""From an answer's text to a verdict: the query runs in the sandbox, its rows are compared here.

Every query gets a process of its own, forked from a warm one (milliseconds), so that nothing of an
attempt is left for the next. Rows are the same when they are equal as a bag, or in order where the
question asks for one; column names do not count, column order does. Floats may differ in the last
digits.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

from sdpo.envs.code.compare import values_match
from sdpo.envs.code.extract import extract_program, strip_thinking
from sdpo.envs.sql import wording
from sdpo.envs.sql.formats import SCRIPT, SqlReference
from sdpo.envs.verdicts import accepted, failed
from sdpo.errors import TaskError
from sdpo.records import Verdict
from sdpo.sandbox import Limits, Outcome, Program
from sdpo.sandbox.local import LocalSandbox

Hints = Literal["none", "columns", "tables_and_columns"]

SQL_TAGS = frozenset({"sql", "sqlite", "sqlite3"})
MAX_SENT_BYTES = 2 << 20
"""Largest database that is sent along with every query: scripts, and files where the sandbox cannot
open any."""
BUILD_LIMITS = Limits(cpu_s=10.0)

_CATEGORIES = (
    ("no such table", "no_such_table"),
    ("no such column", "no_such_column"),
    ("has no column named", "no_such_column"),
    ("no such function", "no_such_function"),
    ("ambiguous column name", "ambiguous_column"),
    ("syntax error", "syntax_error"),
    ("unrecognized token", "syntax_error"),
    ("incomplete input", "syntax_error"),
    ("one statement at a time", "incorrect_format"),
)
"""Part of SQLite's message to the category; any other message is `query_error`."""
_STARTS = re.compile(
    r"(?:select|with|values|explain|insert|replace|update|delete|create|drop|alter|attach|detach"
    r"|pragma|begin|commit|rollback|savepoint|release|vacuum|analyze|reindex)\b",
    re.IGNORECASE,
)
"""How a bare answer begins when it is a statement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one query.

    Example:
        Answer(category="ran", rows=((3,),), num_columns=1, tables=frozenset({"books"}))
    """

    category: str
    """`ran`, or why there are no rows."""
    message: str = ""
    """SQLite's message, or what it refused."""
    rows: tuple[tuple[Any, ...], ...] = ()
    num_columns: int = 0
    tables: frozenset[str] = frozenset()
    """Names of the tables it read, as the database spells them."""

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.rows), self.num_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class _Database:
    """How the child gets at a database, and what is in it.

    Example:
        _Database(path="/data/shop.sqlite", data=None, tables={"books": ("title", "pages")})
    """

    path: str | None
    data: bytes | None
    tables: Mapping[str, tuple[str, ...]]


class SqlJudge:
    """Judges queries in one sandbox, which has `sqlite3` preloaded; thread-safe.

    Example:
        SqlJudge(sandbox).verdict(task.reference, "SELECT COUNT(*) FROM books")
    """

    def __init__(
        self,
        sandbox: LocalSandbox,
        *,
        hints: Hints = "tables_and_columns",
        time_limit_s: float = 2.0,
        max_rows: int = 10_000,
        max_feedback_chars: int = 2000,
    ) -> None:
        self.sandbox = sandbox
        self._hints: Hints = hints
        self._limits = Limits(cpu_s=time_limit_s)
        self._max_rows = max_rows
        self._max_feedback_chars = max_feedback_chars
        self._source = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
        self._lock = threading.Lock()
        self._databases: dict[Path, _Database] = {}
        self._right: dict[SqlReference, Answer] = {}

    def tables(self, database: Path) -> Mapping[str, tuple[str, ...]]:
        """Table or view to its columns, in the order they were made."""
        return self._database(database).tables

    def verdict(self, reference: SqlReference, text: str, *, is_truncated: bool = False) -> Verdict:
        """The verdict on an answer. Raises `TaskError` when the reference's own query fails."""
        query = _query(text, is_truncated)
        if query is None:
            if is_truncated:
                return self._failed("truncated", (), wording.TRUNCATED)
            return self._failed("incorrect_format", (), wording.INCORRECT_FORMAT)
        right = self.right_answer(reference)
        if right.category != "ran":
            raise TaskError(
                f"{reference.database.name}: the query of a task fails "
                f"({right.message or right.category}): {reference.query[:200]}; "
                "`sdpo check` names all such tasks"
            )
        got = self.run(reference.database, query)
        if got.category != "ran":
            return self._problem(got, reference, query)
        if got.num_columns == 0:
            return self._failed("incorrect_format", (), wording.INCORRECT_FORMAT)
        if got.num_columns == right.num_columns and same_rows(
            got.rows, right.rows, order_matters=reference.order_matters
        ):
            return accepted()
        about = self._about(reference, query)
        if reference.order_matters and same_rows(got.rows, right.rows, order_matters=False):
            return self._failed("wrong_order", about, wording.WRONG_ORDER)
        return self._failed("wrong_rows", about, wording.wrong_rows(got.size, right.size))

    def right_answer(self, reference: SqlReference) -> Answer:
        """What the reference's own query gives; run once."""
        with self._lock:
            known = self._right.get(reference)
        if known is None:
            known = self.run(reference.database, reference.query)
            with self._lock:
                self._right[reference] = known
        return known

    def run(self, database: Path, query: str) -> Answer:
        """What `query` gives on the database. Raises `TaskError` when that cannot be opened."""
        opened = self._database(database)
        arguments = [opened.path, opened.data, query, self._max_rows]
        outcome = self._call("ask", arguments, self._limits)
        match outcome.status:
            case "value":
                return _answer(outcome.value)
            case "exception":
                raise TaskError(f"{database}: cannot be opened: {_said(outcome)}")
            case "time_limit" | "memory_limit" | "output_limit":
                return Answer(category=outcome.status)
            case _:
                return Answer(category="query_error", message=wording.CRASH)

    def _problem(self, got: Answer, reference: SqlReference, query: str) -> Verdict:
        """The verdict on a query that gave no rows to compare."""
        about = self._about(reference, query)
        match got.category:
            case "incorrect_format":
                return self._failed(got.category, (), wording.INCORRECT_FORMAT)
            case "refused":
                return self._failed(got.category, (), wording.REFUSED.format(what=got.message))
            case "time_limit":
                says = wording.TIME_LIMIT.format(seconds=self._limits.cpu_s)
            case "memory_limit":
                says = wording.MEMORY_LIMIT
            case "row_limit":
                says = wording.ROW_LIMIT.format(rows=self._max_rows)
            case "output_limit":
                says = wording.OUTPUT_LIMIT
            case _:
                says = wording.sqlite_error(got.message)
        return self._failed(got.category, about, says)

    def _about(self, reference: SqlReference, query: str) -> tuple[str, ...]:
        """The lines about tables that `hints` allows."""
        match self._hints:
            case "none":
                return ()
            case "columns":
                words = {word.lower() for word in re.findall(r"\w+", query)}
                wanted = {name for name in self.tables(reference.database) if name.lower() in words}
            case "tables_and_columns":
                wanted = self.right_answer(reference).tables
            case _:
                assert_never(self._hints)
        return tuple(
            wording.table_line(name, columns)
            for name, columns in self.tables(reference.database).items()
            if name in wanted
        )

    def _failed(self, category: str, about: Sequence[str], says: str) -> Verdict:
        return failed(category, wording.feedback(about, says, self._max_feedback_chars))

    def _database(self, path: Path) -> _Database:
        with self._lock:
            if path not in self._databases:
                self._databases[path] = self._open(path)
            return self._databases[path]

    def _open(self, path: Path) -> _Database:
        data = None
        if path.suffix.lower() == SCRIPT:
            try:
                script = path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise TaskError(f"{path}: cannot read the script: {error}") from error
            data = self._ask("build", [script], path)
        elif not self.sandbox.can_read:
            data = path.read_bytes()
        if data is not None and len(data) > MAX_SENT_BYTES:
            raise _too_large(path)
        where = None if data is not None else str(path)
        tables = self._ask("tables", [where, data], path)
        return _Database(
            path=where, data=data, tables={name: tuple(columns) for name, columns in tables}
        )

    def _ask(self, function: str, arguments: list[Any], path: Path) -> Any:
        outcome = self._call(function, arguments, BUILD_LIMITS)
        if outcome.status == "output_limit":
            raise _too_large(path)
        if outcome.status != "value":
            raise TaskError(f"{path}: cannot be opened: {_said(outcome)}")
        return outcome.value

    def _call(self, function: str, arguments: list[Any], limits: Limits) -> Outcome:
        program = Program(source=self._source, mode="function", entry_point=function)
        (outcome,) = self.sandbox.run(program, [arguments], limits)
        return outcome


def same_rows(
    got: Sequence[Sequence[Any]], right: Sequence[Sequence[Any]], *, order_matters: bool
) -> bool:
    """Whether two results hold the same rows, equally often."""
    if len(got) != len(right):
        return False
    if order_matters:
        return values_match(got, right)
    if Counter(map(tuple, got)) == Counter(map(tuple, right)):
        return True
    # Floats that differ in their last digits; sorting pairs them.
    return values_match(sorted(got, key=_sort_key), sorted(right, key=_sort_key))


def _sort_key(row: Sequence[Any]) -> tuple[tuple[int, Any], ...]:
    """SQLite's own order of types: NULL, numbers, text, blobs."""
    return tuple(
        (0, 0)
        if value is None
        else (1, value)
        if isinstance(value, (int, float))
        else (2, value)
        if isinstance(value, str)
        else (3, bytes(value))
        for value in row
    )


def _query(text: str, is_truncated: bool) -> str | None:
    """The query in an answer: its last complete SQL block, or all of it when it is bare."""
    found = extract_program(text, SQL_TAGS)
    if found.program is not None:
        return found.program.strip() or None
    bare = strip_thinking(text).strip()
    if found.unclosed or is_truncated or not _STARTS.match(bare):
        return None
    return bare


def _answer(value: Any) -> Answer:
    """The child's word, by what it is."""
    if "refused" in value:
        return Answer(category="refused", message=value["refused"])
    if "error" in value:
        message = value["error"]
        category = next((name for part, name in _CATEGORIES if part in message), "query_error")
        return Answer(category=category, message=message)
    if value["rows"] is None:
        return Answer(category="row_limit")
    return Answer(
        category="ran",
        rows=tuple(tuple(row) for row in value["rows"]),
        num_columns=value["num_columns"],
        tables=frozenset(value["tables"]),
    )


def _too_large(path: Path) -> TaskError:
    return TaskError(
        f"{path}: a database above {MAX_SENT_BYTES >> 20} MiB is too large to send along with "
        f"every query; make a file of a script (sqlite3 {path.stem}.sqlite < {path.stem}.sql), and "
        "where the sandbox cannot open files take a kernel with Landlock"
    )


def _said(outcome: Outcome) -> str:
    if outcome.failure is None:
        return outcome.status.replace("_", " ")
    return f"{outcome.failure.kind}: {outcome.failure.message}"
