"""What a run happens under and no setting says, written into its config.json: how its judge is
isolated here, and what the chat template makes of a conversation. Another template, or another day
where a template writes the date, would change every prompt without a word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from sdpo.chat import Chat
from sdpo.envs.base import Describing, Env
from sdpo.errors import ConfigError
from sdpo.files import record_whole
from sdpo.rollouts.sampler import Sampler

_CLOCK = re.compile("\u241f(.*?)\u241f")
_MASKED = "{%- macro strftime_now(format) -%}\u241f{{ format }}\u241f{%- endmacro -%}"
"""Put in front of a template, it writes the format that it asks the clock for, not the time."""
_SETTABLE = re.compile(r"set\s+(\w+)\s*=\s*strftime_now\(\s*([\"'])(.*?)\2\s*\)")
"""How a template reads the clock where it takes a value from outside first, as Llama 3 does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFacts:
    """How a run's prompts are rendered.

    Example:
        PromptFacts(digest="5a1e", apart_from_clock="90cc", clock={"%d %b %Y": "28 Nov 2026"})
    """

    digest: str
    """Of rendered conversations of every kind; equal where all prompts are."""
    apart_from_clock: str
    """The same without what the template reads from the clock."""
    clock: dict[str, str]
    """What the template writes of the time: format to text, empty for most."""


def prompt_facts(chat: Chat) -> PromptFacts:
    """How `chat` renders prompts at this moment."""
    masked = chat.probe(_MASKED)
    formats = dict.fromkeys(_CLOCK.findall(masked))
    return PromptFacts(
        digest=_digest(chat.probe()),
        apart_from_clock=_digest(masked),
        clock={each: datetime.now().strftime(each) for each in formats},
    )


def clock_note(chat: Chat, facts: PromptFacts) -> str | None:
    """A sentence on how to pin the time that prompts show; None where they show none."""
    if not facts.clock:
        return None
    return (
        f"prompts show the time ({', '.join(facts.clock.values())}), and change with it: "
        f"{_pin(chat, facts.clock)}"
    )


def record_conditions(run_dir: Path, sampler: Sampler) -> list[str]:
    """Records how attempts are judged here and prompts rendered, unless config.json says it
    already, and returns what is to be said about it. Raises as `record_prompts`."""
    lines = record_judging(run_dir, sampler.env), record_prompts(run_dir, sampler.chat)
    return [line for line in lines if line]


def record_prompts(run_dir: Path, chat: Chat) -> str | None:
    """Adds `prompt_facts` to config.json under `prompts`, unless they are there, and returns a line
    about a clock that the template reads; None if it reads none.

    Raises `ConfigError` when prompts are no longer what they were when the run began.
    """
    path = run_dir / "config.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    facts = prompt_facts(chat)
    if "prompts" not in record:
        record["prompts"] = asdict(facts)
        with record_whole(path) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return clock_note(chat, facts)
    before = PromptFacts(**record["prompts"])
    if facts.digest == before.digest:
        return clock_note(chat, facts)
    if facts.apart_from_clock != before.apart_from_clock or not facts.clock:
        raise ConfigError(
            f"{str(run_dir)!r}: the chat template renders prompts otherwise than when the run "
            "began; bring back the tokenizer files and the version of transformers that "
            "config.json names, or choose another directory with run=..."
        )
    raise ConfigError(
        f"{str(run_dir)!r}: prompts showed {', '.join(before.clock.values())} when the run began "
        f"and show {', '.join(facts.clock.values())} now; to continue it, "
        f"{_pin(chat, before.clock)}"
    )


def _pin(chat: Chat, clock: dict[str, str]) -> str:
    """How to make the template write the times of `clock` whatever the time."""
    settable = _SETTABLE.findall(chat.tokenizer.get_chat_template())
    named = {name: clock[each] for name, _, each in settable if each in clock}
    if not {each for _, _, each in settable} >= clock.keys():
        asked = ", ".join(f"strftime_now('{each}') by '{text}'" for each, text in clock.items())
        return f"replace {asked} in the model's chat_template.jinja"
    values = ", ".join(f'{name} = "{text}"' for name, text in named.items())
    return f"set 'model.chat_template_kwargs={{{values}}}'"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def record_judging(run_dir: Path, env: Env) -> str | None:
    """Adds what `env` says about judging on this machine to config.json under `judging`, unless it
    is there, and returns a line about it; None if `env` says nothing."""
    if not isinstance(env, Describing):
        return None
    facts = dict(env.facts())
    path = run_dir / "config.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    before = record.setdefault("judging", facts)
    line = "judging: " + _named(facts)
    if before != facts:
        return f"{line} (the run began with {_named(before)})"
    with record_whole(path) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return line


def _named(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in facts.items())
