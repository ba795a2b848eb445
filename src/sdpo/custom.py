"""What a setting names outside the package: `package.module:name` or `folder/file.py:name`.

A module is imported once in a process, or anew for another run when its file has changed; the hash
of what was imported is what a run records.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sdpo.errors import ConfigError

_HASHES: dict[str, str] = {}
"""Of each file when this process imported it, or first looked at it."""
_FILES: dict[str, str] = {}
"""Module of each file that was named as a file."""


def forget_changed_files() -> None:
    """From now on a file that was named as a file and has changed is imported anew. For the start
    of a run: within one, everything must stay what it was."""
    for file, name in list(_FILES.items()):
        if not Path(file).is_file() or _hash(Path(file).read_bytes()) != _HASHES[file]:
            del sys.modules[name], _HASHES[file], _FILES[file]


def load_object(key: str, path: str) -> object:
    """What `path`, the value of the setting `key`, names. Raises `ConfigError`."""
    source, _, name = path.rpartition(":")
    if not source or not name:
        raise ConfigError(f"{key} = {path!r}: write package.module:Name or folder/file.py:Name")
    found: object = _module(key, path)
    for part in name.split("."):
        if not hasattr(found, part):
            public = ", ".join(k for k in vars(_module(key, path)) if not k.startswith("_"))
            raise ConfigError(
                f"{key} = {path!r}: {source} has no {name!r}; it has {public or 'nothing'}"
            )
        found = getattr(found, part)
    return found


def load_function(
    section: str, path: str, options: Mapping[str, Any], *arguments: str
) -> Callable[..., Any]:
    """The function that `section.path` names, with `options` bound; it is called with `arguments`
    by position. Raises `ConfigError` where its signature does not take them."""
    found = load_object(f"{section}.path", path)
    given = [*arguments, *(f"{name}={value!r}" for name, value in options.items())]
    call = f"{path.rpartition(':')[2]}({', '.join(given)})"
    if inspect.isclass(found) or not callable(found):
        raise ConfigError(
            f"{section}.path = {path!r} has the type {type(found).__name__}; name a function that "
            f"can be called as {call}"
        )
    try:
        inspect.signature(found).bind(*arguments, **options)
    except TypeError as error:
        raise ConfigError(
            f"{section}.path = {path!r} is called as {call}, and takes "
            f"{inspect.signature(found)}: {error}; change the function or {section}.options"
        ) from error
    return functools.partial(found, **options)


def source_of(key: str, path: str) -> dict[str, str]:
    """File and SHA-256 of the module that `path` names; not of what it imports. Raises
    `ConfigError` when the file has changed since this process imported it."""
    file = _module(key, path).__file__
    if file is None:  # A namespace package has no file, and nothing that could be named in it.
        return {"path": path, "file": "", "sha256": ""}
    if _HASHES[file] != _hash(Path(file).read_bytes()):
        raise ConfigError(
            f"{key} = {path!r}: {file} has changed since this process imported it; start a new one"
        )
    return {"path": path, "file": file, "sha256": _HASHES[file]}


def _module(key: str, path: str) -> ModuleType:
    source = path.rpartition(":")[0]
    module = _load_file(key, path) if source.endswith(".py") else _load(key, path)
    if module.__file__ is not None and module.__file__ not in _HASHES:
        _HASHES[module.__file__] = _hash(Path(module.__file__).read_bytes())
    return module


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _load(key: str, path: str) -> ModuleType:
    name = path.rpartition(":")[0]
    # Unlike `python -m`, a console script does not search the current directory, where a user's
    # module usually is. The directory stays on the path for what that module imports later.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(missing + "."):
            raise ConfigError(
                f"{key} = {path!r}: no module {missing!r} in {here} or among installed packages"
            ) from error
        raise ConfigError(
            f"{key} = {path!r}: {name} imports {missing!r}, which is not installed"
        ) from error
    except (TypeError, ValueError) as error:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"{key} = {path!r}: {name!r} is not a module name") from error
        raise


def _load_file(key: str, path: str) -> ModuleType:
    file = Path(path.rpartition(":")[0])
    if not file.is_file():
        raise ConfigError(f"{key} = {path!r}: {file} does not exist in {Path.cwd()}")
    # The file may import its neighbours.
    folder = str(file.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # Not under its own name: a user's `json.py` must not become everyone's `json`.
    where = str(file.resolve())
    name = f"sdpo_custom_{file.stem}_{_hash(where.encode())[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    content = file.read_bytes()
    module = ModuleType(name)
    module.__file__ = where
    sys.modules[name] = module
    try:
        # Compiled from the very bytes that are hashed: a cached file is told from another by size
        # and the second it was written in.
        exec(compile(content, where, "exec"), vars(module))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ModuleNotFoundError):
            raise ConfigError(
                f"{key} = {path!r}: {file} imports {error.name!r}, which is not installed"
            ) from error
        raise
    _HASHES[where], _FILES[where] = _hash(content), name
    return module
