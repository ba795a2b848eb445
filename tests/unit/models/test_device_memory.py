"""What glibc does with freed tensors, seen in the resident memory of a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")

_MEASURE = """
import sys, torch
from sdpo.models.device import give_back_freed_memory, keep_freed_memory

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

keep_freed_memory()
size, pins = int(sys.argv[1]), []
before = resident_mb()
tensors = []
for _ in range(int(sys.argv[2]) // size):
    tensors.append(torch.ones(size // 4))
    if sys.argv[3]:
        pins.append(torch.ones(256))  # small and kept: freed memory lies in gaps between them
tensors.clear()
kept = resident_mb() - before
give_back_freed_memory()
print(kept, resident_mb() - before)
"""


def kept_and_left(
    tensor_bytes: int, total: int = 400_000_000, pins: str = "between"
) -> tuple[float, float]:
    """Megabytes still resident of `total` freed bytes, before and after giving back."""
    command = [sys.executable, "-c", _MEASURE, str(tensor_bytes), str(total), pins]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kept, left = map(float, out.split())
    return kept, left


def test_freed_activations_stay_until_given_back():
    kept, left = kept_and_left(40_000_000)
    assert kept > 300
    assert left < 50


def test_more_than_a_gigabyte_stays_too():
    """An update frees that much after every micro-batch, and needs it for the next."""
    kept, left = kept_and_left(40_000_000, 1_600_000_000, pins="")
    assert kept > 1_400
    assert left < 50


def test_gaps_of_freed_weights_go_back_at_once():
    """They filled up with small tensors, so that a process grew with every update."""
    kept, _ = kept_and_left(200_000_000)
    assert kept < 50
