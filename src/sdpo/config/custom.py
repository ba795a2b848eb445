"""A setting that names a function of the user's own: the door of each plug point. docs/extending.md
has an example of each."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from sdpo.config.base import Config


class CustomConfig(Config):
    path: str
    """The function, as `package.module:name` or `folder/file.py:name`. config.json records a hash
    of its file, and a run with another one is not continued."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of every call: booleans, numbers, strings and lists of these."""

    @field_validator("options")
    @classmethod
    def _are_plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            for item in value if isinstance(value, list) else [value]:
                if not isinstance(item, bool | int | float | str):
                    raise ValueError(
                        f"{name} = {value!r}: give a boolean, a number, a string, or a list of them"
                    )
        return options
