"""Every code block of the site does what it says, with a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pages import DOCS, Reader, blocks, pages

pytestmark = [
    # PEFT asks a model whether it checkpoints activations by the name that is going away.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:sandbox = none:UserWarning"),
]

WITH_CODE = [path for path in pages() if any(b.language != "text" for b in blocks(path))]


@pytest.mark.parametrize("path", WITH_CODE, ids=lambda p: str(p.relative_to(DOCS)))
def test_every_block_of_the_page_works(path, reader_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Environments of pages are imported from the folder that the reader is in.
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    try:
        Reader(reader_model, monkeypatch).follow(path)
    finally:
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]


def test_every_fence_says_what_it_is():
    for path in pages():
        for block in blocks(path):
            assert block.language, f"{path.name}:{block.line}"


def test_pages_with_code_are_found():
    assert {"ten-minutes.md", "your-environment.md"} <= {path.name for path in WITH_CODE}
    assert isinstance(WITH_CODE[0], Path)
