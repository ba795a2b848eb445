"""Which of the teacher's corrections a divergence can move: what a probe measures besides whether
the teacher is right.

The gradients of reverse KL and Jensen-Shannon on a token are proportional to the student's
probability of it, and a support of the student's top-K leaves out what the student does not
propose. So a word that no attempt would say is learnt by forward KL over a support that contains
it, and by nothing else.

Legend: T tokens of one attempt, K tokens of the student's support.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sdpo.config.objective import (
    CustomDivergenceConfig,
    DistillingConfig,
    ForwardCEConfig,
    ForwardKLConfig,
)
from sdpo.config.schema import RunConfig
from sdpo.inspection.attempt import sample_of, token_outputs
from sdpo.models.policy import Policy
from sdpo.parallel import Parallel
from sdpo.records import Rollout

UNSAID = 1e-3
"""Probability below which the student does not say a token."""
WORTH_SAYING = 0.1
"""Share of corrections from which on advice is given."""
MAX_ATTEMPTS = 32
"""Attempts that are looked at."""
REACHING = "objective.divergence={type='forward_kl', top_k='all'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The teacher's corrections of failed attempts, in the recipe's contexts. A correction is a
    position where the teacher's likeliest token is not the attempt's.

    Example:
        Reach(num_attempts=32, num_tokens=410, num_corrections=61, top_k=20, unsaid=0.44,
        outside=0.52)
    """

    num_attempts: int
    num_tokens: int
    num_corrections: int
    top_k: int
    unsaid: float
    """Share of corrections whose token has a probability below 1e-3 for the student; 0 without
    corrections."""
    outside: float
    """Mean of the teacher's mass outside the student's `top_k` tokens, over corrections; 0 without
    any."""

    def sentence(self) -> str:
        """The numbers in words."""
        if not self.num_corrections:
            return f"The teacher corrects none of {self.num_tokens} tokens of failed attempts."
        return (
            f"The teacher corrects {self.num_corrections} of {self.num_tokens} tokens of failed "
            f"attempts (looked at: {self.num_attempts}); {self.unsaid:.0%} of its corrections have "
            f"a probability below {UNSAID:g} for the student, and {self.outside:.0%} of its mass "
            f"there is outside the student's top {self.top_k}."
        )


def measure_reach(
    policy: Policy,
    asks: Sequence[tuple[Rollout, tuple[int, ...]]],
    *,
    top_k: int,
    temperature: float,
    parallel: Parallel,
) -> Reach:
    """Reach of the teacher in `asks`: failed attempts, each with the ids of its teacher prompt. The
    first 32 are looked at, shared by the processes; one pass of the model for each and side."""
    asks = asks[:MAX_ATTEMPTS]
    share = parallel.share(asks)
    own = parallel.agreed(lambda: _counted(policy, share, top_k=top_k, temperature=temperature))
    tokens, corrections, unsaid, outside = parallel.sum(own)
    return Reach(
        num_attempts=len(asks),
        num_tokens=int(tokens),
        num_corrections=int(corrections),
        top_k=top_k,
        unsaid=unsaid / corrections if corrections else 0.0,
        outside=outside / corrections if corrections else 0.0,
    )


def _counted(
    policy: Policy,
    asks: Sequence[tuple[Rollout, tuple[int, ...]]],
    *,
    top_k: int,
    temperature: float,
) -> tuple[int, int, int, float]:
    """Tokens, corrections, those that are unsaid, and the sum of the mass outside the support."""
    tokens = corrections = unsaid = 0
    outside = 0.0
    for rollout, teacher_prompt_ids in asks:
        sample = sample_of(rollout, teacher_prompt_ids)
        seen = token_outputs(policy, sample, temperature, top_n=top_k)
        assert seen.student_top is not None
        assert seen.teacher_top is not None
        said_T = torch.tensor(sample.trained_ids, device=seen.teacher_top.ids.device)
        corrects_T = seen.teacher_top.ids[:, 0] != said_T
        wanted_T = seen.teacher_top.student_logprobs[:, 0].exp()
        outside_T = 1 - seen.student_top.teacher_logprobs.exp().sum(1)
        tokens += len(said_T)
        corrections += int(corrects_T.sum())
        unsaid += int((wanted_T[corrects_T] < UNSAID).sum())
        outside += float(outside_T[corrects_T].sum())
    return tokens, corrections, unsaid, outside


def support_size(config: RunConfig) -> int:
    """K of the recipe's student support; the paper's 20 where it has none."""
    objective = config.objective
    top_k = objective.divergence.top_k if isinstance(objective, DistillingConfig) else "all"
    return 20 if top_k == "all" else top_k


def divergence_advice(reach: Reach, config: RunConfig) -> str | None:
    """The setting that reaches what the recipe's divergence does not; None where nothing is
    missing."""
    objective = config.objective
    if not isinstance(objective, DistillingConfig) or reach.unsaid < WORTH_SAYING:
        return None
    divergence = objective.divergence
    if isinstance(divergence, CustomDivergenceConfig):
        return None  # What a function can raise is not known here.
    is_forward = isinstance(divergence, ForwardKLConfig | ForwardCEConfig)
    if is_forward and (divergence.top_k == "all" or divergence.support != "student"):
        return None
    return (
        f"objective.divergence = {divergence.type} over the student's top {divergence.top_k} "
        f"cannot raise what the student does not propose: {REACHING}"
        if not is_forward
        else f"the student's top {divergence.top_k} leaves out what the teacher wants: {REACHING}"
    )
