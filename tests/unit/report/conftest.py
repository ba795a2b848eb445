"""Real runs of a tiny model, one folder each, shared by every test of the report."""

from __future__ import annotations

import pytest

import sdpo
from sdpo.config.load import load_config
from sdpo.testing import byte_tokenizer, tiny_model, toy_env, toy_tokenizer
from sdpo.training.loop import train


def settings(run, model, *overrides):
    return load_config(
        [
            f"run={run}", f"model.name={model}", "model.device=cpu", "model.dtype=float32",
            "steps=3", "rollout.tasks_per_step=3", "rollout.group_size=4",
            "rollout.max_completion_tokens=8", "rollout.max_prompt_tokens=200", "eval.samples=2",
            "eval.every=2", "checkpoint.every=0", "optim.lr=1e-3", *overrides,
        ]
    )  # fmt: skip


def saved(folder, tokenizer):
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def judge(task, rollout):
    """Half of the attempts are solved by chance: groups have winners, losers and feedback."""
    is_even = rollout.completion_ids[0] % 2 == 0
    return sdpo.Verdict(
        reward=float(is_even),
        solved=is_even,
        feedback=None if is_even else "begins with an odd token",
        metrics={"even": float(is_even)},
        info={"category": "accepted" if is_even else "wrong_answer"},
    )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """Self-distillation with everything that can be measured measured."""
    folder = tmp_path_factory.mktemp("real")
    env = sdpo.env([{"id": f"t{i}", "prompt": f"say {i}"} for i in range(6)], judge)
    (folder / "other.py").write_text(
        "import sdpo\nENV = sdpo.env(['a'], lambda task, rollout: rollout.completion_ids[0] % 2)\n"
    )
    (folder / "other.toml").write_text(
        f"[env]\ntype = 'custom'\npath = '{folder}/other.py:ENV'\n"
        "[rollout]\nmax_completion_tokens = 8\n"
    )
    holdout = f"eval.holdout=['{folder}/other.toml']"
    options = ("objective.kl_coefficient=0.01", "eval.probe_tasks=4", holdout)
    model = saved(folder / "model", byte_tokenizer())
    return train(settings(folder / "tiny", model, *options), env=env).run_dir


@pytest.fixture(scope="session")
def sft_run(tiny_run):
    """The baseline that imitates its own teacher; it writes `teacher/solved`."""
    env = sdpo.env([{"id": f"t{i}", "prompt": f"say {i}"} for i in range(6)], judge)
    folder = tiny_run.parent
    options = ("objective.type=sft", "steps=1")
    return train(settings(folder / "sft", folder / "model", *options), env=env).run_dir


@pytest.fixture(scope="session")
def flat_run(tmp_path_factory):
    """The toy world, which a random model never solves, trained on rewards alone: every group is
    flat and no loss has a gradient."""
    folder = tmp_path_factory.mktemp("flat")
    options = ("objective.type=grpo", "steps=2", "eval.every=0")
    model = saved(folder / "model", toy_tokenizer())
    return train(settings(folder / "flat", model, *options), env=toy_env(3)).run_dir
