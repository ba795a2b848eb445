"""`sdpo config show`: what an objective resolves to, and values that load again."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from sdpo.cli import main
from sdpo.config.load import builtin_recipes, load, load_config
from sdpo.config.schema import RunConfig
from sdpo.config.toml import to_toml
from sdpo.describe import describe_objective
from sdpo.errors import ConfigError


def shown(*arguments):
    result = CliRunner().invoke(main, ["config", "show", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def described(*overrides):
    return " ".join("\n".join(describe_objective(load_config(overrides))).split())


@pytest.mark.parametrize("recipe", builtin_recipes())
def test_what_is_shown_loads_as_the_same_config(recipe, tmp_path):
    file = tmp_path / "shown.toml"
    file.write_text(shown(recipe))
    assert load_config([str(file)]) == load_config([recipe])


def test_explained_values_say_what_they_mean_and_load_the_same(tmp_path):
    text = shown("quickstart", "--explain")
    lines = text.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("group_size = "))
    assert lines[place - 1] == "# Attempts per task. Paper: 8."
    assert all(len(line) <= 100 for line in lines if line.startswith("# "))
    file = tmp_path / "shown.toml"
    file.write_text(text)
    assert load_config([str(file)]) == load_config(["quickstart"])


def test_values_that_need_care_survive():
    awkward = 'a "quoted" \\ back\nslash, \x7f, ünïcode # no comment'
    loaded = load(
        [
            "optim.lr=1e-05", "objective.type=srpo", "objective.advantage_clip=5",
            "model.chat_template_kwargs={enable_thinking = false, level = 3}",
            'log.backends=["wandb", "trackio"]', "discover.select.pass_at=3",
        ]
    )  # fmt: skip
    config = loaded.config.model_copy(update={"run": awkward})
    text = to_toml(type(loaded)(config=config, origins=loaded.origins))
    import tomllib

    assert RunConfig.model_validate(tomllib.loads(text)) == config


def test_every_value_says_where_it_came_from(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[optim]\nlr = 2e-5\n")
    lines = to_toml(load([str(recipe), "steps=3"])).splitlines()
    assert next(line for line in lines if line.startswith("lr = ")).endswith(str(recipe))
    assert next(line for line in lines if line.startswith("steps = ")).endswith("command line")
    assert next(line for line in lines if line.startswith("seed = ")).endswith("# default")


def test_what_a_change_of_type_dropped_is_called_a_default():
    loaded = load(["quickstart", "objective.type=sdpg"])
    assert loaded.config.objective.divergence.top_k == "all"
    assert loaded.origins["objective.type"] == "command line"
    assert not any(key.startswith("objective.divergence") for key in loaded.origins)
    kept = load(["quickstart", "objective.type=srpo"])
    assert kept.config.objective.divergence.top_k == 20
    assert kept.origins["objective.divergence.top_k"] == "quickstart"


def test_srpo_resolves_to_its_routing_weighting_and_one_count():
    text = shown("objective.type=srpo", "rollout.max_completion_tokens=7")
    text = " ".join(text.replace("#", " ").split())
    for part in (
        "failed, a sibling solved: distill x 1 ",
        "failed, feedback only: pg x 1 ",
        "solved, with a teacher context: pg x 1 ",
        "JSD, teacher's weight 0.5, per logit",
        "support: the student's top 100, the rest as one entry",
        "weighting: exp(-1 H(teacher)) over its mean in the batch",
        "pg grpo, ratios within [0.8, 1.28]; old / sampler at most 2",
        "/ tokens routed to distill or pg of the whole batch",
        "teacher ema (rate 0.05)",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["objective.type=grpo"], ["failed, feedback only: pg x 1", "/ tokens routed to pg"]),
        (
            ["objective.type=grpo", "objective.policy_gradient.normalization=fixed",
             "objective.policy_gradient.std=true", "rollout.max_completion_tokens=9"],
            ["rollouts routed to pg x 9", "over its deviation"],
        ),
        (
            ["objective.type=hybrid", "objective.mix=0.75"],
            ["distill x 0.25, pg x 0.75", "/ tokens routed to distill or pg of the whole batch"],
        ),
        (["objective.type=hybrid", "objective.mix=1"], ["feedback only: pg x 1 "]),
        (
            ["objective.type=sdpg"],
            ["distill x 0.001, pg x 1", "the whole vocabulary", "0.001 x KL(student | initial"],
        ),
        (["objective.type=sc_sdpo"], ["sqrt(p(1-p))", "/ tokens routed to distill of"]),
        (["objective.type=rlsd"], ["x (1 - 0.5) + 0.5 exp(sign x gap)", "within [0.8, 1.2]"]),
        (["objective.type=rlcsd"], ["contrast with 4 wrong demonstrations"]),
        (["objective.type=sft"], ["likelihood of the self-teacher's attempts", "teacher ema"]),
        (["objective.divergence.tail=false"], ["renormalised"]),
        (
            ["objective.divergence.support=union", "objective.divergence.top_k=20"],
            ["the top 20 of student and teacher together, the rest as one entry"],
        ),
        (["objective.granularity=token"], ["of the sampled token is its advantage"]),
        (["objective.advantage_clip=5"], ["at most 5"]),
        (["objective.sequence_estimator=0.5"], ["0.5 x sequence-level term"]),
        (
            ["objective.divergence.type=reverse_kl", "objective.importance=logit"],
            ["KL(student | teacher), per logit", "surrogate per logit (Eq. 13)"],
        ),
        (["teacher.schedule.type=trust_region"], ["teacher trust_region (mix 0.01)"]),
        (["objective.weighting.type=position"], ["0.25 + 0.75 sigmoid((t/T - 0.3) / 0.1)"]),
    ],
)  # fmt: skip
def test_the_description_names_the_parts(overrides, parts):
    text = described(*overrides)
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["type=forward_kl", "top_k=all"], "raises any token that the student does not propose"),
        (["type=forward_ce", "support=teacher"], "raises a token of the teacher's top-K that the"),
        (["type=forward_kl", "support=union", "tail=false"], "raises a token of the teacher's top"),
        (
            ["type=forward_kl"],
            "hardly raises a token outside the student's top-K: what the teacher",
        ),
        (["type=forward_kl", "tail=false"], "raises no token outside the student's top-K"),
        (["type=reverse_kl", "top_k=all"], "hardly raises a token that the student does not"),
        (["type=jsd", "support=teacher"], "proportional to the student's probability of it"),
    ],
)
def test_the_description_says_whether_an_unlikely_token_can_be_raised(overrides, sentence):
    """The gradients themselves: tests/properties/test_fused_head.py, test_which_pairs_raise..."""
    assert sentence in described(*(f"objective.divergence.{setting}" for setting in overrides))


def test_credit_of_sampled_tokens_raises_nothing_else():
    for granularity in ("token", "sequence"):
        text = described(f"objective.granularity={granularity}")
        assert "raises no token that the student does not sample" in text


def test_the_clip_takes_the_reach_of_forward_kl():
    text = described(
        "objective.divergence.type=forward_kl",
        "objective.divergence.top_k=all",
        "objective.advantage_clip=5",
    )
    assert "at most e^5 times the student's probability" in text


@pytest.mark.parametrize(
    ("overrides", "cure"),
    [
        (["objective.divergence.top_k=all"], "give top_k a number"),
        (
            ["objective.divergence.type=reverse_kl", "objective.importance=logit"],
            "importance = 'token'",
        ),
        (["objective.granularity=token"], "set granularity = 'logit'"),
    ],
)
def test_a_support_that_nobody_reads_is_refused_with_the_cure(overrides, cure):
    for chooser in ("teacher", "union"):
        with pytest.raises(ConfigError, match=cure):
            load_config([f"objective.divergence.support={chooser}", *overrides])


def test_objectives_without_a_teacher_name_none():
    assert "teacher ema" not in described("objective.type=grpo")
    assert "distill " not in described("objective.type=grpo")
