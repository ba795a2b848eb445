"""Recipes, overrides and the errors a user meets."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sdpo.api import as_config
from sdpo.config import RunConfig
from sdpo.config.load import builtin_recipes, dump, load, load_config, resolve
from sdpo.errors import ConfigError


def test_precedence_is_default_then_files_then_overrides(tmp_path):
    first = tmp_path / "a.toml"
    first.write_text("steps = 7\n[optim]\nlr = 2e-5\nwarmup_steps = 3\n")
    second = tmp_path / "b.toml"
    second.write_text("[optim]\nlr = 3e-5\n")
    loaded = load([str(first), "optim.lr=4e-5", str(second)])
    assert loaded.config.optim.lr == 4e-5
    assert loaded.config.optim.warmup_steps == 3
    assert loaded.config.steps == 7
    assert loaded.config.optim.grad_clip == RunConfig().optim.grad_clip
    assert loaded.origins == {
        "steps": str(first),
        "optim.warmup_steps": str(first),
        "optim.lr": "command line",
    }


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["optim.lrr=1"], ["'optim.lrr'", "Did you mean 'lr'", "warmup_steps"]),
        (["objective.type=grp"], ["objective.type = 'grp'", "Did you mean 'grpo'"]),
        (["objective.divergence.betta=0.1"], ["objective.divergence.betta", "'beta'"]),
        (["teacher.schedule.every=3"], ["teacher.schedule.every", "rate"]),
        (["env.type=choice"], ["env.tasks is required"]),
        (["optim.lr=-1"], ["optim.lr = -1", "greater than 0"]),
        (["nope"], ["'nope'", "neither a built-in recipe nor a file"]),
        (["discover.select.pass_att=3"], ["discover.select.pass_att", "pass_at"]),
        (["objective.type=sdpo", "objective.mix=0.5"], ["objective.mix", "granularity"]),
        (
            ["objective.importance=logit"],
            ["objective: importance", "divergence.type = 'reverse_kl"],
        ),
        (
            ["objective.importance_eps_high=0.4"],
            ["objective: importance_eps_high = 0.4", "set objective.importance = 'logit'"],
        ),
        (
            ["objective.divergence.top_k=all", "objective.divergence.tail=false"],
            ["objective.divergence: tail = false", "give top_k a number"],
        ),
    ],
)
def test_wrong_input_names_key_and_cure(arguments, parts):
    with pytest.raises(ConfigError) as error:
        load(arguments)
    for part in parts:
        assert part in str(error.value)


def test_section_without_type_changes_the_default_variant():
    config = load_config(["objective.divergence.top_k=20"])
    assert config.objective.divergence.type == "jsd"
    assert config.objective.divergence.top_k == 20


def test_partial_section_keeps_the_variants_own_settings():
    config = load_config(["objective.type=sdpg", "objective.divergence.tail=true"])
    assert config.objective.divergence.type == "reverse_kl"
    assert config.objective.divergence.top_k == "all"


def test_changing_the_objective_changes_one_thing(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[objective]\ntype = "srpo"\nkl_coefficient = 0.1\n'
        "[objective.policy_gradient]\neps_high = 0.5\n"
        '[objective.divergence]\ntype = "forward_kl"\ntop_k = 20\n'
        "[objective.weighting]\nbeta = 3.0\n"
    )
    hybrid = load_config([str(recipe), "objective.type=hybrid"]).objective
    assert (hybrid.divergence.type, hybrid.divergence.top_k) == ("forward_kl", 20)
    assert (hybrid.kl_coefficient, hybrid.policy_gradient.eps_high) == (0.1, 0.5)
    assert hybrid.weighting.type == "none"  # srpo declares its own
    grpo = load_config([str(recipe), "objective.type=grpo"]).objective
    assert grpo.policy_gradient.eps_high == 0.5
    sdpg = load_config([str(recipe), "objective.type=sdpg"]).objective
    assert (sdpg.divergence.type, sdpg.divergence.top_k) == ("reverse_kl", "all")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model=/tmp/x", ["model is a section", "name"]),
        ("optim=3", ["optim is a section", "lr"]),
        ("objective=grpo", ["objective is a section", "type"]),
        ("log.backends=3", ["log.backends", '["..."]']),
    ],
)
def test_a_value_where_a_section_or_list_belongs_says_so(override, parts):
    with pytest.raises(ConfigError) as error:
        load_config([override])
    for part in parts:
        assert part in str(error.value)


def test_python_arguments_are_never_dropped(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text("steps = 3\n")
    assert as_config(recipe, "seed=4").steps == 3
    for wrong in ((RunConfig(), "seed=4"), ({"steps": 3},)):
        with pytest.raises(ConfigError, match="one RunConfig alone"):
            as_config(*wrong)


def test_changing_the_divergence_keeps_its_support(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text("[objective.divergence]\nbeta = 0.3\ntop_k = 20\n")  # jsd by default
    jsd = load_config([str(recipe), "objective.divergence.type=jsd"]).objective.divergence
    assert (jsd.beta, jsd.top_k) == (0.3, 20)
    loaded = load([str(recipe), "objective.divergence.type=reverse_kl"])
    assert loaded.config.objective.divergence.top_k == 20
    assert "objective.divergence.beta" not in loaded.origins


def test_one_name_with_two_meanings_is_not_kept(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[objective]\ntype = "hybrid"\nmix = 0.9\n')
    assert load_config([str(recipe), "objective.type=rlsd"]).objective.mix == 0.5


def test_changing_type_drops_keys_of_the_other_variant(tmp_path):
    recipe = tmp_path / "a.toml"
    recipe.write_text('[teacher.schedule]\ntype = "ema"\nrate = 0.5\n')
    config = load_config([str(recipe), "teacher.schedule.type=frozen"])
    assert config.teacher.schedule.type == "frozen"


def test_resolved_config_round_trips_through_json():
    config = load_config(["objective.type=hybrid", "objective.mix=0.3", "model.adapter.type=lora"])
    assert resolve(json.loads(json.dumps(dump(config)))) == config


def test_every_builtin_recipe_parses():
    recipes = builtin_recipes()
    assert "quickstart" in recipes
    for name in recipes:
        load_config([name])


def test_every_field_is_documented():
    def walk(cls):
        for child in cls.__subclasses__():
            yield child
            yield from walk(child)

    from sdpo.config.base import Config

    sections = {"model", "env", "rollout", "teacher", "objective", "optim", "eval", "checkpoint"}
    sections |= {"credit", "canaries", "log", "discover"}
    for cls in walk(Config):
        for name, field in cls.model_fields.items():
            if cls is RunConfig and name in sections:
                continue
            inherited = any(
                name in base.model_fields and base.model_fields[name].description
                for base in cls.__mro__[1:]
                if hasattr(base, "model_fields")
            )
            assert field.description or inherited, f"{cls.__name__}.{name}"


def test_importing_config_loads_no_torch():
    code = (
        "import sdpo, sdpo.config, sdpo.config.load, sys\n"
        "print(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
