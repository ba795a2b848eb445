"""docs/algorithm.md names functions and recipes that exist."""

from __future__ import annotations

import ast
import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

from sdpo.config.load import dump, load

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")


def names_of(path: Path) -> set[str]:
    """Functions, classes and `Class.attribute` of a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            for child in node.body:
                if isinstance(child, ast.FunctionDef):
                    found.add(f"{node.name}.{child.name}")
                if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                    found.add(f"{node.name}.{child.target.id}")
    return found


def test_every_named_function_exists():
    named = re.findall(r"`([a-z_/]+\.py):([A-Za-z_.]+)`", TEXT)
    assert len(named) > 25
    missing = [
        f"{file}:{name}"
        for file, name in named
        if name not in names_of(ROOT / "src" / "sdpo" / file)
    ]
    assert missing == []


def test_every_named_recipe_exists():
    recipes = {path.stem for path in (ROOT / "src/sdpo/config/recipes").glob("*.toml")}
    named = set(re.findall(r"`(paper-[a-z*-]+)`", TEXT))
    assert named
    assert [n for n in named if not fnmatch.filter(recipes, n)] == []


RECIPES = sorted(path.stem for path in (ROOT / "src/sdpo/config/recipes").glob("paper-*.toml"))
ROW = re.compile(r"\| (?P<recipes>`paper-[^|]+) \| `(?P<key>[a-z_.]+)` \| `(?P<ours>[^`]+)` \|")


def rows_of(recipe):
    """The setting and our value of every row of the table that is about `recipe`."""
    return [
        (row["key"], tomllib.loads(f"value = {row['ours']}")["value"])
        for row in ROW.finditer(TEXT)
        if any(fnmatch.fnmatch(recipe, name) for name in re.findall(r"`([^`]+)`", row["recipes"]))
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_our_column_is_what_the_recipe_resolves_to(recipe):
    config = dump(load([recipe]).config)
    rows = rows_of(recipe)
    assert len({key for key, _ in rows}) == len(rows), "a setting has two rows"
    for key, ours in rows:
        value = config
        for part in key.split("."):
            value = value[part]
        assert value == ours, key


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_of_a_recipe_is_compared(recipe):
    assert set(load([recipe]).origins) - {key for key, _ in rows_of(recipe)} == {"run"}
