"""A real Jupyter kernel, whose cells run inside an event loop."""

from __future__ import annotations

import json

import pytest

from sdpo.testing import byte_tokenizer, tiny_model

CELL = """
import sdpo

async def judge(task, rollout):
    return float("a" in rollout.text), "write the letter a"

result = sdpo.train(
    "quickstart", "model.name={folder}/model", "run={folder}/run", "steps=1",
    "rollout.tasks_per_step=1", "rollout.group_size=2", "rollout.max_completion_tokens=4",
    "rollout.max_prompt_tokens=200", "eval.samples=1",
    env=sdpo.env(["say a"], judge),
)
print("finished at", result.step)
"""


@pytest.mark.filterwarnings("ignore")
def test_every_judging_function_raised_in_jupyter(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    cell = nbformat.v4.new_code_cell(CELL.format(folder=tmp_path.as_posix()))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert "finished at 1" in json.dumps(notebook.cells[0].outputs)
