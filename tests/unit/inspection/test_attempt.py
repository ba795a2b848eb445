"""sdpo.credit says what plain forward passes say, from Python and from the command line."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

import sdpo
from sdpo.cli import main
from sdpo.models.policy import Policy
from sdpo.rollouts.sampler import chat_of
from sdpo.testing import byte_tokenizer, tiny_model

FEEDBACK = "It must be even."


@pytest.fixture(scope="module")
def policy():
    model = tiny_model(dtype=torch.float64)
    return Policy(model=model, tokenizer=byte_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def plain_logprobs(policy, messages, completion_ids, temperature=1.0):
    """[T, V] by one dense forward."""
    prompt = chat_of(policy).prompt_ids(messages)
    with torch.no_grad():
        logits = policy.model(torch.tensor([[*prompt, *completion_ids]])).logits[0]
    rows = logits[len(prompt) - 1 : -1] / temperature
    return rows.log_softmax(-1)


@pytest.mark.parametrize("layout", ["single_turn", "turns"])
@pytest.mark.parametrize(
    ("feedback", "demonstration"), [(FEEDBACK, None), (None, "4"), (FEEDBACK, "4")]
)
def test_numbers_are_those_of_plain_forward_passes(policy, layout, feedback, demonstration):
    found = sdpo.credit(
        policy, "What is 2 + 2?", "five", feedback, demonstration, layout=layout, temperature=0.7
    )
    assert found.prompt == ({"role": "user", "content": "What is 2 + 2?"},)
    read = " ".join(message["content"] for message in found.teacher)
    assert (FEEDBACK in read) == (feedback is not None)
    p = plain_logprobs(policy, found.prompt, found.token_ids, 0.7)
    q = plain_logprobs(policy, found.teacher, found.token_ids, 0.7)
    ids = torch.tensor(found.token_ids)[:, None]
    gap = (q - p).gather(1, ids)[:, 0]
    torch.testing.assert_close(torch.tensor(found.gaps, dtype=torch.float64), gap)
    assert gap.abs().max() > 1e-3
    for name, log in (("student", p), ("teacher", q)):
        entropies = torch.tensor(getattr(found, f"{name}_entropies"), dtype=torch.float64)
        torch.testing.assert_close(entropies, -(log.exp() * log).sum(-1))
        values, indices = log.topk(5)
        top = getattr(found, f"{name}_top")
        assert [[token for token, _ in row] for row in top] == indices.tolist()
        kept = torch.tensor([[value for _, value in row] for row in top], dtype=torch.float64)
        torch.testing.assert_close(kept, values)


def test_text_ends_its_turn_and_token_ids_stay_as_they_are(policy):
    chat = chat_of(policy)
    ids = chat.text_ids("five")
    assert sdpo.credit(policy, "2 + 2?", "five", FEEDBACK).token_ids == (*ids, chat.end_of_turn_id)
    assert sdpo.credit(policy, "2 + 2?", ids, FEEDBACK).token_ids == ids


def test_the_judge_is_asked_when_nothing_is_said(policy):
    env = sdpo.env(
        ["2 + 2?"],
        lambda task, rollout: sdpo.Verdict(
            reward=0.0, solved=False, feedback=f"{rollout.text} is odd."
        ),
    )
    task = env.load("train")[0]
    assert sdpo.credit(policy, task, "five", env=env).feedback == "five is odd."
    assert sdpo.credit(policy, task, "five", demonstration="4", env=env).feedback is None


def test_without_anything_to_read_it_says_what_to_give(policy):
    with pytest.raises(sdpo.SdpoError, match=r"feedback and demonstration are both missing"):
        sdpo.credit(policy, "2 + 2?", "five")


def test_what_was_cut_is_said(policy):
    found = sdpo.credit(policy, "2 + 2?", "five", "even " * 200, max_context_tokens=300)
    assert found.info["context"].startswith("cut ")


def invoke(folder, *arguments, text="five\n"):
    return CliRunner().invoke(
        main, ["credit", "--model", str(folder), "--completion", "-", *arguments], input=text
    )


def test_the_command_prints_and_writes_a_page(folder, tmp_path):
    (tmp_path / "feedback.txt").write_text(FEEDBACK)
    page = tmp_path / "credit.html"
    result = invoke(
        folder, "--prompt", "2 + 2?", "--feedback", f"@{tmp_path / 'feedback.txt'}",
        "--html", str(page),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "five" in result.output
    for part in ("student prefers", "teacher prefers", "teacher disagrees"):
        assert part in result.output
    assert FEEDBACK in page.read_text()


def test_a_code_task_is_judged_for_its_feedback(folder, tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    row = {
        "id": "two", "prompt": "Write two().", "kind": "function", "entry_point": "two",
        "tests": {"public": [{"input": [], "output": 2}]},
    }  # fmt: skip
    tasks.write_text(json.dumps(row) + "\n")
    wrong = "```python\ndef two():\n    return 3\n```"
    asked = ("--tasks", str(tasks), "--task")
    result = invoke(folder, *asked, "two", text=wrong)
    assert result.exit_code == 0, result.output
    assert "not solved: wrong_answer" in result.output
    right = invoke(folder, *asked, "two", text=wrong.replace("3", "2"))
    assert right.exit_code == 2
    assert "the judge accepts" in right.output
    unknown = invoke(folder, *asked, "three", text=wrong)
    assert unknown.exit_code == 2
    assert "'two'" in unknown.output


@pytest.mark.parametrize("arguments", [(), ("--task", "two"), ("--prompt", "x", "--task", "two")])
def test_the_task_is_named_once(folder, arguments):
    result = invoke(folder, *arguments, "--feedback", FEEDBACK)
    assert result.exit_code == 2
    assert "give either --prompt" in " ".join(result.output.split())


def test_a_worked_example_without_code_tasks_is_refused(folder):
    result = invoke(folder, "--prompt", "x", "--worked-example", "--feedback", FEEDBACK)
    assert result.exit_code == 2
    assert "give --task and --tasks" in " ".join(result.output.split())


def test_a_missing_feedback_file_is_named(folder):
    result = invoke(folder, "--prompt", "x", "--feedback", "@nowhere.txt")
    assert result.exit_code == 2
    assert "nowhere.txt" in result.output
