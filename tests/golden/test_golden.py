"""Trajectories of tiny runs are those on record: a change of layout leaves them alone, a change of
the algorithm shows in them. `regenerate.py` writes them and says why they may differ this much."""

from __future__ import annotations

import pytest
from golden_runs import RUNS, carry_out, save_model
from regenerate import deviation, golden, kept


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", RUNS)
def test_the_run_is_the_one_on_record(name, model, tmp_path):
    rows, recorded = kept(carry_out(name, model, tmp_path / "run")), golden(name)
    assert len(rows) == len(recorded)
    for step, (row, expected) in enumerate(zip(rows, recorded, strict=True), start=1):
        assert row.keys() == expected.keys()
        # First, because after another sample nothing else can be the same.
        assert row["rollouts"] == expected["rollouts"], f"step {step}: other rollouts or contexts"
        for key, value in row.items():
            if isinstance(value, float):
                units = deviation(key, value, expected[key])
                assert units <= 1, f"step {step}: {key} is {value}, recorded {expected[key]}"
            else:
                assert value == expected[key], f"step {step}: {key}"
