"""Four people on their first day, each by the commands that the README and the guides name: a
learner, a researcher with an idea of their own, an engineer with data and a scoring function, and
somebody with one hard question. Real processes; the toy model of `sdpo.testing`."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest

from sdpo.models.quiet import quiet
from sdpo.testing import save_toy_model

pytestmark = pytest.mark.slow

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "160"}
CODES = {"abba": "Ka47", "cafe": "Zu11", "deaf": "Mo30", "head": "Bi92"}
JUDGE = """
def judge(task, rollout):
    ok = rollout.text == task.reference
    said = None if ok else f"The code is not {rollout.text}. The right code is {task.reference}."
    return sdpo.Verdict(reward=float(ok), solved=ok, feedback=said)
"""
OWN = f"""
import sdpo

CODES = {CODES!r}
{JUDGE}

env = sdpo.env(
    [{{"id": n, "prompt": f"What is the code of item {{n}}?", "reference": c}}
     for n, c in CODES.items()],
    judge,
)
"""
ENV = ("env.type=custom", "env.path=own.py:env")


@pytest.fixture
def desk(tmp_path):
    """A folder to work in, with the toy recipe's model; calls commands there."""
    with quiet():
        save_toy_model(tmp_path / "runs" / "toy-model")

    def call(*command, status=0):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=550,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    call.folder = tmp_path
    return call


def test_a_learner_sees_feedback_teach_and_looks_at_the_report(desk):
    """demo -> train -> report -> talk to the model."""
    shown = desk("sdpo", "demo")
    assert "next: sdpo train quickstart" in shown
    (desk.folder / "own.py").write_text(OWN)
    shown = desk("sdpo", "train", "toy", *ENV, "steps=3")
    assert "next: sdpo report runs/toy" in shown
    (page,) = desk("sdpo", "report", "runs/toy").split()
    assert (desk.folder / page).read_text().startswith("<!doctype html>")
    assert "solved: before" in desk("sdpo", "sample", "runs/toy")


def test_a_researcher_compares_a_weighting_of_their_own_over_three_seeds(desk):
    (desk.folder / "own.py").write_text(OWN)
    (desk.folder / "weights.py").write_text(
        "import torch\n\n\ndef first(tokens, *, factor=2.0):\n"
        "    weights = torch.ones_like(tokens.teacher_logprob)\n"
        "    weights[0] = factor\n    return weights\n"
    )
    custom = ("objective.weighting.type=custom", "objective.weighting.path=weights.py:first")
    small = ("steps=2", "seeds=3", "eval.every=0", "eval.samples=4", *ENV)
    desk("sdpo", "train", "toy", "run=runs/plain", *small)
    shown = desk("sdpo", "train", "toy", "run=runs/mine", *custom, *small)
    assert "next: sdpo compare runs/mine" in shown
    found = json.loads(desk("sdpo", "compare", "runs/plain", "--", "runs/mine", "--as", "json"))
    assert [arm["runs"] for arm in found["arms"]] == [3, 3]
    assert found["differences"][0]["paired_by_seed"]
    desk("sdpo", "report", "runs/plain", "runs/mine", "--out", "both.html")
    assert (desk.folder / "both.html").is_file()


def test_an_engineer_gets_from_a_table_and_a_score_to_a_model_that_transformers_loads(desk):
    with (desk.folder / "codes.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["item", "code"])
        rows.writerows(CODES.items())
    (desk.folder / "own.py").write_text(f"""
import csv
from pathlib import Path

import sdpo
{JUDGE}

with Path("codes.csv").open(encoding="utf-8") as file:
    tasks = [
        {{"id": row["item"], "prompt": f"What is the code of item {{row['item']}}?",
          "reference": row["code"]}}
        for row in csv.DictReader(file)
    ]
env = sdpo.env(tasks, judge)
""")
    assert "4 tasks, 0 failures" in desk("sdpo", "check", "toy", *ENV)
    sizes = ("--probe-tasks", "4", "--probe-samples", "2")
    assert "help" in desk("sdpo", "check", "toy", *ENV, "--probe", *sizes)
    shown = desk("sdpo", "train", "toy", *ENV, "run=runs/codes")
    assert "rose from 0.00" in shown or "0.00 before" in shown or "went from 0.00" in shown
    desk("sdpo", "export", "runs/codes", "--to", "codes-model")
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained('codes-model')\n"
        "tokenizer = AutoTokenizer.from_pretrained('codes-model')\n"
        "said = []\n"
        f"for item in {list(CODES)!r}:\n"
        "    message = [{'role': 'user', 'content': f'What is the code of item {item}?'}]\n"
        "    text = tokenizer.apply_chat_template(message, tokenize=False, "
        "add_generation_prompt=True)\n"
        "    ids = tokenizer(text, return_tensors='pt', add_special_tokens=False)\n"
        "    out = model.generate(ids.input_ids, max_new_tokens=4, do_sample=False)\n"
        "    said.append(tokenizer.decode(out[0, ids.input_ids.shape[1]:]))\n"
        "print(said)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=desk.folder, env=ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert any(code in done.stdout for code in CODES.values()), done.stdout


def test_one_hard_question_is_searched_until_it_is_solved(desk):
    (desk.folder / "own.py").write_text(OWN)
    shown = desk(
        "sdpo", "discover", "toy", *ENV, "run=runs/question", "discover.tasks=cafe",
        "discover.methods=self_distillation", "discover.seeds=1", "discover.budget=512",
    )  # fmt: skip
    assert "cafe, self_distillation, seed 0: solved at attempt" in shown
    solution = desk.folder / "runs" / "question" / "solutions" / "cafe.txt"
    assert solution.read_text() == CODES["cafe"]
    assert "solution: runs/question/solutions/cafe.txt" in shown
    desk("sdpo", "report", "runs/question")
