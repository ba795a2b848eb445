"""A real Jupyter kernel, whose cells run inside an event loop."""

from __future__ import annotations

import json
from pathlib import Path

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


@pytest.mark.filterwarnings("ignore")
def test_the_notebook_of_the_examples_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = Path(__file__).parents[2] / "examples" / "own_environment.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    shown = [json.dumps(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert "num_tasks=4, failures={}" in shown[2]
    assert "text/html" in shown[3]
    assert "Held-out attempts solved" in shown[4]
    assert "The right code is" in shown[4]
    assert "report.html" in shown[6]
