"""Named objectives resolve to the settings of their own papers."""

from __future__ import annotations

import pytest

from sdpo.config.load import load_config
from sdpo.errors import ConfigError
from sdpo.losses.specs import ObjectiveSpec
from sdpo.objectives import check_objective, divides_by_std, objective_spec


def spec(*overrides: str) -> ObjectiveSpec:
    config = load_config(overrides)
    return objective_spec(
        config.objective, step=0, temperature=1.0, max_completion_tokens=64, trust=None
    )


@pytest.mark.parametrize(
    ("kind", "eps_low", "eps_high", "normalization", "std"),
    [
        ("grpo", 0.2, 0.28, "token", False),
        # 2507.18071: the ratios of whole sequences are within 1e-3 of 1; with GRPO's range nothing
        # was ever clipped, and long rollouts weighed more.
        ("gspo", 3e-4, 4e-4, "sequence", True),
        # 2506.13585: "no lower bound".
        ("cispo", None, 0.28, "token", True),
    ],
)
def test_a_surrogate_has_the_clip_and_the_mean_of_its_paper(
    kind, eps_low, eps_high, normalization, std
):
    overrides = ("objective.type=grpo", f"objective.policy_gradient.type={kind}")
    pg = spec(*overrides).pg
    assert pg is not None
    assert (pg.kind, pg.eps_low, pg.eps_high) == (kind, eps_low, eps_high)
    assert pg.normalization == normalization
    assert divides_by_std(load_config(overrides).objective) == std


def test_sdpg_divides_advantages_by_the_deviation():
    """2606.04036: "with normalized standard deviation"; GRPO and the hybrid do not."""
    found = {
        name: divides_by_std(load_config([f"objective.type={name}"]).objective)
        for name in ("sdpg", "grpo", "hybrid", "srpo", "sdpo", "sft")
    }
    assert found == dict.fromkeys(found, False) | {"sdpg": True}


LOGIT = (
    "objective.importance=logit",
    "objective.divergence.type=reverse_kl",
    "objective.divergence.top_k=5",
)


def test_the_clip_range_of_the_surrogate_per_logit_can_be_set():
    distill = spec(*LOGIT).distill
    assert distill is not None
    assert (distill.eps_low, distill.eps_high) == (0.2, 0.28)
    overrides = ("objective.importance_eps_low=0.1", "objective.importance_eps_high=0.4")
    distill = spec(*LOGIT, *overrides).distill
    assert distill is not None
    assert (distill.eps_low, distill.eps_high) == (0.1, 0.4)


@pytest.mark.parametrize(
    ("overrides", "cure"),
    [
        (["objective.importance_eps_low=0.1"], "set objective.importance = 'logit'"),
        ([*LOGIT, "objective.ratio_cap=3"], "leave it at 2"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused_with_the_cure(overrides, cure):
    with pytest.raises(ConfigError, match=cure):
        load_config(overrides)


def test_a_recipes_clip_range_does_not_follow_to_another_surrogate(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        '[objective]\ntype = "grpo"\n[objective.policy_gradient]\neps_low = 0.1\nratio_cap = 3.0\n'
    )
    pg = spec(str(recipe), "objective.policy_gradient.type=gspo").pg
    assert pg is not None
    assert (pg.eps_low, pg.ratio_cap) == (3e-4, 3.0)


ONE = "rollout.group_size=1"


@pytest.mark.parametrize("kind", ["grpo", "rlsd", "rlcsd", "srpo", "sc_sdpo"])
def test_groups_of_one_are_refused_where_only_their_differences_teach(kind):
    config = load_config([f"objective.type={kind}", ONE])
    with pytest.raises(ConfigError, match=f"{kind!r} learns from how the attempts of a group"):
        check_objective(config)
    check_objective(load_config([f"objective.type={kind}"]))


@pytest.mark.parametrize("kind", ["sdpo", "hybrid", "sdpg", "sft"])
def test_groups_of_one_need_something_to_read(kind):
    alone = [f"objective.type={kind}", ONE, "teacher.context.feedback=never"]
    with pytest.raises(ConfigError, match="no siblings to demonstrate"):
        check_objective(load_config(alone))
    check_objective(load_config([f"objective.type={kind}", ONE]))
    check_objective(load_config([*alone, "teacher.context.demonstration=reference"]))


def test_groups_of_one_are_not_redrawn_for_ever():
    with pytest.raises(ConfigError, match=r"with rollout.group_size = 1 no"):
        check_objective(load_config([ONE, "rollout.redraws=1", "objective.type=sdpo"]))
