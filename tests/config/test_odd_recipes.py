"""Odd values in recipes and overrides: one clear error each, and what is shown can be loaded."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from sdpo.config.load import load, resolve
from sdpo.config.toml import to_toml
from sdpo.errors import ConfigError

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("name", ["deep.toml", "deep.json"])
def test_a_deeply_nested_recipe_is_one_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(f"x = {DEEP}" if name.endswith("toml") else f'{{"x": {DEEP}}}')
    with pytest.raises(ConfigError, match=rf"{name}: too deeply nested"):
        load([str(path)])


def test_a_deeply_nested_override_is_one_error() -> None:
    with pytest.raises(ConfigError, match="too deeply nested"):
        load([f"optim.lr={DEEP}"])


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_setting_that_is_not_finite_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr = .*finite number"):
        load([f"optim.lr={value}"])


@pytest.mark.parametrize("key", ["a b", "a\nb", "a.b", "a]", 'a"b', "é", "", "a#b"])
def test_keys_that_toml_must_quote_survive_being_shown(key: str) -> None:
    config = resolve({"model": {"chat_template_kwargs": {key: True, "plain_key": 1}}})
    loaded = load([])
    shown = to_toml(type(loaded)(config=config, origins={}))
    kwargs = tomllib.loads(shown)["model"]["chat_template_kwargs"]
    assert kwargs == {key: True, "plain_key": 1}
