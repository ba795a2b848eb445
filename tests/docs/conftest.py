"""The tiny model that pages and examples are tried with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pages import save_model

# The generators of the reference lie beside the pages, not in the package.
sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "site"))


@pytest.fixture(scope="session")
def reader_model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("reader") / "tiny")
