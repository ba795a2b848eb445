"""A run directory like those of the training loop: real writers, random numbers."""

import json
import math
import random
from dataclasses import replace

from sdpo.config.load import dump
from sdpo.config.schema import RunConfig
from sdpo.evaluation import summarise
from sdpo.metrics.canaries import Canaries
from sdpo.metrics.rollout_stats import rollout_metrics
from sdpo.metrics.writer import MetricsWriter
from sdpo.records import Group, Rollout, Task, TeacherContext, Verdict
from sdpo.rollouts.credit import TokenCredit
from sdpo.rollouts.record import RolloutRecorder

ATTACK = "</script><script>document.body.dataset.pwned=1</script><!-- <img src=x onerror=alert(1)>"
NAMES = ("clamp", "rotate", "count_words", "merge", "is_prime", "flatten", "digits", "gcd")
FEEDBACK = {
    "wrong_answer": "Wrong Answer\nInput: {name}(5, 0, 3)\nOutput: 5\nExpected: 3",
    "runtime_error": "Runtime Error\nNameError: name 'resutl' is not defined\n"
    "Line 3 in {name} (Solution.py)\nLast executed input: {name}([1, 2])",
    "incorrect_format": "Incorrect Format\nPut your code inside a ```python block.",
}
WORDS = (
    "return",
    " the",
    " x",
    "\n    ",
    " =",
    " min",
    "(",
    ")",
    ":",
    " for",
    " i",
    " in",
    " range",
    "\n",
    "def",
    " if",
)


def make_run(
    run_dir,
    *,
    steps=40,
    seed=0,
    tasks=4,
    group_size=4,
    length=60,
    lift=0.5,
    collapse=False,
    **config,
):
    """Write every file of a run but its checkpoints under `run_dir`."""
    rng = random.Random(f"{seed} {lift}")
    settings = RunConfig(run=str(run_dir), seed=seed, steps=steps, **config)
    run_dir.mkdir(parents=True)
    facts = {
        "versions": {"python": "3.11.7", "sdpo": "0.1.0", "torch": "2.13.0"},
        "git": {"commit": "78f5682aa", "diff": "x"},
        "host": {"name": "box", "machine": "x86_64", "cores": 2, "device": "cpu"},
    }
    (run_dir / "config.json").write_text(json.dumps({"config": dump(settings), **facts}))
    canaries = Canaries()
    with MetricsWriter(run_dir) as writer, RolloutRecorder(run_dir) as recorder:
        solved = 0.17
        writer.write(0, _evaluation(rng, recorder, 0, group_size, length, solved))
        for step in range(1, steps + 1):
            progress = step / steps
            solved = 0.17 + lift * (1 - math.exp(-3 * progress))
            if collapse and progress > 0.6:
                solved *= max(0.0, 1 - (progress - 0.6) * 5)
            groups = _rollouts(rng, step, tasks, group_size, length, solved)
            recorder.write(step, groups)
            recorder.record_credit(_credit(rng, step, groups[0], i) for i in range(2))
            metrics = rollout_metrics(groups).reduce()
            metrics |= _training(rng, step, progress, collapse, tasks * group_size, length)
            if step % 10 == 0 or step == steps:
                metrics |= _evaluation(rng, recorder, step, group_size, length, solved)
            writer.write(step, metrics, canaries.observe(step, metrics))
    return run_dir


def _training(rng, step, progress, collapse, per_step, length):
    fall = math.exp(-12 * max(0.0, progress - 0.6)) if collapse else 1.0
    noise = lambda scale: rng.gauss(0, scale)  # noqa: E731
    return {
        "rollouts_total": step * per_step,
        "tokens_total": step * per_step * length,
        "policy/entropy": max(0.001, (0.55 - 0.3 * progress) * fall + noise(0.02) * fall),
        "teacher/entropy": max(0.001, (0.45 - 0.3 * progress) * fall),
        "policy/teacher_js": max(1e-4, (0.031 - 0.02 * progress) * fall + noise(0.001) * fall),
        "loss/total": 0.03 - 0.02 * progress + noise(0.003),
        "loss/distill": 0.03 - 0.02 * progress + noise(0.003),
        "optim/grad_norm": abs(0.8 + noise(0.2)),
        "optim/lr": 1e-5 * min(1.0, step / 10),
        "env/tests_passed": min(1.0, 0.4 + 0.4 * progress + noise(0.03)),
        "time/generate_s": 6 + noise(0.5),
        "time/judge_s": 0.8 + abs(noise(0.1)),
        "time/teacher_s": 2 + noise(0.1),
        "time/update_s": 5 + noise(0.4),
        "time/step_s": 12.6 + noise(0.5),
    }


def _evaluation(rng, recorder, step, samples, length, solved):
    """Attempts at every task, recorded and summarised as in training, and a probe."""
    groups = _rollouts(rng, step, len(NAMES), samples, length, solved)
    bare = [replace(group, contexts=()) for group in groups]
    recorder.write(step, bare, split="eval")
    return summarise(groups, samples=samples).metrics() | {
        "probe/failed": 1 - solved,
        **_gain("recipe", 0.12 - solved / 5),
        **_gain("demonstration", 0.4 - solved / 2),
        **_gain("feedback", rng.gauss(0, 0.02)),
        **_gain("no_context", rng.gauss(0, 0.02)),
    }


def _gain(kind, mean):
    name = f"probe/gain_{kind}"
    return {name: mean, f"{name}_low": mean - 0.05, f"{name}_high": mean + 0.05}


def _rollouts(rng, step, tasks, group_size, length, solved):
    groups = []
    for name in rng.sample(NAMES, tasks):
        task = Task(
            id=name,
            messages=(
                {"role": "user", "content": f"Write a Python function `{name}(x, lo, hi)`."},
            ),
        )
        outcomes = [rng.random() < solved for _ in range(group_size)]
        rollouts, verdicts = [], []
        for index, is_solved in enumerate(outcomes):
            count = max(8, int(rng.gauss(length, length / 4)))
            body = "".join(rng.choice(WORDS) for _ in range(count))
            text = f"```python\ndef {name}(x, lo, hi):\n    {body}\n```"
            if step == 1 and index == 0:
                text += ATTACK
            category = "accepted" if is_solved else rng.choice(list(FEEDBACK))
            rollouts.append(
                Rollout(
                    task_id=name,
                    index=index,
                    prompt_ids=tuple(range(30)),
                    completion_ids=tuple(rng.randrange(500) for _ in range(count)),
                    sampler_logprobs=(-0.5,) * count,
                    text=text,
                    truncated=rng.random() < 0.1,
                    policy_version=step,
                )
            )
            verdicts.append(
                Verdict(
                    reward=float(is_solved),
                    solved=is_solved,
                    feedback=None if is_solved else FEEDBACK[category].format(name=name),
                    info={"category": category},
                    metrics={"tests_passed": 1.0 if is_solved else 0.3},
                )
            )
        group = Group(task=task, rollouts=tuple(rollouts), verdicts=tuple(verdicts))
        contexts = tuple(_context(group, index, outcomes) for index in range(group_size))
        groups.append(replace(group, contexts=contexts))
    return groups


def _context(group, index, outcomes):
    others = [i for i, is_solved in enumerate(outcomes) if is_solved and i != index]
    content = group.task.messages[0]["content"]
    if others:
        content += f"\n\nCorrect solution:\n{group.rollouts[others[0]].text}"
    elif group.verdicts[index].feedback:
        content += f"\n\nFeedback on an earlier attempt:\n{group.verdicts[index].feedback}"
    else:
        return TeacherContext(messages=None, reason="solved_alone")
    return TeacherContext(
        messages=({"role": "user", "content": content},),
        demonstration=others[0] if others else None,
        feedback_used=not others,
        sources=("sibling",) if others else ("feedback",),
    )


def _credit(rng, step, group, index):
    texts = dict(enumerate(WORDS)) | {len(WORDS): ATTACK, len(WORDS) + 1: ""}
    ids = [rng.randrange(len(WORDS)) for _ in range(40)] + [len(WORDS), len(WORDS) + 1]
    student, teacher, tops = [], [], ([], [])
    for place in range(len(ids)):
        p = -abs(rng.gauss(0, 0.6))
        gap = rng.gauss(0, 0.08) if place % 9 else rng.gauss(-1.5, 1.5)
        student.append(p)
        teacher.append(min(-0.001, p + gap))
        for top, chosen in zip(tops, (student[-1], teacher[-1]), strict=True):
            rest = [(rng.randrange(len(WORDS)), math.log(0.3 / k)) for k in range(1, 5)]
            pairs = dict([*rest, (ids[place], chosen)])
            top.append(tuple(sorted(pairs.items(), key=lambda pair: -pair[1])[:5]))
    return TokenCredit(
        task_id=group.task.id,
        index=index,
        step=step,
        token_ids=tuple(ids),
        student_logprobs=tuple(student),
        teacher_logprobs=tuple(teacher),
        student_entropies=tuple(abs(rng.gauss(0.5, 0.3)) for _ in ids),
        teacher_entropies=tuple(abs(rng.gauss(0.4, 0.3)) for _ in ids),
        student_top=tuple(tops[0]),
        teacher_top=tuple(tops[1]),
        texts=texts,
        advantage=group.verdicts[index].reward - group.solved_rate,
    )
