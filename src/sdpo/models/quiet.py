"""Silence for the libraries' own chatter: a run prints its own progress and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """No progress bars and no advice from transformers and the hub inside the block."""
    verbosity, hub_verbosity = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    showed = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if showed:
            transformers_logging.enable_progress_bar()
