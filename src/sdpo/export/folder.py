"""A checkpoint as a folder for transformers, PEFT, vLLM and llama.cpp.

The weights are copied or merged and never changed otherwise; the state that resumes training stays
behind. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from sdpo.errors import ConfigError, SdpoError
from sdpo.export.card import CARD, Card, model_card
from sdpo.export.gguf import check_can_write, write_gguf
from sdpo.files import atomic_write
from sdpo.models.adapters import ADAPTER, base_name, is_adapter, save_model
from sdpo.models.gguf import DEMO, demo_folder
from sdpo.models.policy import load_policy
from sdpo.models.quiet import quiet
from sdpo.models.shard_files import SHARDS
from sdpo.models.wrapper import auto_class
from sdpo.report.data import run_outcome
from sdpo.run_folder import CHECKPOINTS, STATE, RunFolder, as_run
from sdpo.training.checkpoint import WEIGHTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Example:
        Exported(folder=Path("model"), checkpoint=Path("runs/x/checkpoints/step-8"), kind="model",
                 loader="AutoModelForCausalLM")
    """

    folder: Path
    checkpoint: Path
    kind: str
    """`model`, or `adapter` for a folder that needs its base model."""
    loader: str
    """The class of transformers that loads the whole model."""
    base: str | None = None
    """Of an adapter, the model it belongs to: a hub id or a folder of this machine."""
    gguf: Path | None = None


def export_run(
    run: str | Path, to: str | Path, *, merge: bool = False, gguf: bool = False
) -> Exported:
    """Write the weights of `run` (`runs/x`, `runs/x@4`, or one of its checkpoints) to the folder
    `to`, which must be empty or absent, with a model card.

    An adapter stays an adapter unless `merge` adds it into its base model. `gguf` writes the whole
    model as one GGUF file too. Raises `ConfigError`, `ModelError`, and `SdpoError` for a disk that
    cannot be written.

    Example:
        export_run("runs/quickstart", "my-model").folder
    """
    to = Path(to)
    found = _run(str(run))
    checkpoint = found.checkpoint()
    is_lora = is_adapter(checkpoint)
    if merge and not is_lora:
        raise ConfigError(
            f"--merge: {str(run)!r} was trained with all its weights, so there is no adapter to "
            "merge; leave --merge out"
        )
    if gguf and is_lora and not merge:
        raise ConfigError(f"--gguf: {str(run)!r} holds an adapter; add --merge")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to {str(to)!r} exists and is not an empty folder; choose another")
    base = _portable_base(checkpoint) if is_lora and not merge else None
    whole = _portable_base(checkpoint) if is_lora else str(checkpoint)
    loader = auto_class(AutoConfig.from_pretrained(whole, local_files_only=True)).__name__
    record = found.record()
    step = int(checkpoint.name.removeprefix("step-"))
    card = Card(
        name=to.resolve().name,
        record=record,
        step=step,
        outcome=run_outcome(found.folder, through=step),
        adapter_of=base,
        is_merged=merge,
        loader=loader,
    )
    try:
        with atomic_write(to) as partial:
            partial.mkdir()
            written = _write(checkpoint, partial, card, base=base, merge=merge, gguf=gguf)
    except OSError as error:
        raise SdpoError(
            f"--to {str(to)!r} cannot be written ({error.strerror or error}); free space or choose "
            "another folder"
        ) from error
    return Exported(
        folder=to,
        checkpoint=checkpoint,
        kind="model" if base is None else "adapter",
        base=base,
        loader=loader,
        gguf=None if written is None else to / written,
    )


def _write(
    checkpoint: Path, folder: Path, card: Card, *, base: str | None, merge: bool, gguf: bool
) -> str | None:
    """Fill `folder`; the name of the GGUF file, if one was asked for."""
    if merge or gguf:
        policy = load_policy(str(checkpoint), dtype=_dtype(card.record), device="cpu")
        if gguf:
            check_can_write(policy)
    if merge:
        with quiet():
            save_model(policy.model, folder)
            policy.tokenizer.save_pretrained(folder)
    else:
        for path in checkpoint.iterdir():
            if path.name not in (STATE, WEIGHTS, SHARDS, CARD):
                shutil.copy2(path, folder / path.name)
        if base is not None:
            _name_base(folder / ADAPTER, base)
    (folder / CARD).write_text(model_card(card), encoding="utf-8")
    if not gguf:
        return None
    name = f"{card.name}.gguf"
    write_gguf(policy, folder / name, name=card.name)
    return name


def _run(name: str) -> RunFolder:
    """The run that `name` means; a checkpoint's folder means its run at that step."""
    path = Path(name).expanduser()
    step = path.name.removeprefix("step-")
    if path.parent.name == CHECKPOINTS and step.isdigit():
        name = f"{path.parent.parent}@{step}"
    run = as_run(name)
    if run is None:
        raise ConfigError(
            f"{name!r} is not a run's folder; name one that sdpo train wrote, such as "
            "runs/quickstart, or runs/quickstart@4 for step 4"
        )
    return run


def _dtype(record: dict[str, Any]) -> str:
    return str(record["config"]["model"]["dtype"])


def _portable_base(checkpoint: Path) -> str:
    """The base model's name as PEFT can load it: the demo model has one for `sdpo` alone."""
    name = base_name(checkpoint)
    return str(demo_folder()) if name == DEMO else name


def _name_base(path: Path, base: str) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
