"""A model's name to a policy: hub id, folder (of a model, an adapter or a run), GGUF file, or the
demo model inside a PyPI wheel.

Whatever is wrong with a model becomes one `ModelError` sentence with the fix; the libraries' own
errors stay attached as the cause. Code that comes with a model is never run.
"""

from __future__ import annotations

import contextlib
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sdpo.config.schema import LoraConfig
from sdpo.errors import ModelError, first_line
from sdpo.models.adapters import base_name, continues, is_adapter, load_adapter
from sdpo.models.device import default_dtype
from sdpo.models.gguf import DEMO, demo_folder, gguf_folder
from sdpo.models.quantized import (
    dequantized,
    loading_options,
    quantization_of,
    recorded_quantization,
)
from sdpo.models.quiet import quiet
from sdpo.models.wrapper import auto_class, freeze_towers, processor_files, tower_parameters
from sdpo.run_folder import as_run

__all__ = ["DEMO", "Policy", "as_policy", "default_dtype", "load_policy"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_vocabularies: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, int]] = WeakKeyDictionary()
"""Length and vocabulary of tokenizers: to look through all tokens takes a tenth of a second."""
_HUB_TIMEOUT_S = 5.0
"""The hub client itself retries for a minute before it says that there is no network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A causal language model with its tokenizer, in eval mode on its device.

    Example:
        load_policy("smollm2-135m-instruct")
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """As the user gave it; of a run, its checkpoint."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def vocabulary(self) -> int:
        """One more than the tokenizer's highest id. Embedding and head may have more rows."""
        size = len(self.tokenizer)
        if _vocabularies.get(self.tokenizer, (0, 0))[0] != size:  # tokens may have been added
            _vocabularies[self.tokenizer] = size, 1 + max(self.tokenizer.get_vocab().values())
        return _vocabularies[self.tokenizer][1]

    def replace_model(self, model: PreTrainedModel) -> Policy:
        """The same policy around another module, for instance one with adapters."""
        return replace(self, model=model)


def load_policy(
    name: str, *, dtype: str = "auto", device: str = "auto", adapter: LoraConfig | None = None
) -> Policy:
    """The policy that `name` stands for: hub id, folder, `.gguf` file or `smollm2-135m-instruct`.
    A run's folder is its newest checkpoint, `RUN@N` that of step N.

    `dtype` is `auto` (`default_dtype` of the device), `float32` or `bfloat16`; `device` is `auto`
    (CUDA when present), `cpu`, `cuda` or `cuda:N`. An adapter's folder is loaded over its base
    model and merged, unless it can train on as `adapter`; a base that was quantised for it is
    de-quantised to merge. `adapter` also says how a whole model is quantised. Raises `ModelError`,
    and `ConfigError` for a run without the checkpoint or a library that is not installed.
    """
    where = _device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"model.dtype = {dtype!r} is unknown; use auto, float32 or bfloat16")
    kind = default_dtype(where) if dtype == "auto" else DTYPES[dtype]
    run = as_run(name)
    name = name if run is None else str(run.checkpoint())
    folder = Path(name).expanduser()
    if is_adapter(folder):
        policy = _with_adapter_of(folder, name, kind, where, adapter)
    else:
        policy = _load(name, kind, where, "none" if adapter is None else adapter.quantization)
    freeze_towers(policy.model)
    if quantization_of(policy.model.config) == "none":  # a quantised one is where it was made
        policy = policy.replace_model(policy.model.to(where))
    return policy.replace_model(policy.model.eval())


def as_policy(model: Any, tokenizer: Any) -> Policy:
    """A model and a tokenizer that are loaded already, checked as a loaded one is. Training changes
    `model` itself. Raises `ModelError`."""
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise ModelError(
            f"model = {type(model).__name__}: give a name, or a causal language model of "
            "transformers (AutoModelForCausalLM.from_pretrained)"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"tokenizer = {type(tokenizer).__name__}: a model object needs its tokenizer too "
            "(tokenizer=AutoTokenizer.from_pretrained(...))"
        )
    found: Any = model
    if found.dtype not in DTYPES.values():
        raise ModelError(
            f"model has weights of type {found.dtype}; load it with dtype=torch.float32 or "
            "torch.bfloat16"
        )
    name = str(getattr(found.config, "_name_or_path", "") or type(found).__name__)
    _check(name, found, tokenizer, {"missing_keys": (), "mismatched_keys": ()})
    freeze_towers(found)
    return Policy(model=found.eval(), tokenizer=tokenizer, name=name)


def resolvable_name(name: str) -> str:
    """`name` so that `load_policy` finds the same model from every folder."""
    run = as_run(name)
    path = Path(name).expanduser() if run is None else run.checkpoint()
    return str(path.resolve()) if name != DEMO and path.exists() else name


def _with_adapter_of(
    folder: Path, name: str, kind: torch.dtype, where: torch.device, wanted: LoraConfig | None
) -> Policy:
    """The base model of the adapter in `folder` with that adapter, on the CPU unless quantised."""
    base_source = base_name(folder)
    base_folder = Path(base_source).expanduser()
    if is_adapter(base_folder):
        if base_folder.resolve() == folder.resolve():
            raise ModelError(f"model.name = {name!r}: the adapter names itself as its base model")
        base = _with_adapter_of(base_folder, base_source, kind, where, None)
    else:
        base = _load(base_source, kind, where, recorded_quantization(folder))
    merge = wanted is None or not continues(folder, wanted)
    if merge:
        if wanted is not None and wanted.quantization != "none":
            raise ModelError(
                f"model.name = {name!r} is an adapter of other settings, and a model that it is "
                f"added to cannot be quantised ({wanted.quantization}) here; write it out first "
                "(sdpo export --merge) and name that folder"
            )
        base = base.replace_model(dequantized(base.model))
    with _explained(name, is_offline=True):
        policy = base
        if (folder / "tokenizer_config.json").is_file():
            with quiet():
                own: Any = AutoTokenizer.from_pretrained(str(folder), **_options(is_online=False))
            policy = replace(base, tokenizer=own)
        model = load_adapter(base.model, folder, merge=merge)
    return replace(policy, model=model, name=name)


def _load(name: str, kind: torch.dtype, where: torch.device, quantization: str) -> Policy:
    """A whole model, on the CPU unless quantised."""
    source = _source(name)
    options = _options(is_online=is_reachable(source))
    quantizing = loading_options(quantization, kind, where)
    with quiet(), _explained(name, is_offline=options["local_files_only"]):
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
        # Loaded on the CPU and moved: one code path without accelerate's device maps.
        config = AutoConfig.from_pretrained(source, **options)
        if quantization_of(config) != "none":
            quantizing = {}  # the files are what they are
        loaded: Any = auto_class(config).from_pretrained(
            source, config=config, dtype=kind, output_loading_info=True, **options, **quantizing
        )
        model, info = loaded
        if any(True for _ in tower_parameters(model)):
            # Checkpoints take them from here or, of a hub's model, from its cache.
            processor_files(source, is_online=not options["local_files_only"])
    _check(name, model, tokenizer, info)
    return Policy(model=model, tokenizer=tokenizer, name=name)


def _options(*, is_online: bool) -> dict[str, bool]:
    # Code in a model's folder would run with the user's rights; unset, transformers asks on the
    # terminal.
    return {"trust_remote_code": False, "local_files_only": not is_online}


def _device(device: str) -> torch.device:
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())
    try:
        where = torch.device(device)
    except RuntimeError:
        where = None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    is_missing = where is not None and (
        (where.type == "cuda" and (where.index or 0) >= count)
        or (where.type == "mps" and not torch.backends.mps.is_available())
    )
    if where is None or is_missing:
        raise ModelError(
            f"model.device = {device!r} is not available here; use auto, cpu or cuda:N"
        )
    return where


def _source(name: str) -> str:
    """A folder or hub id that transformers can load; GGUF files are converted on the way."""
    if name == DEMO:
        return str(demo_folder())
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model.name = {name!r}: there is no such GGUF file")
        return str(gguf_folder(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"model.name = {name!r}: the folder has no config.json; name a "
                "Hugging Face one, an adapter's or a run's"
            )
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists():
        raise ModelError(f"model.name = {name!r}: there is no such folder")
    return name


def is_reachable(source: str) -> bool:
    """Whether asking the hub for `source` makes sense; folders need none."""
    if Path(source).is_dir() or hub_constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    hub = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or hub_constants.ENDPOINT)
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname or "", port), timeout=_HUB_TIMEOUT_S).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _explained(name: str, *, is_offline: bool) -> Generator[None]:
    """Library errors while loading `name` as one sentence with the fix."""
    try:
        yield
    except Exception as error:
        # transformers, the hub client, tokenizers and safetensors raise anything here.
        raise ModelError(
            f"model.name = {name!r} cannot be loaded: {_diagnosis(name, error, is_offline)}"
        ) from error


def _diagnosis(name: str, error: Exception, is_offline: bool) -> str:
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    text = first_line(error)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return "access to it is restricted; accept its terms on the hub and run `hf auth login`"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return "the hub has no such public model; check the spelling, or run `hf auth login`"
    if any(isinstance(cause, SafetensorError) for cause in causes):
        return f"a weight file is damaged ({text}); download or copy the model again"
    if Path(name).expanduser().is_dir() or name == DEMO:
        return f"{text}; check the files in that folder, or name a model that transformers knows"
    if is_offline:
        return (
            "it is neither a folder nor in the hub's local cache, and the hub cannot be reached; "
            f"check the spelling and the network, or name a folder, a .gguf file or {DEMO!r}"
        )
    return f"{text}; name a causal language model that transformers knows, a folder or a .gguf file"


def _check(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, info: dict[str, Any]
) -> None:
    """Raises `ModelError` for a model that loads and yet cannot be trained as a chat model."""
    # transformers fills in what a file lacks with random numbers and only warns.
    absent = sorted(
        {str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind]}
    )
    if absent:
        raise ModelError(
            f"model.name = {name!r}: {len(absent)} weights are missing or have another shape "
            f"({absent[0]}, ...); the files are incomplete or belong to another architecture"
        )
    if not tokenizer.chat_template:
        raise ModelError(
            f"model.name = {name!r}: its tokenizer has no chat template; take an instruct model, "
            "or set tokenizer.chat_template and save it to a folder"
        )
    embeddings: Any = model.get_input_embeddings()
    num_rows = embeddings.weight.shape[0]
    if len(tokenizer) > num_rows:
        raise ModelError(
            f"model.name = {name!r}: the tokenizer has {len(tokenizer)} tokens, the model embeds "
            f"{num_rows}; tokenizer and weights do not belong together"
        )
