"""A run's folder is a model: its newest weights, its environment, its adapters; by every command
that takes a model, through the command line where the user meets it."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file

import sdpo
from sdpo.cli import run
from sdpo.errors import ConfigError, ModelError
from sdpo.models.policy import load_policy
from sdpo.run_folder import as_run, config_of

LORA = ("model.adapter.type=lora", "model.adapter.rank=4")


def settings(work, name, *more):
    return [
        "quickstart", f"run={work / name}", "model.dtype=float32", "env.type=custom",
        f"env.path={work / 'own.py'}:env", "steps=2", "rollout.tasks_per_step=2",
        "rollout.group_size=2", "rollout.max_completion_tokens=6", "optim.lr=1e-2",
        "optim.warmup_steps=0", "rollout.max_prompt_tokens=200", "eval.samples=2", "eval.every=0",
        "checkpoint.every=1", "checkpoint.keep=3", "objective.type=sdpo", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def full(work):
    assert run(["train", *settings(work, "full", f"model.name={work / 'tiny'}")]) == 0
    return work / "full"


@pytest.fixture(scope="module")
def lora(work):
    assert run(["train", *settings(work, "lora", f"model.name={work / 'tiny'}", *LORA)]) == 0
    return work / "lora"


def weights(policy):
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def differ(a, b):
    return any(not torch.equal(a[name], b[name]) for name in a)


def test_eval_of_a_run_was_that_of_its_initial_weights(full, work, capsys):
    assert run(["eval", str(full)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "step-2" in shown
    assert "4 tasks x 2 attempts" in shown
    found = sdpo.evaluate(str(full))
    assert found.model == str(full / "checkpoints" / "step-2")
    named = sdpo.evaluate(*settings(work, "x", f"model.name={found.model}"))
    assert [[r.text for r in g.rollouts] for g in found.groups] == [
        [r.text for r in g.rollouts] for g in named.groups
    ]
    last = [json.loads(line) for line in (full / "metrics.jsonl").read_text().splitlines()][-1]
    assert found.mean_at_k().mean == pytest.approx(last["eval/solved"])


def test_a_step_of_a_run_and_a_run_as_the_models_name(full):
    newest, first = load_policy(str(full)), load_policy(f"{full}@1")
    assert newest.name.endswith("step-2")
    assert first.name.endswith("step-1")
    assert differ(weights(newest), weights(first))
    assert config_of([f"{full}@1"]).model.name == first.name
    assert config_of(["quickstart", f"model.name={full}"]).model.name == newest.name
    # A later file and an override win over the run.
    assert config_of([str(full), "model.name=other/model"]).model.name == "other/model"
    assert config_of([str(full), "steps=9"]).steps == 9


def test_what_no_run_can_give_is_said(full, work, tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint of step 7; it has 1, 2"):
        load_policy(f"{full}@7")
    for seed in range(2):
        (tmp_path / "seeds" / f"seed-{seed}").mkdir(parents=True)
        (tmp_path / "seeds" / f"seed-{seed}" / "config.json").write_text('{"config": {}}')
    with pytest.raises(ConfigError, match=r"several seeds; name one of them: .*seed-0.*seed-1"):
        sdpo.evaluate(str(tmp_path / "seeds"))
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        sdpo.evaluate(str(tmp_path / "seeds" / "seed-0"))
    assert as_run(str(work / "tiny")) is None
    assert as_run("HuggingFaceTB/SmolLM2-135M-Instruct") is None


def test_eval_of_a_run_with_an_environment_from_python_took_the_recipes_tasks(work, capsys):
    with pytest.raises(ConfigError, match="pass the same env="):
        config_of([str(_python_run(work))])
    assert run(["eval", str(work / "python")]) == 2
    assert "given in Python" in capsys.readouterr().err
    env = sdpo.env(["say 1"], lambda task, rollout: 1.0)
    assert sdpo.evaluate(str(work / "python"), env=env).mean_at_k().mean == 1.0
    path = f"env.path={work / 'own.py'}:env"
    assert len(sdpo.evaluate(str(work / "python"), "env.type=custom", path).num_solved) == 4


def _python_run(work):
    env = sdpo.env(["say 1"], lambda task, rollout: 0.0)
    keys = [s for s in settings(work, "python", "steps=1") if not s.startswith("env.")]
    sdpo.train(*keys, f"model.name={work / 'tiny'}", env=env)
    return work / "python"


def test_lora_checkpoints_loaded_nowhere(lora, work, capfd):
    folder = lora / "checkpoints" / "step-2"
    names = {path.name for path in folder.iterdir()}
    assert "adapter_model.safetensors" in names
    # The adapter is there once, and no empty card of PEFT's beside it.
    assert not names & {"trainable.safetensors", "README.md"}
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str((work / "tiny").resolve())
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = load_policy(str(lora), dtype="float32")
    assert capfd.readouterr() == ("", "")
    plain = weights(load_policy(str(work / "tiny"), dtype="float32"))
    merged = weights(policy)
    assert merged.keys() == plain.keys()
    assert differ(merged, plain)
    assert run(["eval", str(lora)]) == 0
    assert run(["check", str(lora), "--probe", "--probe-tasks=1", "--probe-samples=1"]) == 0
    assert sdpo.credit(str(lora), "say 1", "x", "no").info["model"] == str(folder)
    assert "FutureWarning" not in "".join(capfd.readouterr())


def test_a_merged_adapter_says_what_the_adapter_said(lora):
    found = sdpo.evaluate(str(lora))
    merged = sdpo.evaluate(str(lora), "model.adapter.type=full")
    last = [json.loads(line) for line in (lora / "metrics.jsonl").read_text().splitlines()][-1]
    assert found.mean_at_k().mean == pytest.approx(last["eval/solved"])
    ids = torch.tensor([[5, 9, 11, 40]])
    adapter = config_of([str(lora)]).model.adapter
    with torch.no_grad():
        left = load_policy(str(lora), dtype="float32", adapter=adapter).model(ids).logits
        right = load_policy(str(lora), dtype="float32").model(ids).logits
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    assert merged.samples == found.samples


@pytest.mark.parametrize("rank", [4, 2, None])
def test_training_goes_on_from_a_lora_run(lora, work, rank):
    """With the same adapter, with a new one over the merged weights, and with full weights."""
    more = () if rank is None else (LORA[0], f"model.adapter.rank={rank}")
    name = f"more-{rank}"
    assert run(["train", *settings(work, name, f"model.name={lora}", "steps=1", *more)]) == 0
    recorded = json.loads((work / name / "config.json").read_text())["config"]["model"]["name"]
    assert recorded == str(lora / "checkpoints" / "step-2")
    assert run(["eval", str(work / name)]) == 0
    folder = work / name / "checkpoints" / "step-1"
    if rank is None:
        assert (folder / "model.safetensors").is_file()
        return
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == (str(work / "tiny") if rank == 4 else recorded)
    if rank == 4:
        before = load_file(lora / "checkpoints" / "step-2" / "adapter_model.safetensors")
        after = load_file(folder / "adapter_model.safetensors")
        # AdamW moves a weight by about the learning rate a step: the same adapter, one step on.
        assert max((after[n] - before[n]).abs().max().item() for n in before) < 0.05


def test_a_lora_run_resumes_from_the_adapters_own_file(lora, work):
    assert run(["train", str(lora), "steps=3"]) == 0
    straight = settings(work, "lora-3", f"model.name={work / 'tiny'}", *LORA, "steps=3")
    assert run(["train", *straight]) == 0
    a, b = (
        load_file(folder / "checkpoints" / "step-3" / "adapter_model.safetensors")
        for folder in (lora, work / "lora-3")
    )
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_an_adapter_without_its_base_or_with_missing_weights(lora, tmp_path):
    folder = shutil.copytree(lora / "checkpoints" / "step-2", tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "/nowhere/model"})
    )
    with pytest.raises(ModelError, match=r"/nowhere/model.*no such folder"):
        load_policy(str(folder))
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": None})
    )
    with pytest.raises(ModelError, match="names no base model"):
        load_policy(str(folder))
