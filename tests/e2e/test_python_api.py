"""What a person types in Python: everything is found, objects of transformers train, a result can
be used, a run can be opened."""

from __future__ import annotations

import json
import os
import pydoc
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sdpo
from sdpo.config.load import load_config
from sdpo.errors import ConfigError, ModelError
from sdpo.models.quiet import quiet
from sdpo.testing import byte_tokenizer, tiny_model

ENV = sdpo.env([f"say {i}" for i in range(3)], lambda task, rollout: float("a" in rollout.text))
SMALL = {
    "rollout": {
        "tasks_per_step": 2, "group_size": 2, "max_completion_tokens": 6, "max_prompt_tokens": 200,
    },
    "eval": {"samples": 2, "every": 0}, "objective": {"type": "hybrid"},
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    with quiet():
        tiny_model().save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def result(tiny, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "x"
    model = {"name": tiny, "dtype": "float32"}
    return sdpo.train(
        "quickstart", env=ENV, model=model, run=run, steps=2, optim={"lr": 1e-2}, **SMALL
    )


def test_dir_and_help_showed_none_of_the_functions():
    assert set(sdpo.__all__) <= set(dir(sdpo))
    text = pydoc.plain(pydoc.render_doc(sdpo))
    for name in ("train", "evaluate", "discover", "check", "probe", "credit", "Run", "RunConfig"):
        assert f"{name}(" in text or f"class {name}" in text, name
    assert "sdpo.report" in text
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = sdpo.trian


def test_looking_around_loads_no_torch():
    code = (
        "import sys, sdpo\nnames = dir(sdpo)\nsdpo.RunConfig; sdpo.load_config\n"
        "assert 'torch' not in sys.modules and 'train' in names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_are_keywords_and_mappings(tiny):
    config = sdpo.load_config(["quickstart"], {"steps": 3, "optim": {"lr": 2e-5}})
    assert config == load_config(["quickstart", "steps=3", "optim.lr=2e-5"])
    assert sdpo.load_config([], {"optim.lr": 1e-4}).optim.lr == 1e-4
    assert sdpo.load_config([], {"log": {"backends": ("tensorboard",)}}).log.backends
    with pytest.raises(
        ConfigError, match=r"unknown key 'optim\.grad_clp'.*Did you mean 'grad_clip'"
    ):
        sdpo.train("quickstart", optim={"grad_clp": 1.0})
    with pytest.raises(ConfigError, match="unknown key 'stpes'"):
        sdpo.train("quickstart", stpes=3)


def test_a_result_has_its_checkpoint_model_and_report(result, tiny):
    recorded = json.loads((result.run_dir / "config.json").read_text())["config"]
    assert recorded["model"]["name"] == str(tiny)
    assert recorded["optim"]["lr"] == 1e-2
    assert result.finished
    assert result.checkpoint == result.run_dir / "checkpoints" / "step-2"
    model, tokenizer = result.load()
    again = AutoModelForCausalLM.from_pretrained(result.checkpoint)
    assert all(
        torch.allclose(a.float(), b.float())
        for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert tokenizer.chat_template
    assert result.report() == result.run_dir / "report.html"
    assert "finished at step 2, held out " in repr(result)
    assert len(repr(result)) < 200
    page = result._repr_html_()
    assert page.count("<tr>") == 4
    assert "<th>held out</th>" in page
    assert sdpo.report(result, out=result.run_dir / "other.html").is_file()
    assert sdpo.evaluate(result, env=ENV).model == str(result.checkpoint)


def test_a_run_is_opened(result):
    run = sdpo.Run.open(result.run_dir)
    metrics = run.metrics()
    assert metrics["step"] == [0, 1, 2]
    assert {len(column) for column in metrics.values()} == {3}
    assert metrics["loss/total"][0] is None
    assert metrics["eval/solved"][2] == result.metrics["eval/solved"]
    rows = list(run.rollouts("train"))
    assert len(rows) == 8
    assert {row["split"] for row in run.rollouts()} == {"train", "eval"}
    assert run.config.steps == 2
    assert os.fspath(run) == str(result.run_dir)
    assert sdpo.report(run, out=result.run_dir / "third.html").is_file()
    assert run.outcome() in run._repr_html_().replace("&#x27;", "'")
    with pytest.raises(ConfigError, match="not a run's folder"):
        sdpo.Run.open(result.run_dir / "checkpoints")


def test_objects_of_transformers_train_as_the_same_names_do(result, tiny, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    seen = []
    found = sdpo.train(
        "quickstart", env=ENV, model=model, tokenizer=tokenizer, run=tmp_path / "x", steps=2,
        optim={"lr": 1e-2}, on_step=seen.append, **SMALL,
    )  # fmt: skip
    assert [row["step"] for row in seen] == [0, 1, 2]
    # The very object has been trained, to the same weights as by name.
    trained, _ = result.load()
    assert all(
        torch.equal(a, b.to(a.dtype))
        for a, b in zip(model.parameters(), trained.parameters(), strict=True)
    )
    recorded = json.loads((found.run_dir / "config.json").read_text())["config"]["model"]
    assert recorded["name"] == str(tiny)
    assert recorded["dtype"] == "float32"
    score = sdpo.evaluate("quickstart", env=ENV, model=model, tokenizer=tokenizer, **SMALL)
    assert score.mean_at_k().mean == pytest.approx(result.metrics["eval/solved"])
    assert sdpo.check("quickstart", env=ENV, model=model, tokenizer=tokenizer, **SMALL).num_tasks


def test_objects_that_cannot_be_trained_name_the_fix(tiny, tmp_path):
    model, tokenizer = tiny_model(), byte_tokenizer()
    cases = [
        ({"model": model}, ModelError, "needs its tokenizer too"),
        ({"model": object(), "tokenizer": tokenizer}, ModelError, "AutoModelForCausalLM"),
        ({"tokenizer": tokenizer}, ConfigError, "without a model object"),
        ({"model": tiny_model().half(), "tokenizer": tokenizer}, ModelError, "torch.float16"),
        ({"model": model, "tokenizer": tokenizer, "seeds": 2}, ConfigError, "one seed"),
    ]
    for arguments, kind, said in cases:
        with pytest.raises(kind, match=said):
            sdpo.train("quickstart", env=ENV, run=tmp_path / "never", **arguments, **SMALL)
    assert not (tmp_path / "never").exists()


def test_a_judging_function_given_as_the_environment_was_an_attribute_error(tiny):
    def judge(task, rollout):
        return 1.0

    for call in (sdpo.train, sdpo.evaluate, sdpo.check, sdpo.probe):
        with pytest.raises(ConfigError, match=r"env = judge: .*make one with sdpo\.env"):
            call("quickstart", env=judge)
