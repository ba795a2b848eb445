"""Runs the code blocks of a page as a reader would: in order, in one folder, with a tiny model.

A fence says what it is. `python` runs (one namespace a page); with `title="FILE"` it is written
to that file instead, as any language is. `sh` runs line by line. `toml` resolves as a recipe,
`json` is parsed. `text` is output or a formula. After `<!-- read, not run: WHY -->` commands are
only parsed and their settings resolved: for what needs a GPU, a service or minutes.
"""

from __future__ import annotations

import functools
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sdpo
from sdpo.api import as_config
from sdpo.cli import main, run
from sdpo.config.load import builtin_recipes, load_config
from sdpo.testing import byte_tokenizer, tiny_model

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

SMALL = (
    "model.dtype=float32", "model.device=cpu", "steps=1", "rollout.tasks_per_step=2",
    "rollout.group_size=2", "rollout.max_completion_tokens=8", "rollout.max_prompt_tokens=8192",
    "teacher.context.max_tokens=8192", "rollout.engine.type=local", "eval.samples=1",
    "eval.max_tasks=1", "optim.updates_per_step=1", "discover.budget=2", "discover.batch=2",
)  # fmt: skip
"""What makes any recipe a matter of a second."""

CONFIGURED = ("train", "eval", "check", "discover")
"""Commands and functions that take recipes."""

_FENCE = re.compile(
    r"^(?P<note><!-- read, not run: [^\n]+ -->\n\n?)?"
    r"(?P<indent> *)```(?P<head>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    title: str | None
    code: str
    is_only_read: bool


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        language, _, rest = match["head"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        indent = match["indent"]
        code = re.sub(f"^{indent}", "", match["code"], flags=re.MULTILINE)
        yield Block(
            line=text.count("\n", 0, match.start("head")) + 1,
            language=language,
            title=title and title[1],
            code=code,
            is_only_read=bool(match["note"]),
        )


class Reader:
    """Someone who follows a page in an empty folder."""

    def __init__(self, model: Path, monkeypatch: Any) -> None:
        self.small = (f"model.name={model}", *SMALL)
        self.model = model
        self.namespace: dict[str, Any] = {"__name__": "__page__"}
        for name in ("train", "evaluate", "check", "probe", "discover"):
            monkeypatch.setattr(sdpo, name, self._shrunk(getattr(sdpo, name)), raising=False)

    def follow(self, path: Path) -> None:
        """Do what every block of the page says."""
        for block in blocks(path):
            try:
                self.do(block)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{path.name}:{block.line}: {error!r}") from error

    def do(self, block: Block) -> None:
        if block.title is not None:
            target = Path(block.title)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.code, encoding="utf-8")
        match block.language:
            case "python" if block.title is None and not block.is_only_read:
                exec(compile(block.code, "<page>", "exec"), self.namespace)
            case "python":
                compile(block.code, block.title or "<page>", "exec")
            case "sh":
                for words in commands(block.code):
                    self.command(words, is_only_read=block.is_only_read)
            case "toml":
                Path("page.toml").write_text(block.code, encoding="utf-8")
                load_config(["page.toml"])
            case "json":
                for line in block.code.splitlines():
                    json.loads(line)
            case "text" | "csv" | "sql":
                assert not re.search(r"^(sdpo|pip|make) ", block.code, re.MULTILINE), "this is sh"
            case _:
                raise AssertionError(f"a fence of language {block.language!r}")

    def command(self, words: list[str], *, is_only_read: bool) -> None:
        """Run one line of a shell block, or prove that it could be run."""
        match words:
            case ["sdpo", *arguments]:
                self.sdpo(arguments, is_only_read=is_only_read)
            case ["torchrun", *rest]:
                place = rest.index("-m")
                assert rest[place + 1] == "sdpo"
                self.sdpo(rest[place + 2 :], is_only_read=True)
            case ["make", *targets]:
                known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                assert set(targets) <= set(known), targets
            case ["pip", "install", *packages]:
                named = [each for word in packages for each in re.findall(r"^sdpo\[(.+)\]", word)]
                assert set(",".join(named).split(",")) - {""} <= set(
                    PROJECT["project"]["optional-dependencies"]
                ), named
            case ["python", file]:
                runpy.run_path(file, run_name="__main__")
            case ["pytest", file]:
                subprocess.run([sys.executable, "-m", "pytest", "-q", file], check=True)
            case ["printf", *_]:
                subprocess.run(shlex.join(words[:-2]) + f" > {words[-1]}", shell=True, check=True)
            case [program, *_] if program in ("git", "docker", "ssh", "cd", "less", "scp", "mkdir"):
                pass
            case _:
                assert is_only_read, f"nobody knows how to try {words}"

    def sdpo(self, arguments: list[str], *, is_only_read: bool) -> None:
        name, *rest = arguments
        is_configured = name in CONFIGURED and not (rest and Path(rest[0].split("@")[0]).is_dir())
        # A demonstration of seconds and a server that runs until Ctrl-C.
        if is_only_read or name == "demo" or "--watch" in rest or "--help" in rest:
            if name == "config" or "--help" in rest:
                return
            main.commands[name].make_context(name, list(rest))
            if name in CONFIGURED:
                load_config([word for word in rest if not word.startswith("-")])
            return
        if "--model" in rest:
            place = rest.index("--model") + 1
            if not Path(rest[place]).is_dir():
                rest[place] = str(self.model)
        small = [*rest, *self.small, *self._few_tasks(rest)] if is_configured else rest
        if "--probe" in rest:
            small += ["--probe-tasks", "1", "--probe-samples", "1"]
        status = run([name, *small])
        assert status == 0, f"sdpo {name} {shlex.join(small)} exits with {status}"

    def _few_tasks(self, arguments: list[str]) -> list[str]:
        """Six of the 220 built-in code tasks where a recipe would judge all of them."""
        named = [word for word in arguments if "=" in word or word in builtin_recipes()]
        config = load_config([*named, *(word for word in arguments if word.endswith(".toml"))])
        if config.env.type != "code" or config.env.tasks != "python-basics":
            return []
        rows = (ROOT / "src/sdpo/envs/tasks/python_basics.jsonl").read_text(encoding="utf-8")
        by_split: dict[str, list[str]] = {}
        for row in rows.splitlines():
            by_split.setdefault(json.loads(row).get("split", "train"), []).append(row)
        few = [row for part in by_split.values() for row in part[:3]]
        Path("few.jsonl").write_text("\n".join(few), encoding="utf-8")
        return ["env.tasks=few.jsonl"]

    def _shrunk(self, function: Any) -> Any:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            texts = [a for a in arguments if isinstance(a, str)]
            if not any("." not in text and Path(text).is_dir() for text in texts):
                as_config(*[a for a in texts if a is not arguments[0] or "=" in a])
                arguments = (*arguments, *self.small)
            if function.__name__ == "probe":
                options |= {"tasks": 1, "samples": 1}
            return function(*arguments, **options)

        return call


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a shell block: lines joined at backslashes, comments and variables off."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        # What a reader pipes the output into is the reader's.
        words = words[: words.index("|")] if "|" in words else words
        if words:
            words[0] = words[0].removeprefix(".venv/bin/")
            yield words


def save_model(folder: Path) -> Path:
    """A random tiny model that reads 16,384 bytes, so that no page's prompt is too long."""
    model = tiny_model()
    model.config.max_position_embeddings = 16384
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def pages() -> list[Path]:
    """Pages written by hand."""
    return sorted(path for path in DOCS.rglob("*.md") if "site" not in path.parts)
