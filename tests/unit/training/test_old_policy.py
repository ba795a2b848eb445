"""The pass of the old policy is made of what a loss reads, and of nothing else."""

from __future__ import annotations

import pytest
import torch

from sdpo.config.objective import (
    GrpoConfig,
    HybridConfig,
    ObjectiveConfig,
    ReverseKLConfig,
    ScSdpoConfig,
    SdpoConfig,
    SftConfig,
)
from sdpo.config.schema import OptimConfig
from sdpo.config.teacher import LiveConfig
from sdpo.models.qualify import shares_prefixes
from sdpo.objectives import objective_spec
from sdpo.parallel import Parallel
from sdpo.records import Sample
from sdpo.teacher.schedule import TeacherSchedule
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.optim import Optimizer
from sdpo.training.step import Updater

FED = {
    "both": {"distill": 0.5, "pg": 0.5},
    "distill": {"distill": 1.0},
    "pg": {"pg": 1.0},
    "nothing": {},
}


def sample(number: int, *, fed: str, advantage: float = 1.0) -> Sample:
    """A sample whose prompt is a token that no other sample has."""
    is_taught = "distill" in FED[fed]
    return Sample(
        task_id="t",
        index=number,
        prompt_ids=(100 + number,),
        completion_ids=(5, 6, 7),
        loss_mask=(True,) * 3,
        sampler_logprobs=(-5.0,) * 3,
        teacher_prompt_ids=(90,) if is_taught else None,
        advantage=advantage,
        solved_rate=0.5,
        component_weights=FED[fed],
    )


def reread(objective: ObjectiveConfig, updates: list[list[Sample]]) -> set[int]:
    """Which samples the student reads without a gradient in one step."""
    model = tiny_model(num_layers=1)
    shares_prefixes(model)  # tries small inputs of its own, once
    optim = OptimConfig()
    updater = Updater(
        model,
        byte_tokenizer(),
        Optimizer(optim, model),
        TeacherSchedule(LiveConfig(), model),
        config=optim,
        objective=objective,
        parallel=Parallel(),
    )
    spec = objective_spec(objective, step=0, temperature=1.0, max_completion_tokens=8, trust=None)
    seen: set[int] = set()

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not torch.is_grad_enabled():
            seen.update(inputs[0].flatten().tolist())

    hook = model.get_input_embeddings().register_forward_pre_hook(watch)
    updater.step(updates, spec, where="test")
    hook.remove()
    return {token - 100 for token in seen if token >= 100}


@pytest.mark.parametrize("objective", [SdpoConfig(), ScSdpoConfig(), SftConfig()])
def test_off_policy_distillation_does_not_score_rollouts_under_the_old_policy(objective):
    """Nobody reads these log-probs: the weight of a token is student / sampler."""
    fed = "pg" if isinstance(objective, SftConfig) else "distill"
    updates = [[sample(0, fed=fed)], [sample(1, fed=fed), sample(2, fed="nothing")]]
    assert reread(objective, updates) == set()


def test_only_what_the_policy_gradient_reads_is_scored():
    first = [sample(0, fed="pg"), sample(1, fed="pg", advantage=0.0)]
    second = [
        sample(2, fed="pg"),
        sample(3, fed="pg", advantage=0.0),
        sample(4, fed="nothing"),
    ]
    # The first update trains the very weights that would be scored: its ratios are 1.
    assert reread(GrpoConfig(), [first, second]) == {2}
    assert reread(GrpoConfig(), [second]) == set()


def test_a_hybrid_scores_the_rewarded_half():
    updates = [[sample(0, fed="both")], [sample(1, fed="both"), sample(2, fed="distill")]]
    assert reread(HybridConfig(), updates) == {1}


def test_the_surrogate_per_logit_scores_what_is_distilled():
    """Eq. 13 needs the old policy's support on-policy too."""
    objective = SdpoConfig(importance="logit", divergence=ReverseKLConfig(top_k=5))
    updates = [[sample(0, fed="distill"), sample(1, fed="nothing")], [sample(2, fed="distill")]]
    assert reread(objective, updates) == {0, 2}
