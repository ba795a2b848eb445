"""Every accepted key changes something: each is turned once, in every variant it belongs to.

A new key without an entry in `key_turns.py` fails here, and so does one that nothing reads.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import pytest
from key_observers import make_world
from key_turns import BASE, NEEDS, TOGGLE, TURNS, TYPES, Turn

from sdpo.config.base import Config
from sdpo.config.load import dump, load_config
from sdpo.config.schema import RunConfig
from sdpo.errors import ConfigError

pytestmark = [
    # PEFT asks a model whether it checkpoints activations by the name that is going away.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:sandbox = none:UserWarning"),
]


@dataclass(frozen=True, kw_only=True)
class Key:
    """A leaf of the schema in one choice of variants."""

    path: str
    owner: type[Config]
    base: tuple[str, ...]
    """Overrides that choose the variants on the way."""
    variants: tuple[str, ...]
    """For a `type`: all values it can have."""

    @property
    def name(self) -> str:
        chosen = [o.removesuffix("'").rpartition("=")[2] for o in self.base if ".type=" in o]
        return "-".join([self.path, *chosen])


def keys(
    cls: type[Config] = RunConfig,
    path: str = "",
    base: tuple[str, ...] = (),
    tags: tuple[str, ...] = (),
) -> Iterator[Key]:
    """Every leaf key below `cls`, in every variant."""
    base = (*base, *NEEDS.get(cls.__name__, ()))
    for name, field in cls.model_fields.items():
        inner = f"{path}.{name}" if path else name
        sections = [
            member
            for member in (field.annotation, *get_args(field.annotation))
            if isinstance(member, type) and issubclass(member, Config)
        ]
        is_leaf = not sections or len(sections) < len(get_args(field.annotation))
        if is_leaf:
            yield Key(path=inner, owner=cls, base=base, variants=tags if name == "type" else ())
        types = [
            str(member.model_fields["type"].default) for member in sections if len(sections) > 1
        ]
        for place, section in enumerate(sections):
            chosen = (f"{inner}.type={types[place]}",) if types else ()
            yield from keys(section, inner, (*base, *chosen), tuple(types))


def turn_of(key: Key) -> Turn | None:
    for cls in key.owner.__mro__:
        found = TURNS.get(f"{cls.__name__}.{key.path.rpartition('.')[2]}")
        if found is not None:
            return found
    return None


MOST_KEYS = 162
"""Over all variants, the wording of templates aside."""

ALL = list(keys())
LEAVES = [key for key in ALL if not key.variants]
CHOICES = [key for key in ALL if key.variants]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture(scope="module")
def seen(world):
    """What an observer sees of overrides; equal configs are observed once."""
    known: dict[Any, Any] = {}

    def see(observe, overrides, *, again=False):
        try:
            config = load_config([o.format(folder=world) for o in (*BASE, *overrides)])
        except ConfigError as error:
            return f"refused: {error}"
        key = (observe.__name__, json.dumps(dump(config), sort_keys=True))
        if again or key not in known:
            known[key] = observe(config)
        return known[key]

    return see


def test_every_key_has_a_turn_and_every_turn_a_key():
    assert not [key.name for key in LEAVES if turn_of(key) is None]
    assert not {key.path.rpartition(".")[0] for key in CHOICES} ^ TYPES.keys()
    used = {id(turn_of(key)) for key in LEAVES}
    assert not [name for name, turn in TURNS.items() if id(turn) not in used]


def test_number_of_keys_stays_small():
    """Over all variants, the wording of templates aside: whoever adds a key says who turns it."""
    assert len({key.path for key in LEAVES if ".templates." not in key.path}) <= MOST_KEYS


@pytest.mark.parametrize("key", LEAVES, ids=lambda key: key.name)
def test_turning_the_key_has_an_effect(key, seen, world):
    turn = turn_of(key)
    assert turn is not None
    # A function of the user's own decides itself whether the attempt is shown.
    is_custom = "teacher.context.type=custom" in key.base
    needs = [n for n in turn.needs if not (is_custom and n == "teacher.context.attempt=true")]
    before = (*key.base, *needs)
    value = turn.value if turn.value != TOGGLE else _other(key.path, before, world)
    after = (*before, f"{key.path}={value}")
    assert seen(turn.observe, before) != seen(turn.observe, after)


@pytest.mark.parametrize("key", CHOICES, ids=lambda key: key.name)
def test_each_variant_differs_from_all_others(key, seen):
    section = key.path.rpartition(".")[0]
    turn = TYPES[section]
    needs = {key.base[-1]: ()}
    for other in CHOICES:
        # The same place in the schema under the same outer variants: only the last choice differs.
        if other.path == key.path and _outer(other) == _outer(key):
            needs[_choice(other)] = other.base
    own = seen(turn.observe, (*key.base, *turn.needs))
    for choice, base in needs.items():
        if base and choice != _choice(key):
            assert seen(turn.observe, (*base, *turn.needs)) != own, choice


def _other(path: str, overrides: tuple[str, ...], folder: object) -> str:
    """The opposite of the flag at `path`."""
    found: Any = load_config([o.format(folder=folder) for o in (*BASE, *overrides)])
    for name in path.split("."):
        found = getattr(found, name)
    return str(not found).lower()


def _choice(key: Key) -> str:
    return next(o for o in reversed(key.base) if o.startswith(key.path + "="))


def _outer(key: Key) -> tuple[str, ...]:
    return key.base[: key.base.index(_choice(key))]


@pytest.mark.parametrize("name", sorted({t.observe.__name__ for t in TURNS.values()}))
def test_turning_nothing_changes_nothing(name, seen):
    observers = {t.observe.__name__: t.observe for t in TURNS.values()}
    needs = ("env.type=code", *NEEDS["CodeEnvConfig"]) if name in ("judged", "isolated") else ()
    if name == "asked":
        needs = ("env.type=judge", *NEEDS["LlmJudgeEnvConfig"])
    observe = functools.partial(seen, observers[name], needs)
    assert observe() == observe(again=True)
