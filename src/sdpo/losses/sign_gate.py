"""How much distillation counts where the teacher moves an attempt as the verifier would, and where
it moves it against the verdict.

Legend: R tokens: some of a micro-batch, or all of them where the gate is per rollout.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from sdpo.losses.policy_gradient import sequence_sum
from sdpo.losses.specs import SignGate


def sign_gate_factors(
    gap_R: Tensor, verdicts_R: Tensor, sequence_ids_R: Tensor, gate: SignGate
) -> Tensor:
    """`agree` where gap x verdict > 0, else `differ` [R]; a gap of 0 does not agree.

    `verdicts` are +1 at the tokens of solved rollouts and -1 at those of failed ones. Per rollout
    the tokens must be whole rollouts.
    """
    match gate.per:
        case "token":
            pass
        case "rollout":
            gap_R = sequence_sum(gap_R, sequence_ids_R)
        case _:
            assert_never(gate.per)
    agrees_R = gap_R * verdicts_R > 0
    return torch.where(agrees_R, gate.agree, gate.differ).to(gap_R.dtype)
