"""The first sentence of a report."""

import pytest
from synthetic_run import make_run

from sdpo.compare import compare
from sdpo.losses.routing import srpo
from sdpo.records import Group, Rollout, Task, Verdict
from sdpo.report.data import load_report
from sdpo.report.outcome import describe_outcome

EVALUATED = {
    0: {task: [int(task in "beh"), 4] for task in "abcdefghi"},
    8: {task: [2 if task in "adg" else 3, 4] for task in "abcdefghi"},
}


def evaluation(step, held_out=EVALUATED):
    rates = [solved / count for solved, count in held_out[step].values()]
    return {"step": step, "eval/solved": sum(rates) / len(rates)}


def trained(step, *, norm=0.5, **metrics):
    usual = {
        "train/solved": 0.0, "rollouts/flat_groups": 1.0, "teacher/context_fraction": 0.0,
        "teacher/feedback_fraction": 0.0,
    }  # fmt: skip
    values = {name.replace("__", "/"): value for name, value in metrics.items()}
    return {"step": step, "loss/total": 0.0, "optim/grad_norm": norm} | usual | values


def outcome(rows, config=None, alerts=(), held_out=None):
    found = describe_outcome(rows, config or {}, alerts, held_out or {})
    return found.headline, found.tone, " ".join(found.details)


def test_a_gain_is_said_with_its_paired_interval():
    rows = [evaluation(0), trained(1), evaluation(8)]
    headline, tone, details = outcome(rows, {"steps": 8}, held_out=EVALUATED)
    assert headline == (
        "Held-out attempts solved rose from 0.08 to 0.67 "
        "(+0.58, 90% interval +0.53 to +0.64 over 9 tasks)."
    )
    assert (tone, details) == ("good", "")


def test_a_loss_and_a_better_evaluation_on_the_way_are_said():
    held_out = {0: EVALUATED[8], 4: {task: [4, 4] for task in "abcdefghi"}, 8: EVALUATED[0]}
    rows = [evaluation(step, held_out) for step in held_out]
    headline, tone, details = outcome([*rows[:1], trained(1), *rows[1:]], held_out=held_out)
    assert headline.startswith("Held-out attempts solved fell from 0.67 to 0.08 (-0.58,")
    assert tone == "bad"
    assert "The best evaluation was 1.00 at step 4." in details


def test_what_may_be_chance_is_called_so():
    held_out = {
        0: {task: [1 + (task in "aceg"), 4] for task in "abcdefgh"},
        8: {task: [1 + (task in "bdfh"), 4] for task in "abcdefgh"},
    }
    rows = [evaluation(0, held_out), trained(1), evaluation(8, held_out)]
    headline, tone, _ = outcome(rows, held_out=held_out)
    assert headline.startswith("No change on held-out tasks that can be told from chance")
    assert tone == "neutral"


@pytest.mark.parametrize(("tasks", "said"), [("abc", "3 tasks are"), ("a", "One task is")])
def test_a_handful_of_tasks_is_no_proof(tasks, said):
    """Three tasks that improve once each have a bootstrap interval above zero."""
    held_out = {step: {task: [step // 8, 4] for task in tasks} for step in (0, 8)}
    rows = [evaluation(0, held_out), trained(1), evaluation(8, held_out)]
    headline, tone, details = outcome(rows, held_out=held_out)
    assert headline.startswith("Held-out attempts solved went from 0.00 to 0.25 (+0.25,")
    assert tone == "neutral"
    assert details == f"{said} too few to tell a change from chance."


def test_missing_attempts_give_no_interval():
    rows = [evaluation(0), trained(1), evaluation(8)]
    headline, _, _ = outcome(rows, held_out={0: EVALUATED[0], 8: {"a": [2, 4]}})
    assert "0.08 to 0.67 (+0.58; rollouts.jsonl lacks" in headline


def test_no_attempt_solved_before_or_after():
    rows = [{"step": 0, "eval/solved": 0.0}, trained(1), {"step": 4, "eval/solved": 0.0}]
    assert outcome(rows)[0] == "No held-out attempt was solved, neither before nor after step 4."


def test_an_unfinished_run_says_how_far_it_is():
    headline, _, details = outcome([evaluation(0), trained(1), trained(2)], {"steps": 40})
    assert headline == (
        "Training attempts solved: 0.00 in 2 steps; held-out attempts solved were 0.08 at step 0, "
        "and there is no later evaluation yet."
    )
    assert details == "2 of 40 steps are done."
    assert outcome([evaluation(0)])[0].startswith("No step is done: held-out attempts solved were")


def test_a_run_that_a_canary_stopped_says_so():
    alert = {"canary": "entropy_collapse", "action": "stop", "step": 2}
    details = outcome([evaluation(0), trained(2)], {"steps": 40}, [alert])[2]
    assert details == "Stopped at step 2 by a canary: entropy collapse."


@pytest.mark.parametrize("norm", [0.0, None])
@pytest.mark.parametrize(
    ("objective", "metrics", "reason"),
    [
        ("grpo", {}, "objective.type = grpo learns from differences of rewards only"),
        ("sdpo", {}, "The teacher had nothing to read"),
        ("sdpo", {"teacher__gated": 0.25}, "the self-teacher solved too little of them"),
        (
            "srpo",
            {"teacher__context_fraction": 0.75},
            "could read something about 75% of the attempts, but srpo distils only",
        ),
        ("sdpo", {"train__solved": 1.0}, "Every attempt was solved: take harder tasks."),
        ("sft", {"teacher__solved": 0.0}, "The self-teacher solved no attempt"),
    ],
)
def test_a_run_without_a_gradient_learnt_nothing_and_says_why(norm, objective, metrics, reason):
    rows = [trained(step, norm=norm, **metrics) for step in (1, 2, 3)]
    headline, tone, details = outcome(rows, {"objective.type": objective})
    assert headline == "Nothing was learnt: none of the 3 steps had a gradient."
    assert tone == "bad"
    assert reason in details
    if metrics.get("train__solved") != 1.0:
        assert "all rewards were equal and none was solved" in details


def test_steps_without_a_gradient_are_counted_when_they_are_most():
    rows = [trained(1), *(trained(step, norm=0.0) for step in (2, 3))]
    assert "2 of 3 steps had no gradient." in outcome(rows)[2]


def test_feedback_that_srpo_leaves_aside_is_said():
    config = {
        "objective.type": "srpo", "teacher.context.feedback": "without_demonstration", "steps": 1,
    }  # fmt: skip
    details = outcome([trained(1, teacher__feedback_fraction=0.75)], config)[2]
    assert details == (
        "For 75% of the attempts there was feedback and no solved sibling; srpo does not distil "
        "those."
    )


def test_srpo_does_leave_feedback_aside():
    """What the sentences above say about it."""
    rollout = Rollout(
        task_id="t", index=0, prompt_ids=(), completion_ids=(), sampler_logprobs=(), text="",
        truncated=False, policy_version=0,
    )  # fmt: skip
    failed = Verdict(reward=0.0, solved=False, feedback="no")
    group = Group(task=Task(id="t", messages=()), rollouts=(rollout,) * 2, verdicts=(failed,) * 2)
    assert "distill" not in srpo(group, 0, True)


def test_a_real_run_on_rewards_alone_in_the_toy_world_learnt_nothing(flat_run):
    (run,) = load_report([flat_run])["runs"]
    assert run["outcome"]["headline"] == "Nothing was learnt: none of the 2 steps had a gradient."
    said = " ".join(run["outcome"]["details"])
    assert "all rewards were equal and none was solved" in said
    assert "objective.type = grpo" in said
    assert "No held-out attempt was solved" in said


def test_a_real_run_has_the_interval_that_compare_gives(tiny_run, tmp_path):
    for path in (tiny_run, make_run(tmp_path / "run", steps=12)):
        gain = compare([[path]]).arms[0].gain
        said = load_report([path])["runs"][0]["outcome"]["headline"]
        assert f"{gain.mean:+.2f}, 90% interval {gain.low:+.2f} to {gain.high:+.2f}" in said
