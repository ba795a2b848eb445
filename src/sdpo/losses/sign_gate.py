"""How much distillation counts where the teacher moves an attempt as the verifier would, and where
it moves it against the verdict.

Legend: R tokens: some of a micro-batch, or all of them where the gate is per rollout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from sdpo.losses.policy_gradient import sequence_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class SignGate:
    """Factors of the distillation of a token (SG-OPD 2606.09304, OPDVR 2608.24696) or of a rollout
    (RG-OPD 2607.04037) whose gap has the verdict's sign, or has not.

    Example:
        SignGate(agree=1.8, differ=1.0, per="token")      # SG-OPD; agree=1, differ=0 is OPDVR
    """

    agree: float
    differ: float
    per: Literal["token", "rollout"]
    """Whose gap: log q(y_t) - log p(y_t) of each token, or their sum over the rollout."""


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
