"""The card of an exported model: what was trained how, what came of it and how sure that is, filled
from the run's own records and nothing else.

Names folders of the user's machine nowhere: a card is made to be published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.config.load import flatten, resolve
from sdpo.config.schema import RunConfig
from sdpo.describe import describe_objective
from sdpo.models.gguf import DEMO
from sdpo.report.outcome import Outcome

CARD = "README.md"
DEMO_ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where the demo model comes from, by way of a 4-bit file."""
_UNTOLD = ("run", "log.", "model.device", "checkpoint.", "credit.", "discover.")
"""Settings that are about the run's files and its machine, not about the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a card is made of.

    Example:
        Card(name="my-model", record=json.loads(config_json), step=8, outcome=outcome,
             adapter_of=None, is_merged=False, loader="AutoModelForCausalLM")
    """

    name: str
    record: dict[str, Any]
    """The run's config.json."""
    step: int
    outcome: Outcome | None
    """None where the run has no rows."""
    adapter_of: str | None
    """Of an adapter's folder, its base model's hub id or folder."""
    is_merged: bool
    loader: str
    """The class of transformers that loads the whole model."""


def model_card(card: Card) -> str:
    """The card as Markdown, with the front matter that the hub reads."""
    config = resolve(card.record["config"])
    return "\n".join([*_front(card, config), *_body(card, config)]) + "\n"


def public_name(model: str) -> str:
    """`model` as a card may say it: a hub id whole, the last part of a folder or file."""
    if model == DEMO:
        return DEMO_ORIGIN
    return model if _is_hub_id(model) else Path(model).name


def _is_hub_id(name: str) -> bool:
    path = Path(name).expanduser()
    return name.count("/") == 1 and not (name.startswith((".", "~", "/")) or path.exists())


def _front(card: Card, config: RunConfig) -> Iterator[str]:
    yield "---"
    yield f"library_name: {'transformers' if card.adapter_of is None else 'peft'}"
    yield "pipeline_tag: text-generation"
    name = config.model.name
    if name == DEMO or _is_hub_id(name):
        yield f"base_model: {json.dumps(public_name(name))}"
        relation = "finetune" if card.adapter_of is None else "adapter"
        yield f"base_model_relation: {relation}"
    yield "tags:"
    tags = dict.fromkeys(("sdpo", "reinforcement-learning", config.objective.type))
    yield from (f"- {tag}" for tag in tags)
    yield "---"


def _body(card: Card, config: RunConfig) -> Iterator[str]:
    kind = "A LoRA adapter for" if card.adapter_of is not None else "Trained from"
    merged = " with a LoRA adapter, merged into the weights" if card.is_merged else ""
    yield f"# {card.name}"
    yield ""
    yield (
        f"{kind} `{public_name(config.model.name)}`{merged}, {card.step} of {config.steps} steps "
        "of reinforcement learning from what an environment says about each attempt."
    )
    if config.model.name == DEMO:
        yield ""
        yield "Its initial weights are those of a 4-bit GGUF file, expanded."
    yield ""
    yield "## What came of it"
    yield ""
    yield from _results(card, config)
    yield ""
    yield "## Use"
    yield ""
    yield from _use(card)
    yield ""
    yield "## How it was trained"
    yield ""
    yield "```"
    yield from describe_objective(config)
    yield "```"
    yield ""
    yield "Settings that are not the defaults:"
    yield ""
    yield "```toml"
    yield from _settings(config)
    yield "```"
    yield ""
    yield from _origin(card.record)


def _results(card: Card, config: RunConfig) -> Iterator[str]:
    if card.outcome is None:
        yield "The run's records are not there, so nothing is known about its results."
        return
    yield " ".join((card.outcome.headline, *card.outcome.details))
    yield ""
    environment = card.record.get("environment")
    tasks = getattr(config.env, "tasks", None) or getattr(config.env, "path", None)
    named = (
        f"the environment `{config.env.type}` (`{Path(tasks).name}`)"
        if environment is None and isinstance(tasks, str)
        else "an environment written in Python"
    )
    yield (
        f"Measured by {named}: {config.eval.samples} attempts a task at temperature "
        f"{config.eval.temperature:g}, top-p {config.eval.top_p:g}, seed {config.seed}. The "
        "interval resamples tasks; it says nothing about other seeds."
    )


def _use(card: Card) -> Iterator[str]:
    yield "```python"
    if card.adapter_of is None:
        yield f"from transformers import {card.loader}, AutoTokenizer"
        yield ""
        yield f'model = {card.loader}.from_pretrained("{card.name}")'
    elif card.loader != "AutoModelForCausalLM":
        yield "from peft import PeftModel"
        yield f"from transformers import {card.loader}, AutoTokenizer"
        yield ""
        yield f'base = {card.loader}.from_pretrained("{card.adapter_of}")'
        yield f'model = PeftModel.from_pretrained(base, "{card.name}")'
    else:
        yield "from peft import AutoPeftModelForCausalLM"
        yield "from transformers import AutoTokenizer"
        yield ""
        yield f'model = AutoPeftModelForCausalLM.from_pretrained("{card.name}")'
    yield f'tokenizer = AutoTokenizer.from_pretrained("{card.name}")'
    yield "```"


def _settings(config: RunConfig) -> Iterator[str]:
    """Dotted keys with values, as overrides and TOML files take them."""
    default = flatten(RunConfig())
    for key, value in flatten(config).items():
        if key.startswith(_UNTOLD) or (key in default and default[key] == value):
            continue
        is_path = key in ("model.name", "env.tasks", "env.path")
        shown = public_name(value) if is_path and isinstance(value, str) else value
        yield f"{key} = {json.dumps(shown, ensure_ascii=False)}"


def _origin(record: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items())
    host = record.get("host") or {}
    git = record.get("git") or {}
    facts = [versions]
    if git.get("commit"):
        changed = " with uncommitted changes" if git.get("diff") else ""
        facts.append(f"sdpo at commit {git['commit'][:12]}{changed}")
    if host:
        facts.append(f"on {host.get('device')} ({host.get('machine')}, {host.get('cores')} cores)")
    judging = record.get("judging") or {}
    facts += [f"judging: {name} {value}" for name, value in judging.items()]
    yield "; ".join(fact for fact in facts if fact) + "."
