"""Files of questions to tasks: our own rows, and Spider and BIRD as they are downloaded.

    {"id": "7", "question": "How many books are there?", "database": "shop.sqlite",
     "query": "SELECT COUNT(*) FROM books", "order_matters": false, "split": "train"}

`database` is a `.sqlite`, `.sqlite3` or `.db` file or an `.sql` script, beside the task file unless
absolute. Spider and BIRD name it by `db_id`, BIRD calls the query `SQL` and adds `evidence`; keys
that are not mentioned here are passed over. No database is opened here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sdpo.envs.table import Line, id_of, read_lines, text_of
from sdpo.errors import TaskError
from sdpo.records import Message, Task

BUILTIN_SETS = {"company": Path(__file__).parents[1] / "tasks" / "company.jsonl"}
FOLDER_FILES = {
    "train.json": "train",
    "train_spider.json": "train",
    "train_others.json": "train",
    "dev.json": "eval",
    "mini_dev_sqlite.json": "eval",
}
"""Files of a Spider or BIRD folder to the split their rows are."""
DATABASE_FOLDERS = (
    "database", "databases", "train_databases", "dev_databases", "test_database",
)  # fmt: skip
SUFFIXES = (".sqlite", ".sqlite3", ".db")
SCRIPT = ".sql"

REQUEST = "Answer with one SQL query only."
"""Ends every question."""
WORKED_EXAMPLES = (
    ("How many books have more than 100 pages?", "SELECT COUNT(*) FROM books WHERE pages > 100"),
    (
        "List the titles of books in the genre 'crime'.",
        "SELECT title FROM books WHERE genre = 'crime'",
    ),
)
"""Two questions about another database, with right answers."""
WORKED_TABLES = "books(title, genre, pages)"
"""Their tables, listed where the prompt lists the task's."""

_ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlReference:
    """What the judge needs of a question; `Task.reference`.

    Example:
        SqlReference(database=Path("/data/shop.sqlite"), query="SELECT COUNT(*) FROM books",
                     order_matters=False)
    """

    database: Path
    """Absolute path of a database or of a script that makes one."""
    query: str
    """A query that returns the right rows."""
    order_matters: bool


def read_tasks(name: str) -> list[Line]:
    """The rows of a built-in set, file or folder.

    A row of a folder gets the split of its file; when all files are of one split, they are split
    like rows without one. Raises `TaskError` when there is nothing to read.
    """
    path = BUILTIN_SETS.get(name, Path(name))
    if not path.is_dir():
        if not path.exists():
            raise TaskError(
                f"env.tasks = {name!r} does not exist; give {', '.join(BUILTIN_SETS)}, a .json or "
                ".jsonl file, or a Spider or BIRD folder"
            )
        return list(read_lines(path))
    files = [
        each / file
        for each in (path, *sorted(inner for inner in path.iterdir() if inner.is_dir()))
        for file in FOLDER_FILES
        if (each / file).is_file()
    ]
    if not files:
        raise TaskError(
            f"env.tasks = {name!r} has none of {', '.join(FOLDER_FILES)}; give the folder that "
            "holds them, or a .json or .jsonl file"
        )
    is_split = len({FOLDER_FILES[file.name] for file in files}) > 1
    return [_of_folder(line, file, is_split) for file in files for line in read_lines(file)]


def _of_folder(line: Line, file: Path, is_split: bool) -> Line:
    """A row with an id, which Spider's lack and BIRD's repeat between files."""
    row = {**line.row, "id": f"{file.stem}-{line.number}"}
    if is_split:
        row["split"] = FOLDER_FILES[file.name]
    return Line(path=line.path, number=line.number, row=row)


def parse_task(line: Line, *, uses_evidence: bool, shows_examples: bool) -> Task:
    """The task of one row. Raises `TaskError` naming file, line and key."""
    question = text_of(line, "question").strip()
    key = "SQL" if "SQL" in line.row and "query" not in line.row else "query"
    database = _database(line)
    evidence = line.row.get("evidence") or ""
    if not isinstance(evidence, str):
        raise line.error("evidence", f"expected a string or null, got {evidence!r:.60}")
    asked = f"{question} {REQUEST}"
    if uses_evidence and evidence.strip():
        asked = f"{question}\nEvidence: {evidence.strip()}\n{REQUEST}"
    query = text_of(line, key).strip()
    return Task(
        id=id_of(line, f"{database.stem}: {question}"),
        messages=(*(worked_examples() if shows_examples else ()), _user(asked)),
        reference=SqlReference(
            database=database, query=query, order_matters=_order_matters(line, key, query)
        ),
        metadata={"family": database.stem},
    )


def worked_examples() -> tuple[Message, ...]:
    """`WORKED_EXAMPLES` as earlier turns of the conversation."""
    return tuple(
        message
        for question, query in WORKED_EXAMPLES
        for message in (
            _user(f"{question} {REQUEST}"),
            {"role": "assistant", "content": query},
        )
    )


def with_tables(messages: tuple[Message, ...], tables: str) -> tuple[Message, ...]:
    """The conversation with `tables` before its last question, and their own before the worked
    examples."""
    last = len(messages) - 1
    return tuple(
        _user(f"Tables:\n{tables if place == last else WORKED_TABLES}\n\n{message['content']}")
        if message["role"] == "user"
        else message
        for place, message in enumerate(messages)
    )


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _order_matters(line: Line, key: str, query: str) -> bool:
    value = line.row.get("order_matters")
    if value is None:
        # Spider's own evaluation compares the order where the right query asks for one, BIRD's
        # never does.
        return "db_id" in line.row and key == "query" and bool(_ORDERED.search(query))
    if not isinstance(value, bool):
        raise line.error("order_matters", f"expected true or false, got {value!r:.60}")
    return value


def _database(line: Line) -> Path:
    """Absolute path of the row's database."""
    folder = Path(line.path).parent
    if "database" not in line.row and "db_id" in line.row:
        return _by_name(line, folder, text_of(line, "db_id"))
    path = folder / text_of(line, "database")
    if path.suffix.lower() not in (*SUFFIXES, SCRIPT):
        kinds = ", ".join((*SUFFIXES, SCRIPT))
        raise line.error("database", f"{path.name!r} is none of {kinds}")
    if not path.is_file():
        raise line.error("database", f"{path} does not exist; paths are relative to the task file")
    return path.resolve()


def _by_name(line: Line, folder: Path, name: str) -> Path:
    """The database `name` of a Spider or BIRD folder: NAME/NAME.sqlite in one of its usual
    places."""
    if Path(name).name != name:
        raise line.error("db_id", f"{name!r} is not the name of a folder")
    places = [base / each for base in (folder, folder.parent) for each in DATABASE_FOLDERS]
    for place in places:
        for suffix in SUFFIXES:
            path = place / name / f"{name}{suffix}"
            if path.is_file():
                return path.resolve()
    raise line.error(
        "db_id",
        f"there is no {name}/{name}.sqlite in {', '.join(DATABASE_FOLDERS)} beside the task file "
        "or one folder up; unpack the databases there",
    )
