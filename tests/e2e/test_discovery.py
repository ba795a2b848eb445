"""Searches on a tiny random model: counting, budgets, restored weights, resume, records."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import sdpo
from sdpo.chat import Chat
from sdpo.config.load import load_config
from sdpo.config.schema import LoraConfig, OptimConfig, RunConfig
from sdpo.discovery.curves import curve, difference, speed_up, summarise_discovery
from sdpo.discovery.display import live_progress, show
from sdpo.discovery.log import Tally
from sdpo.discovery.multi_turn import fit
from sdpo.discovery.result import Discovery
from sdpo.discovery.run import discover_tasks, load_tasks, searches
from sdpo.errors import ConfigError
from sdpo.metrics.canaries import Alert, Canaries
from sdpo.models.weights import copy_weights
from sdpo.records import Verdict
from sdpo.rollouts.sampler import open_sampler
from sdpo.testing import byte_tokenizer, tiny_model, toy_env

BUDGET = 10
METHODS = ("self_distillation", "best_of_k", "multi_turn")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(hidden_size=16, num_layers=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def settings(model_dir, run_dir, **discover) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": str(run_dir),
            "model": {"name": str(model_dir), "device": "cpu", "dtype": "float32"},
            "rollout": {"max_completion_tokens": 4, "max_prompt_tokens": 400},
            "teacher": {"context": {"type": "rules", "max_tokens": 600}},
            "optim": {"lr": 1e-2},
            "discover": {"budget": BUDGET, "batch": 4, "seeds": 2, "window_tokens": 300} | discover,
        }
    )


def world(prompts=("a", "b"), solves=lambda task, rollout: False, seen=None):
    """Tasks whose attempts are solved as `solves` says; `seen` collects (task, rollout)."""

    def judge(task, rollout):
        if seen is not None:
            seen.append((task, rollout))
        solved = solves(task, rollout)
        feedback = None if solved else "Expected 7."
        return Verdict(reward=float(solved), solved=solved, feedback=feedback)

    return sdpo.env([{"id": p, "prompt": f"Say {p}"} for p in prompts], judge)


def lines(path):
    return path.read_text().splitlines()


def fixed(results):
    return [replace(result, seconds=0.0) for result in results]


def search(sampler, config, task, initial, **watch):
    method = "self_distillation"
    wanted = [(task, Tally(task.id, method, 0, budget=config.discover.budget))]
    (result,) = searches(sampler, config, wanted, method=method, initial=initial, **watch)
    return result


def search_alone(task_id, config, env, method, *, seed=0):
    """The search `seed` for one task as `discover_tasks` makes it."""
    with open_sampler(config, env) as sampler:
        (task,) = [task for task in load_tasks(sampler.env, config) if task.id == task_id]
        wanted = [(task, Tally(task_id, method, seed, budget=config.discover.budget))]
        initial = copy_weights(sampler.policy.model)
        (result,) = searches(sampler, config, wanted, method=method, initial=initial)
    return result


def often(task, rollout):
    return bool(rollout.text) and ord(rollout.text[0]) % 8 == 0


def test_unsolved_searches_spend_the_budget_and_leave_the_weights(model_dir, tmp_path):
    seen = []
    config = settings(model_dir, tmp_path / "run")
    results = discover_tasks(config, world(seen=seen))
    assert [(r.task_id, r.method, r.seed) for r in results] == [
        (task, method, seed) for method in METHODS for task in "ab" for seed in range(2)
    ]
    assert all(r.attempts == r.budget == BUDGET for r in results)
    assert all(r.attempts_to_solve is None and r.solution is None for r in results)
    assert len(seen) == len(results) * BUDGET
    # The judge sees the task itself, also when the prompt holds more.
    assert {task.messages[0]["content"] for task, _ in seen} == {"Say a", "Say b"}
    # Attempts of the second and third batch come from trained weights, the next search's do not.
    versions = {}
    for index, (_, rollout) in enumerate(seen[:BUDGET]):
        versions.setdefault(rollout.policy_version, []).append(index)
    assert [len(part) for _, part in sorted(versions.items())] == [4, 4, 2]
    assert all(seen[BUDGET * i][1].policy_version == 0 for i in range(len(results)))
    rows = [json.loads(line) for line in lines(tmp_path / "run/discovery.jsonl")]
    assert len(rows) == len(results)
    attempts = [json.loads(line) for line in lines(tmp_path / "run/attempts.jsonl")]
    assert sorted(
        (row["task_id"], row["method"], row["seed"], row["attempt"]) for row in attempts
    ) == sorted(
        (r.task_id, r.method, r.seed, place + 1) for r in results for place in range(BUDGET)
    )
    assert {row["feedback"] for row in attempts} == {"Expected 7."}
    updates = [json.loads(line) for line in lines(tmp_path / "run/updates.jsonl")]
    assert [(row["task_id"], row["seed"], row["update"]) for row in updates] == [
        (task, seed, update) for task in "ab" for seed in range(2) for update in (1, 2)
    ]
    assert all(row["policy/entropy"] > 0 and "policy/teacher_js" in row for row in updates)
    assert rows[0].keys() == set(Discovery.__slots__) | {"step"}
    assert not (tmp_path / "run/solutions").exists()
    assert (tmp_path / "run/discovery.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_adapters_alone_train_and_restart(model_dir, tmp_path):
    pytest.importorskip("peft")
    config = settings(model_dir, tmp_path / "run")
    lora = LoraConfig(rank=2)
    config = config.model_copy(update={"model": config.model.model_copy(update={"adapter": lora})})
    with open_sampler(config, world()) as sampler:
        initial = copy_weights(sampler.policy.model)
        whole = sum(weight.numel() for weight in sampler.policy.model.parameters())
        assert sum(weight.numel() for weight in initial.values()) < whole / 4
        task = sampler.env.load("eval")[0]
        first = search(sampler, config, task, initial)
        after = copy_weights(sampler.policy.model)
        assert all(torch.equal(after[name], weight) for name, weight in initial.items())
        again = search(sampler, config, task, initial)
    assert fixed([first]) == fixed([again])


def test_weights_train_within_a_search_and_are_restored(model_dir, tmp_path):
    config = settings(model_dir, tmp_path / "run")
    trained = []
    with open_sampler(config, world()) as sampler:
        model = sampler.policy.model
        initial = copy_weights(model)

        def watch(tally):
            trained.append({name: w.clone() for name, w in copy_weights(model).items()})

        task = sampler.env.load("eval")[0]
        first = search(sampler, config, task, initial, watch=watch)
        for name, weight in copy_weights(model).items():
            assert torch.equal(weight, initial[name])
        again = search(sampler, config, task, initial)
    assert all(torch.equal(trained[0][name], initial[name]) for name in initial)
    assert any(not torch.equal(trained[1][name], initial[name]) for name in initial)
    assert fixed([first]) == fixed([again])


def updates_of(run_dir):
    return [json.loads(line) for line in lines(run_dir / "updates.jsonl")]


def test_a_search_restarts_after_so_many_updates(model_dir, tmp_path):
    seen = []
    rules = {"methods": ["self_distillation"], "seeds": 1, "budget": 22, "restart_every": 1}
    config = settings(model_dir, tmp_path / "run", **rules)
    (result,) = discover_tasks(config, world(prompts="a", seen=seen))
    assert result.attempts == 22
    batches = [seen[first : first + 4] for first in range(0, 22, 4)]
    # The attempts after the one update of a stage are the last ones of that stage.
    versions = [{rollout.policy_version for _, rollout in batch} for batch in batches]
    assert versions == [{0}, {1}, {0}, {1}, {0}, {1}]
    texts = [sorted(rollout.text for _, rollout in batch) for batch in batches]
    assert texts[0] != texts[2] != texts[4]
    assert [row["stage"] for row in updates_of(tmp_path / "run")] == [1, 2, 3]
    # The first stage is that of a search without restarts.
    whole = []
    rules = rules | {"restart_every": 0, "budget": 8}
    discover_tasks(settings(model_dir, tmp_path / "whole", **rules), world("a", seen=whole))
    assert sorted(r.text for _, r in whole[4:]) == texts[1]


@pytest.mark.parametrize("action", ["warn", "stop", "rollback"])
def test_canaries_warn_end_a_search_or_restart_it(model_dir, tmp_path, monkeypatch, action):
    def observe(self, step, metrics):
        alert = Alert(
            canary="truncation", step=step, since=1, good=0, value=1.0, baseline=0.0,
            action=self.action, message="attempts no longer end",
        )  # fmt: skip
        return [alert] if step == 2 else []

    monkeypatch.setattr(Canaries, "observe", observe)
    rules = {"methods": ["self_distillation"], "seeds": 1, "budget": 24}
    config = settings(model_dir, tmp_path / "run", **rules)
    config = config.model_copy(
        update={"canaries": config.canaries.model_copy(update={"action": action})}
    )
    (result,) = discover_tasks(config, world("a"))
    rows = [(row["stage"], row["optim/lr"]) for row in updates_of(tmp_path / "run")]
    if action == "stop":
        assert (result.attempts, result.stopped) == (8, "truncation: attempts no longer end")
        assert rows == [(1, 1e-2), (1, 1e-2)]
    elif action == "rollback":
        assert (result.attempts, result.stopped) == (24, None)
        assert rows == [(1, 1e-2), (1, 1e-2), (2, 5e-3), (2, 5e-3), (3, 2.5e-3)]
    else:
        assert rows == [(1, 1e-2)] * 5


@pytest.mark.parametrize("method", METHODS)
def test_attempts_are_counted_in_order(model_dir, tmp_path, method):
    seen = []
    config = settings(model_dir, tmp_path / "run", budget=40)
    result = search_alone("b", config, world(solves=often, seen=seen), method)
    # Judged concurrently within a batch, so the order of calls is that of the attempts per batch.
    assert result.attempts == len(seen)
    assert result.attempts_to_solve == result.solved[0]
    texts = {rollout.text for _, rollout in seen if often(None, rollout)}
    assert result.solution in texts
    assert len(result.solved) == sum(often(None, rollout) for _, rollout in seen)
    if method == "best_of_k":
        assert result.attempts == 40
    else:
        batch = 4 if method == "self_distillation" else 1
        assert result.attempts - batch < result.attempts_to_solve <= result.attempts


def test_conversations_side_by_side_are_what_each_is_alone(model_dir, tmp_path):
    config = settings(model_dir, tmp_path / "run", seeds=2, methods=["multi_turn"])
    together = discover_tasks(config, world(solves=often))
    assert sorted((r.task_id, r.seed) for r in together) == [(t, s) for t in "ab" for s in (0, 1)]
    assert len({result.attempts for result in together}) > 1
    for result in together:
        alone = search_alone(
            result.task_id, config, world(solves=often), "multi_turn", seed=result.seed
        )
        assert fixed([alone]) == fixed([result])


@pytest.mark.parametrize("show_attempts", [False, True])
def test_a_killed_conversation_goes_on_where_it_was(model_dir, tmp_path, show_attempts):
    rules = {"methods": ["multi_turn"], "budget": 12, "window_tokens": 260}
    rules["show_attempts"] = show_attempts
    whole = discover_tasks(settings(model_dir, tmp_path / "whole", **rules), world())
    calls = []

    def killer(results, line):
        calls.append(line)
        # Within a round: two searches have made their sixth attempt, two have not.
        if len(calls) == 5 * 4 + 2:
            raise KeyboardInterrupt

    config = settings(model_dir, tmp_path / "cut", **rules)
    with pytest.raises(KeyboardInterrupt):
        discover_tasks(config, world(), progress=killer)
    path = tmp_path / "cut/attempts.jsonl"
    assert len(lines(path)) == 22
    seen = []
    assert fixed(discover_tasks(config, world(seen=seen))) == fixed(whole)
    assert len(seen) == 12 * 4 - 22
    texts = [
        {
            (row["task_id"], row["seed"], row["attempt"]): row["text"]
            for row in map(json.loads, lines(tmp_path / name / "attempts.jsonl"))
        }
        for name in ("whole", "cut")
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 12 * 4


def test_a_search_that_starts_again_leaves_no_attempts_twice(model_dir, tmp_path):
    config = settings(model_dir, tmp_path / "run", methods=["self_distillation"])

    def killer(results, line):
        if len(results) == 1 and "8/10" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        discover_tasks(config, world(), progress=killer)
    path = tmp_path / "run/attempts.jsonl"
    assert len(lines(path)) == BUDGET + 8
    discover_tasks(config, world())
    assert len(lines(tmp_path / "run/updates.jsonl")) == 2 * 4
    rows = [json.loads(line) for line in lines(path)]
    assert len(rows) == len({(r["task_id"], r["seed"], r["attempt"]) for r in rows}) == BUDGET * 4


def test_killed_and_resumed_equals_uninterrupted(model_dir, tmp_path):
    whole = discover_tasks(settings(model_dir, tmp_path / "whole"), world(solves=often))
    calls = []

    def killer(results, line):
        calls.append(line)
        if len(results) == 5 and line:
            raise KeyboardInterrupt

    config = settings(model_dir, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        discover_tasks(config, world(solves=often), progress=killer)
    path = tmp_path / "cut/discovery.jsonl"
    assert len(path.read_text().splitlines()) == 5
    with path.open("a") as file:
        file.write('{"task_id": "tor')
    seen = []
    resumed = discover_tasks(config, world(solves=often, seen=seen))
    assert fixed(resumed) == fixed(whole)
    assert len(seen) == sum(r.attempts for r in whole[5:])
    seen.clear()
    assert fixed(discover_tasks(config, world(solves=often, seen=seen))) == fixed(whole)
    assert not seen
    for name in ("a", "b"):
        solution = tmp_path / f"cut/solutions/{name}.txt"
        assert solution.read_text() == (tmp_path / f"whole/solutions/{name}.txt").read_text()


def test_a_kill_before_the_last_summary_left_it_without_that_search(model_dir, tmp_path):
    config = settings(model_dir, tmp_path / "run", methods=["best_of_k"], seeds=1)
    discover_tasks(config, world())
    summary = tmp_path / "run/discovery.json"
    whole = summary.read_text()
    summary.unlink()
    discover_tasks(config, world())
    assert summary.read_text() == whole


def test_an_environment_may_pose_its_tasks_anew(model_dir, tmp_path):
    seen = []
    plain = world(seen=seen)
    plain.for_discovery = lambda task: replace(task, reference="posed")
    config = settings(model_dir, tmp_path / "run", methods=["best_of_k"], seeds=1)
    discover_tasks(config, plain)
    search_alone("b", config, plain, "multi_turn")
    assert {task.reference for task, _ in seen} == {"posed"}


def test_selection_keeps_hard_tasks_and_unknown_ids_are_refused(model_dir, tmp_path):
    select = {"pass_at": 8, "below": 0.5}
    easy = world(solves=lambda task, rollout: task.id == "a")
    config = settings(model_dir, tmp_path / "hard", select=select, methods=["best_of_k"], seeds=1)
    assert [r.task_id for r in discover_tasks(config, easy)] == ["b"]
    rows = [json.loads(line) for line in lines(tmp_path / "hard/selection.jsonl")]
    assert [(row["task_id"], row["solved"]) for row in rows] == [("a", 32), ("b", 0)]
    config = settings(model_dir, tmp_path / "none", select=select, tasks=["a"])
    with pytest.raises(ConfigError, match=r"pass@8 below 0\.5"):
        discover_tasks(config, easy)
    with pytest.raises(ConfigError, match="no task 'zz'"):
        discover_tasks(settings(model_dir, tmp_path / "unknown", tasks=["zz"]), easy)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.type=srpo", "objective.type='srpo'.*objective.type=sdpo"),
        ("objective.type=grpo", "objective.type='grpo'"),
        ("teacher.context.feedback=never", "teacher.context.feedback='never'"),
    ],
)
def test_settings_under_which_no_failure_teaches_are_refused(model_dir, tmp_path, override, said):
    common = [
        f"model.name={model_dir}", "model.device=cpu", "rollout.max_completion_tokens=4",
        "discover.budget=4", "discover.seeds=1", override,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=said):
        discover_tasks(load_config([*common, f"run={tmp_path}/a"]), world())
    others = [f"run={tmp_path}/b", 'discover.methods=["best_of_k"]']
    assert len(discover_tasks(load_config([*common, *others]), world())) == 2


SOLVE = "Now solve the original task yourself."


def test_the_window_drops_the_oldest_first_and_cuts_the_newest():
    chat = Chat(byte_tokenizer())
    task = ({"role": "user", "content": "Q"},)
    sections = ["first " * 10, "second " * 10, "third " * 10]
    kept, messages = fit(chat, task, sections, SOLVE, 250)
    assert kept == sections[1:]
    assert len(chat.prompt_ids(messages)) <= 250
    kept, messages = fit(chat, task, ["x" * 1000], SOLVE, 250)
    assert "characters left out" in messages[0]["content"]
    assert len(chat.prompt_ids(messages)) <= 250
    assert fit(chat, task, ["x" * 1000], SOLVE, 40) == ([], task)


def found(task, method, seed, first, num_solved=None, budget=100):
    solved = () if first is None else (first,)
    if num_solved is not None:
        solved = tuple(range(1, num_solved + 1))
    return Discovery(
        task_id=task,
        method=method,
        seed=seed,
        budget=budget,
        attempts=budget if method == "best_of_k" or first is None else first,
        attempts_to_solve=solved[0] if solved else None,
        solution="x" if solved else None,
        solved=solved,
        seconds=1.0,
    )


def test_curves_intervals_and_speed_up():
    own = [found(t, "self_distillation", s, 10) for t in "abc" for s in range(3)]
    other = [found(t, "multi_turn", s, 40 if t == "a" else None) for t in "abc" for s in range(3)]
    independent = [found(t, "best_of_k", s, 1, num_solved=1) for t in "abc" for s in range(3)]
    assert [i.mean for i in curve(own, [9, 10])] == [0.0, 1.0]
    assert own[0].curve == (0.0,) * 9 + (1.0,) * 91
    assert independent[0].curve[49] == pytest.approx(0.5)
    assert curve(independent, [1, 50])[1].mean == pytest.approx(0.5)
    gap = difference(own, other, 100)
    assert gap.mean == pytest.approx(2 / 3)
    assert gap.low >= 0
    factor = speed_up(own, other)
    assert factor is not None
    assert factor["factor"] == pytest.approx(4, rel=0.2)
    summary = summarise_discovery([*own, *other, *independent])
    assert set(summary["against"]) == {"multi_turn", "best_of_k"}
    console = Console(width=160, file=io.StringIO())
    show([*own, *other, *independent], console)
    text = " ".join(console.file.getvalue().split())
    assert "a: self_distillation, attempt 10" in text
    assert f"{factor['factor']:.2g}x at" in text
    with live_progress(Console(file=io.StringIO(), force_terminal=True)) as say:
        say(own, "now")


def test_progress_in_a_log_file_is_lines(monkeypatch):
    monkeypatch.setattr("sdpo.discovery.display.SECONDS_BETWEEN_LINES", 1e9)
    console = Console(file=io.StringIO())
    old = [found("a", "best_of_k", 0, None)]
    with live_progress(console) as say:
        say(old, "a, best_of_k, seed 1: 4/100 attempts")
        say(old, "a, best_of_k, seed 1: 8/100 attempts")
        say([*old, found("a", "best_of_k", 1, 7)], "")
    assert console.file.getvalue().splitlines() == [
        "a, best_of_k, seed 1: 4/100 attempts",
        "a, best_of_k, seed 1: solved at attempt 7, 1 s",
    ]


def test_feedback_solves_what_independent_samples_do_not(reader, tmp_path):
    config = settings(
        reader, tmp_path / "run",
        budget=320, batch=16, seeds=10, methods=["self_distillation", "best_of_k"],
    ).model_copy(update={"optim": OptimConfig(lr=2e-3)})  # fmt: skip
    results = discover_tasks(config, toy_env(num_tasks=2))
    own = [r for r in results if r.method == "self_distillation"]
    independent = [r for r in results if r.method == "best_of_k"]
    # 6,400 independent attempts hit a hidden code 0.64 times on average, more than five times in
    # 1 of 18,000 cases.
    assert sum(bool(r.solved) for r in independent) <= 5
    assert sum(bool(r.solved) for r in own) >= 15
    assert difference(own, independent, 320).low > 0


def test_the_paper_recipe_has_discovery_settings():
    assert load_config(["paper-ttt"]).discover.budget == 2750
