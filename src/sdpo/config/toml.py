"""A resolved config as TOML that can be loaded again, each value with its origin as a comment.

Writes what `RunConfig` can hold (numbers, texts, booleans, arrays and sections), not all of TOML.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from sdpo.config.load import Loaded, dump
from sdpo.printable import printable_json

_COMMENT_COLUMN = 44
"""Where origins are aligned; longer values push theirs to the right."""


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_WIDTH = 98
"""Of an explanation, which stands on lines of its own."""


def to_toml(loaded: Loaded, *, explain: bool = False) -> str:
    """The whole config, section after section; with `explain`, what each key means stands above it.

    Example:
        to_toml(load(["quickstart"]))    # "seed = 0                    # default\\n..."
    """
    docs = dict(_docs(loaded.config)) if explain else {}
    return "\n".join(_section(dump(loaded.config), "", loaded.origins, docs)) + "\n"


def _docs(config: BaseModel, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and meaning of everything in `config`."""
    for key, field in type(config).model_fields.items():
        name = f"{path}.{key}" if path else key
        if field.description:
            yield name, field.description
        value = getattr(config, key)
        if isinstance(value, BaseModel):
            yield from _docs(value, name)


def _comment(text: str | None) -> list[str]:
    lines = textwrap.wrap(" ".join(text.split()), _WIDTH) if text else []
    return [f"# {line}" for line in lines]


def _section(
    values: Mapping[str, Any], path: str, origins: Mapping[str, str], docs: Mapping[str, str]
) -> Iterator[str]:
    """Plain values first, as TOML wants it, then the sections inside."""
    for key, value in values.items():
        if _is_section(value):
            continue
        name = f"{path}.{key}" if path else key
        yield from _comment(docs.get(name))
        line = f"{_key(key)} = {_literal(value)}"
        yield f"{line:<{_COMMENT_COLUMN - 1}} # {_origin(name, origins)}"
    for key, value in values.items():
        if _is_section(value):
            name = f"{path}.{key}" if path else key
            yield ""
            yield from _comment(docs.get(name))
            yield f"[{'.'.join(map(_key, name.split('.')))}]"
            yield from _section(value, name, origins, docs)


def _key(key: str) -> str:
    """A key as TOML writes it: quoted unless it is a bare word."""
    return key if _BARE_KEY.fullmatch(key) else _literal(key)


def _is_section(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _origin(name: str, origins: Mapping[str, str]) -> str:
    origin = origins.get(name, "default")
    # A path may hold anything; a comment is one line.
    return " ".join(origin.split())


def _literal(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return printable_json(value)
        case list():
            return f"[{', '.join(map(_literal, value))}]"
        case Mapping():
            return "{}"
    raise AssertionError(f"{type(value).__name__} is not a config value")
