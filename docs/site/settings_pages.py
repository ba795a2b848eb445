"""The reference of settings and recipes, from the config classes: docstrings under fields,
defaults, types. No page of it is written by hand, so none can say what the code does not.

Pure: returns Markdown; `hooks.py` gives it to MkDocs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sdpo.config.base import Config
from sdpo.config.load import builtin_recipes, load_config
from sdpo.config.schema import RunConfig
from sdpo.describe import describe_objective
from sdpo.envs.code.formats import BUILTIN_SETS as code_sets
from sdpo.envs.sql.formats import BUILTIN_SETS as sql_sets

_PAPER = re.compile(r"\s*\bPaper: (.+?)\.?$", re.DOTALL)
_SIGNS = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt"}
_SYMBOLS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key in one variant of its section."""

    section: str
    """`objective.divergence`; empty at the top level."""
    name: str
    variant: str | None
    """Value of the section's `type`; None where the section has no variants."""
    kind: str
    """What may be given, in words."""
    default: str
    meaning: str
    """The docstring under the field, or under the field that it overrides."""


def sections() -> dict[str, list[Setting]]:
    """Every key of every variant by section, in the order of the classes."""
    found: dict[str, list[Setting]] = {}
    for setting in _walk(RunConfig, "", None):
        rows = found.setdefault(setting.section, [])
        if setting not in rows:
            rows.append(setting)
    return found


def settings_page() -> str:
    """The page of all settings."""
    lines = [
        "# Settings",
        "",
        "Every setting of a run, from the classes in `src/sdpo/config/`, which hold the only "
        "defaults. Set one in a recipe's TOML (`[optim]`, `lr = 1e-5`) or on the command line "
        "(`optim.lr=1e-5`); `sdpo config show RECIPE --explain` prints a recipe's values with "
        "their origin. Later files win over earlier ones, and `key=value` wins over all. An "
        "unknown key is an error that suggests the right one.",
        "",
        "Under a key stands what it takes, and under its default the value of the paper (arXiv "
        "2601.20802) where that states one. Where a section has variants, choose one with `type`; "
        "keys that belong to some of them only say so.",
        "",
    ]
    for section, rows in sections().items():
        lines += [f"## {section or 'The run itself'}", ""]
        variants = list(dict.fromkeys(row.variant for row in rows if row.variant))
        if variants:
            lines += _variants(section, rows)
        shared = _shared([row for row in rows if not (variants and row.name == "type")])
        if shared:
            lines += _table(section, shared, len(variants))
    return "\n".join(lines)


def recipes_page() -> str:
    """The page of built-in recipes: what each is for and what it needs."""
    lines = [
        "# Recipes",
        "",
        "Built in: `sdpo train NAME`. A recipe is a TOML file; yours may hold only what differs, "
        "since files and `key=value` are merged from left to right.",
        "",
    ]
    for name, path in builtin_recipes().items():
        text = path.read_text(encoding="utf-8")
        config = load_config([name])
        lines += [f"## {name}", "", text.splitlines()[0].lstrip("# ").rstrip(".") + ".", ""]
        lines += [f"- {line}" for line in _needs(config, tomllib.loads(text))]
        lines += ["", "```text"]
        lines += describe_objective(config)
        lines += ["```", "", f'??? note "{name}.toml"', "    ```toml"]
        lines += [f"    {line}" if line else "" for line in text.splitlines()]
        lines += ["    ```", ""]
    return "\n".join(lines)


def _needs(config: RunConfig, values: dict[str, Any]) -> Iterator[str]:
    yield f"Model: `{config.model.name}`."
    tasks = getattr(config.env, "tasks", "")
    is_built_in = tasks in code_sets or tasks in sql_sets
    yield f"Tasks: `env.type = {config.env.type}`, `{tasks}`" + (
        ", built in." if is_built_in else ", which you bring: pass `env.tasks=...`."
    )
    extras = [
        extra
        for extra, used in (
            ("lora", config.model.adapter.type == "lora"),
            ("math", config.env.type == "math"),
            ("vllm", config.rollout.engine.type == "vllm"),
        )
        if used
    ]
    yield "Extras: " + (", ".join(f"`sdpo[{extra}]`" for extra in extras) or "none") + "."
    if "discover" in values and "steps" not in values:
        yield f"A search: at most {config.discover.budget} attempts a task (`sdpo discover`)."
        return
    attempts = config.rollout.tasks_per_step * config.rollout.group_size
    yield (
        f"{config.steps} steps of {config.rollout.tasks_per_step} tasks x "
        f"{config.rollout.group_size} attempts: {config.steps * attempts:,} attempts of at most "
        f"{config.rollout.max_completion_tokens:,} tokens."
    )


def _walk(cls: type[BaseModel], section: str, variant: str | None) -> Iterator[Setting]:
    inner: list[tuple[type[BaseModel], str, str | None]] = []
    for name, field in cls.model_fields.items():
        members = [m for m in (field.annotation, *get_args(field.annotation)) if _is_config(m)]
        path = f"{section}.{name}" if section else name
        inner += [(m, path, _tag(m) if "type" in m.model_fields else None) for m in members]
        if members and len(members) >= len(get_args(field.annotation)):
            continue
        yield Setting(
            section=section,
            name=name,
            variant=variant,
            kind=_kind(field.annotation, field.metadata),
            default=_default(field),
            meaning=_meaning(cls, name),
        )
    for member, path, tag in inner:
        yield from _walk(member, path, tag)


def _variants(section: str, rows: list[Setting]) -> list[str]:
    default = _tag_of_default(section)
    lines = ["| `type` | |", "|---|---|"]
    for row in rows:
        if row.name == "type":
            mark = " (default)" if row.variant == default else ""
            lines.append(f"| `{row.variant}`{mark} | {cell(row.meaning)} |")
    return [*lines, ""]


def _shared(rows: list[Setting]) -> list[tuple[Setting, list[str]]]:
    """Equal keys of several variants once, with the variants they belong to."""
    found: dict[tuple[str, str, str, str], tuple[Setting, list[str]]] = {}
    for row in rows:
        key = (row.name, row.kind, row.default, row.meaning)
        found.setdefault(key, (row, []))[1].append(row.variant or "")
    return list(found.values())


def _table(section: str, rows: list[tuple[Setting, list[str]]], num_variants: int) -> list[str]:
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for row, variants in rows:
        key = f"{section}.{row.name}" if section else row.name
        anchor = f'<a id="{key}-{variants[0]}"></a>' if num_variants else f'<a id="{key}"></a>'
        only = (
            f" *With `{'`, `'.join(variants)}`.*"
            if num_variants and len(variants) < num_variants
            else ""
        )
        paper = _PAPER.search(row.meaning)
        meaning = _PAPER.sub("", row.meaning)
        stated = f"<br>paper: {cell(paper.group(1))}" if paper else ""
        lines.append(
            f"| {anchor}`{row.name}`<br>{row.kind} | {row.default}{stated} "
            f"| {cell(meaning)}{only} |"
        )
    return [*lines, ""]


def _meaning(cls: type[BaseModel], name: str) -> str:
    for base in cls.__mro__:
        fields = getattr(base, "model_fields", {})
        if name in fields and fields[name].description:
            return " ".join(cleandoc(fields[name].description).split())
    return ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return _code(value or '""')
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{each}"' for each in value) + "]`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if value != {} else "`{}`"


def _kind(annotation: Any, metadata: list[Any]) -> str:
    """What the key takes, as a reader writes it."""
    origin = get_origin(annotation)
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in get_args(annotation))
    if origin is tuple:
        members = [_kind(m, []) for m in get_args(annotation) if m is not Ellipsis]
        is_any_length = Ellipsis in get_args(annotation)
        return f"list of {members[0]}" if is_any_length else f"[{', '.join(members)}]"
    if origin is dict:
        return "table"
    if hasattr(annotation, "__metadata__"):
        return _kind(annotation.__origin__, [*annotation.__metadata__, *metadata])
    if _is_config(annotation):
        return "a section"
    if get_args(annotation):
        return " \\| ".join(_kind(member, metadata) for member in get_args(annotation))
    name = {str: "string", bool: "`true` \\| `false`", int: "integer", float: "number"}[annotation]
    bounds = [
        f"{_SYMBOLS[sign]} {getattr(part, sign):g}"
        for part in _flat(metadata)
        for cls, sign in _SIGNS.items()
        if isinstance(part, cls)
    ]
    return f"{name} {', '.join(bounds)}".strip()


def _flat(metadata: list[Any]) -> Iterator[Any]:
    for part in metadata:
        if isinstance(part, FieldInfo):
            yield from part.metadata
        else:
            yield part


def _tag(cls: type[BaseModel]) -> str:
    return str(cls.model_fields["type"].default)


def _tag_of_default(section: str) -> str | None:
    value: Any = RunConfig()
    for name in section.split("."):
        value = getattr(value, name, None)
    return getattr(value, "type", None)


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Config)


def _code(value: str) -> str:
    # A template's line breaks would end the table's row.
    return "`" + value.replace("\n", "\\n").replace("|", "\\|") + "`"


def cell(text: str) -> str:
    """`text` as one cell of a table; what stands in backticks is code already."""
    parts = text.replace("|", "\\|").replace("\n", " ").strip().split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)
