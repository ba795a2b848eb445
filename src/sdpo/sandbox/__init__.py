"""Runs untrusted programs and returns plain data."""

from sdpo.sandbox.local import open_sandbox
from sdpo.sandbox.protocol import (
    Failure,
    Frame,
    Limits,
    Opaque,
    Outcome,
    Program,
    Sandbox,
    contains_opaque,
)

__all__ = [
    "Failure", "Frame", "Limits", "Opaque", "Outcome", "Program", "Sandbox", "contains_opaque", "open_sandbox",
]  # fmt: skip
