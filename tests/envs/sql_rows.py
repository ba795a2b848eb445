"""Small databases and task files for the SQL environment's tests."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from sdpo.config import schema
from sdpo.envs.sql import SqlEnv

SHOP = """
CREATE TABLE stf_ppl (lbl TEXT, yrs INTEGER, pay REAL);
INSERT INTO stf_ppl VALUES ('Ann', 31, 10.5), ('Bob', 45, 20.25), ('Cleo', 45, 30.0);
CREATE TABLE stf_grp (grp TEXT, boss TEXT);
INSERT INTO stf_grp VALUES ('ops', 'Ann'), ('dev', 'Bob');
"""
COUNT = "SELECT COUNT(*) FROM stf_ppl WHERE yrs > 40"


def row(**changes: Any) -> dict[str, Any]:
    return {
        "id": "q1",
        "question": "How many employees are older than 40?",
        "database": "shop.sql",
        "query": COUNT,
        **changes,
    }


def make_database(path: Path, script: str = SHOP) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()
    return path


def write_rows(folder: Path, *rows: dict[str, Any], script: str = SHOP) -> Path:
    """A task file with `shop.sql` and `shop.sqlite` beside it."""
    (folder / "shop.sql").write_text(script)
    make_database(folder / "shop.sqlite", script)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def config_of(path: Path, **changes: Any) -> schema.SqlEnvConfig:
    return schema.SqlEnvConfig(tasks=str(path), **{"eval_fraction": 0.0, **changes})


def env_of(folder: Path, *rows: dict[str, Any], script: str = SHOP, **changes: Any) -> SqlEnv:
    return SqlEnv(config_of(write_rows(folder, *(rows or (row(),)), script=script), **changes))
