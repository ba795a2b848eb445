"""Nothing public is undocumented: keys, metrics, canaries, commands, names, pages."""

from __future__ import annotations

import fnmatch
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import reference_pages
import settings_pages
import yaml

from sdpo.cli import main
from sdpo.config.load import builtin_recipes, flatten
from sdpo.config.schema import RunConfig
from sdpo.metrics import names
from sdpo.metrics.canaries import RULES

ROOT = Path(__file__).parents[2]
ATTRIBUTES = {"rollout.text", "rollout.turns"}
"""Fields of records that pages name as a judge sees them."""


def test_every_key_is_documented_with_its_meaning():
    rows = [row for section in settings_pages.sections().values() for row in section]
    assert [f"{row.section}.{row.name} ({row.variant})" for row in rows if not row.meaning] == []
    documented = {f"{row.section}.{row.name}".lstrip(".") for row in rows}
    assert set(flatten(RunConfig())) <= documented
    page = settings_pages.settings_page()
    for row in rows:
        if row.name != "type":
            assert f"`{row.name}`" in page


def test_defaults_and_the_papers_values_stand_in_their_column():
    page = settings_pages.settings_page()
    assert "`group_size`<br>integer > 0 | `8`<br>paper: 8 | Attempts per task. |" in page
    assert "integer > 0 \\| `all` | `100`<br>paper: 100 without rich feedback, 20 with it |" in page


def test_every_key_that_a_page_names_exists():
    rows = [row for part in settings_pages.sections().values() for row in part]
    known = {f"{row.section}.{row.name}" for row in rows} | set(settings_pages.sections())
    tables = {f"{row.section}.{row.name}" for row in rows if row.kind == "table"}
    sections = "|".join(name for name in RunConfig.model_fields if name not in ("run", "seed"))
    wrong = []
    for path in (ROOT / "docs").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        for key in re.findall(rf"`((?:{sections})\.[a-z_0-9.]+[a-z0-9_])[ =`]", text):
            is_file = key.endswith((".py", ".jsonl", ".json", ".toml"))
            if (
                not is_file
                and key not in known | ATTRIBUTES
                and key.rpartition(".")[0] not in tables
            ):
                wrong.append(f"{path.name}: {key}")
    assert wrong == []


def test_every_metric_is_documented():
    page = reference_pages.metrics_page()
    known = re.findall(r"`([a-z_]+(?:/[a-z_0-9@*]+)?)`", page)
    found = {text for key, text in vars(names).items() if key.isupper() and isinstance(text, str)}
    assert len(found) > 40
    found = {f"{name}*" if name.endswith(("/", "@")) else name for name in found}
    assert sorted(n for n in found if not any(fnmatch.fnmatch(n, k) for k in known)) == []


def test_every_canary_is_documented():
    page = reference_pages.canaries_page()
    assert [rule.name for rule in RULES if f"\n## {rule.name}\n" not in page] == []
    assert "below 0.1 x start." in page
    assert "above 2.5 x start and start + 0.3." in page


def test_every_command_and_option_is_documented():
    page = reference_pages.commands_page()
    for path, command in reference_pages.commands(main, "sdpo"):
        part = page.partition(f"\n## {path}\n")[2].partition("\n## ")[0]
        assert command.help, path
        assert command.help.split()[0] in part
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help or path in ("sdpo eval", "sdpo credit", "sdpo compare"), path
                assert f"`{parameter.opts[0]}`" in part


def test_every_public_name_is_documented():
    page = reference_pages.api_page()
    for name, source in reference_pages.public_names().items():
        module, _, attribute = source.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name
        assert f"::: {source}\n" in page


def test_every_recipe_is_documented():
    page = settings_pages.recipes_page()
    assert [name for name in builtin_recipes() if f"\n## {name}\n" not in page] == []


def test_every_extra_is_documented():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(tomllib.loads(text)["project"]["optional-dependencies"]) - {"dev", "docs"}
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert [extra for extra in sorted(extras) if f"`{extra}`" not in page] == []


def test_every_package_has_a_line_on_the_map():
    rows = re.findall(r"^\| `([a-z_]+)` \| (.*) \|$", reference_pages.map_page(), re.MULTILINE)
    assert [name for name, text in rows if not text] == []
    packages = {p.parent.name for p in (ROOT / "src" / "sdpo").glob("*/__init__.py")}
    assert packages - {name for name, _ in rows} == {"testing"}


def test_navigation_and_folder_hold_the_same_pages():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"\S+\.md", yaml.safe_dump(yaml.safe_load(text)["nav"])))
    hooks = (ROOT / "docs" / "site" / "hooks.py").read_text(encoding="utf-8")
    generated = set(re.findall(r'"((?:reference|project)/[a-z-]+\.md|map\.md)"', hooks))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert named == written | generated


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_nobody(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", text)
        fetched = [tag for tag in tags if re.search(r"(?:src|href)=.?https?:", tag)]
        # What a theme or a plugin fetches from inside its own code: scripts, web fonts.
        fetched += re.findall(r"unpkg\.com|jsdelivr|cdnjs|googleapis|gstatic", text)
        assert fetched == [], page
    assert "reference/settings" in (tmp_path / "site" / "llms.txt").read_text(encoding="utf-8")
