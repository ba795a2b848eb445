"""Recipes and overrides to a `RunConfig`, with the origin of every value and errors that name the
cure.

Precedence: class default < files left to right < `key=value` overrides. Literals in overrides are
TOML's; a bare word that is not a TOML literal is taken as a string.
"""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Any, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sdpo.config.schema import RunConfig
from sdpo.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A resolved config and where each explicitly set key came from.

    Example:
        Loaded(config=RunConfig(), origins={"optim.lr": "quickstart.toml"})
    """

    config: RunConfig
    origins: Mapping[str, str]


def builtin_recipes() -> dict[str, Path]:
    """Recipes that ship with the package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def load_config(arguments: Sequence[str], settings: Mapping[str, Any] | None = None) -> RunConfig:
    """The config that recipes and overrides in `arguments` resolve to; see `load`."""
    return load(arguments, settings).config


def load(arguments: Sequence[str], settings: Mapping[str, Any] | None = None) -> Loaded:
    """Read recipes (built-in names, .toml files, a run's config.json) and `key=value` overrides,
    left to right, then `settings`: values by key, sections as mappings (`{"optim": {"lr": 1e-5}}`).

    Raises `ConfigError` for a missing file, bad TOML, an unknown key (with a suggestion and the
    section's keys) or a bad value.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    overrides: dict[str, Any] = {}
    overridden: dict[str, str] = {}
    _check_spaces(arguments)
    for argument in arguments:
        if "=" in argument:
            key, _, literal = argument.partition("=")
            _set(overrides, key.strip(), _literal(literal.strip()), argument)
            overridden[key.strip()] = "command line"
        else:
            values = _read(argument)
            _merge(merged, values)
            origins |= dict.fromkeys(_leaves(values), argument)
    for key, value in (settings or {}).items():
        name, plain = _setting(key, value)
        _merge(overrides, _nested(name, plain))
        overridden |= dict.fromkeys(_leaves(_nested(name, plain)), "Python")
    _merge(merged, overrides)
    # A section that started anew has lost keys that an earlier file set.
    kept = set(_leaves(merged))
    found = {key: origin for key, origin in (origins | overridden).items() if key in kept}
    return Loaded(config=resolve(merged), origins=found)


def _check_spaces(arguments: Sequence[str]) -> None:
    """Raises `ConfigError` where a shell has cut a setting in pieces, or `=` was left out."""
    for place, argument in enumerate(arguments):
        if argument not in setting_keys() or Path(argument).exists():
            continue
        after = [part for part in arguments[place + 1 : place + 3] if part != "="]
        value = after[0].lstrip("=") if after else "VALUE"
        raise ConfigError(
            f"{argument!r} is a setting and needs its value in the same word, without spaces: "
            f"write {argument}={value}"
        )


def settings_like(name: str) -> list[str]:
    """Keys that are `name` or end in it (`lr`: `optim.lr`), at most three."""
    if name in setting_keys():
        return [name]
    return sorted(key for key in setting_keys() if key.rpartition(".")[2] == name)[:3]


@functools.cache
def setting_keys() -> frozenset[str]:
    """Every key of a config with default sections."""
    return frozenset(flatten(RunConfig()))


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """`config` with other values by key, as `load` takes them."""
    if not settings:
        return config
    values = dump(config)
    for key, value in settings.items():
        _merge(values, _nested(*_setting(key, value)))
    return resolve(values)


def resolve(values: Mapping[str, Any]) -> RunConfig:
    """A `RunConfig` from nested plain values. Raises `ConfigError` naming every wrong key and its
    fix."""
    try:
        return RunConfig.model_validate(_complete(RunConfig, values))
    except ValidationError as error:
        # A wrong key inside `X | "off"` is also reported as not being "off"; that line would only
        # confuse.
        relevant = [
            e for e in error.errors() if not str(("", *e["loc"])[-1]).startswith("literal[")
        ]
        raise ConfigError("\n".join(_explain(e) for e in relevant or error.errors())) from None


def dump(config: BaseModel) -> dict[str, Any]:
    """Nested plain values that `resolve` turns back into an equal config."""
    return json.loads(config.model_dump_json())


def _read(name: str) -> dict[str, Any]:
    recipes = builtin_recipes()
    path = recipes.get(name, Path(name))
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        inside = path.parent.glob("*/config.json") if Path(name).is_dir() else ()
        if runs := sorted(str(each.parent) for each in inside):
            raise ConfigError(
                f"{name!r} holds runs and is none itself; name one: {', '.join(runs)}"
            )
        close = difflib.get_close_matches(name, recipes, n=1)
        raise ConfigError(
            f"recipe {name!r} is neither a built-in recipe nor a file"
            + (f"; did you mean {close[0]!r}?" if close else ";")
            + f" built-in: {', '.join(recipes)}"
        )
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return tomllib.loads(text)
        values = json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: too deeply nested for a recipe") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no sections but a {type(values).__name__}")
    return values.get("config", values)


def _literal(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError:
        raise ConfigError(f"override value {text[:20]}...: too deeply nested") from None


def _setting(key: str, value: Any) -> tuple[str, Any]:
    """A setting as Python gives it, in TOML's types."""
    if isinstance(value, Mapping):
        return key, dict(_setting(str(name), inner) for name, inner in value.items())
    if isinstance(value, tuple):
        return key, list(value)
    return key, str(value) if isinstance(value, Path) else value


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _set(target: dict[str, Any], key: str, value: Any, argument: str) -> None:
    *parents, leaf = key.split(".")
    if not leaf or not all(parents):
        raise ConfigError(
            f"override {argument!r}: write section.key=value, for instance optim.lr=1e-5"
        )
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"override {argument!r}: {parent!r} already has a plain value")
    target[leaf] = value


def _merge(
    target: dict[str, Any], source: Mapping[str, Any], cls: type[BaseModel] | None = RunConfig
) -> None:
    """Merge sections of `cls` deeply. A section whose `type` changes keeps only the keys that both
    variants inherit: elsewhere one name (`mix`) may mean two things."""
    for key, value in source.items():
        if not isinstance(value, Mapping):
            target[key] = value
            continue
        old = target.get(key)
        old = target[key] = dict(old) if isinstance(old, dict) else {}
        if cls is None or key not in cls.model_fields:
            _merge(old, value, None)
            continue
        default = _default(cls, key)
        before = _section(cls, key, old.get("type", default and _tag(type(default))))
        after = _section(cls, key, value["type"]) if "type" in value else before
        if after is not before:
            for name in [name for name in old if not _inherit(before, after, name)]:
                del old[name]
        _merge(old, value, after)


def _inherit(before: type[BaseModel] | None, after: type[BaseModel] | None, name: str) -> bool:
    """Whether both classes take the field `name` from one base class, neither declaring it anew."""
    if before is None or after is None:
        return False
    first, second = (
        next((base for base in cls.__mro__ if name in get_annotations(base)), None)
        for cls in (before, after)
    )
    return first is not None and first is second


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    leaves = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves.extend(_leaves(value, f"{prefix}{key}."))
        else:
            leaves.append(prefix + key)
    return leaves


def _explain(error: ErrorDetails) -> str:
    """One line for one pydantic error: the key as the user wrote it, the value, the fix."""
    cls, path = _walk(error["loc"])
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = list(cls.model_fields)
        close = difflib.get_close_matches(path[-1], known, n=1)
        if kinds := _kinds_with(path):
            name = ".".join(path[:-1])
            return (
                f"{key} belongs to {name}.type = {' or '.join(map(repr, kinds))}, and this is "
                f"{_tag(cls)!r}: add {name}.type={kinds[0]}. Keys of {name}: {', '.join(known)}"
            )
        section = ".".join(path[:-1]) or "the top level"
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"unknown key {key!r}.{hint} Keys of {section}: {', '.join(known)}"
    if error["type"] == "union_tag_invalid":
        tag, expected = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "")
        close = difflib.get_close_matches(str(tag), expected.split(", "), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{key}.type = {tag!r} is not known.{hint} Choose one of: {expected}"
    if error["type"] == "union_tag_not_found":
        return f"{key} needs a type; write {key}.type = ..."
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        known = list(cls.model_fields) if cls is not RunConfig else ["type"]
        return (
            f"{key} = {error['input']!r}: {key} is a section, not a value; write {key}.KEY=... "
            f"with one of: {', '.join(known)}"
        )
    if error["type"] == "tuple_type":
        return f"{key} = {error['input']!r}: a list is needed; write '{key}=[\"...\"]'"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"{key} is required: add it to the recipe or pass {key}=..."
    return f"{key} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _complete(cls: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the default variant's `type` (and its own settings) wherever a section leaves
    its type out.

    So `objective.divergence.top_k = 20` changes the default divergence instead of asking which one
    is meant.
    """
    completed = dict(values)
    for name, value in values.items():
        if name in cls.model_fields and isinstance(value, str) and _is_list(cls, name):
            completed[name] = [value]  # one word is a list of one
        if name not in cls.model_fields or not isinstance(value, Mapping):
            continue
        default = _default(cls, name)
        if default is not None and value.get("type", _tag(type(default))) == _tag(type(default)):
            value = {**default.model_dump(exclude_defaults=True), **value}
            if "type" in type(default).model_fields:
                value["type"] = _tag(type(default))
        inner = _section(cls, name, value.get("type"))
        completed[name] = value if inner is None else _complete(inner, value)
    return completed


def _is_list(cls: type[BaseModel], name: str) -> bool:
    annotation = cls.model_fields[name].annotation
    return tuple in {get_origin(part) for part in (annotation, *get_args(annotation))}


def _default(cls: type[BaseModel], name: str) -> BaseModel | None:
    """The section that `cls` has by default under `name`; None where it has none."""
    field = cls.model_fields[name]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return default if isinstance(default, BaseModel) else None


def _section(cls: type[BaseModel], name: str, tag: object = None) -> type[BaseModel] | None:
    """Class of the section `name` of `cls`; in a union the member whose `type` (or class name) is
    `tag`."""
    annotation = cls.model_fields[name].annotation
    members: list[type[BaseModel]] = [
        m for m in (annotation, *get_args(annotation)) if _is_config(m)
    ]
    if len(members) == 1:
        return members[0]
    named = [m for m in members if tag in (m.model_fields["type"].default, m.__name__)]
    return named[0] if named else None


def _kinds_with(path: Sequence[str]) -> list[str]:
    """The variants of the section around the key `path` that have such a key."""
    cls: type[BaseModel] | None = RunConfig
    for name in path[:-2]:
        cls = _section(cls, name) if cls is not None and name in cls.model_fields else None
    if cls is None or len(path) < 2 or path[-2] not in cls.model_fields:
        return []
    members = get_args(cls.model_fields[path[-2]].annotation)
    found = [m for m in members if _is_config(m) and path[-1] in m.model_fields]
    return [tag for m in found if (tag := _tag(m)) is not None]


def _walk(location: Sequence[int | str]) -> tuple[type[BaseModel], list[str]]:
    """The innermost config class of an error location, and the location without the union tags
    pydantic adds."""
    cls: type[BaseModel] = RunConfig
    path: list[str] = []
    # A member of a union that has a validator of its own is located as
    # `function-after[_validator(), SomeConfig]`.
    parts = [str(part) for part in location if not str(part).startswith("function-")]
    while parts:
        name = parts.pop(0)
        path.append(name)
        if name not in cls.model_fields:
            continue
        tag = parts[0] if parts else None
        inner = _section(cls, name, tag)
        if inner is None:
            continue
        cls = inner
        if tag is not None and tag in (cls.__name__, _tag(cls)):
            parts.pop(0)
    return cls, path


def _tag(cls: type[BaseModel]) -> str | None:
    field = cls.model_fields.get("type")
    return None if field is None else field.default


def _is_config(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def flatten(config: BaseModel) -> dict[str, Any]:
    """Leaf values by dotted key, in the order of the classes."""
    return _flat(dump(config))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
