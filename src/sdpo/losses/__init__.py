"""The objective: divergences, policy gradients, routing, weighting.

Read `reference.py` first: the whole objective on one page, slow and obvious on purpose. The rest
computes the same numbers fast (`objective.py` and `head/`), which tests hold it to.
`distillation_loss` is the public entry for one divergence; `objective_loss` evaluates a whole
objective for the trainer. Sees tensors, numbers and records, never a config tree or a model.
Imported lazily, so that `import sdpo` loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdpo.losses.head.fused import DistillationResult, distillation_loss

__all__ = ["DistillationResult", "distillation_loss"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from sdpo.losses.head import fused

        return getattr(fused, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
