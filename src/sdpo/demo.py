"""What self-distillation is for, in seconds: three runs in the toy world, side by side.

Four items have codes that no attempt can guess, and only the feedback to a wrong answer names the
right one. The same tiny model learns from that feedback (`sdpo`), from rewards alone (`grpo`), and,
as a control, from feedback that does not name the code. Everything shown is measured while it is
shown.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sdpo.config.load import load_config
from sdpo.config.schema import RunConfig
from sdpo.metrics import names
from sdpo.models.quiet import quiet
from sdpo.report import write_report
from sdpo.testing import Reveal, save_toy_model, toy_env
from sdpo.testing.toy_world import feedback_text
from sdpo.training.loop import train_steps
from sdpo.training.opening import open_run

NUM_ITEMS = 4
LEARNT = 0.4
"""Solved rate from which the closing sentence says that a run learnt; chance is 1 in 10,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One of the runs.

    Example:
        Arm(name="grpo", title="grpo", settings=("objective.type=grpo",), reveal="all")
    """

    name: str
    title: str
    settings: tuple[str, ...]
    reveal: Reveal


ARMS = (
    Arm(name="sdpo", title="sdpo", settings=(), reveal="all"),
    Arm(name="grpo", title="grpo", settings=("objective.type=grpo",), reveal="all"),
    Arm(name="sdpo-told-nothing", title="sdpo, told nothing", settings=(), reveal="none"),
)


def demo(folder: Path, say: Callable[[str], None], *, seed: int = 0) -> dict[str, float]:
    """Run the arms step by step, `say` their held-out solved rates as they learn, and write a
    report into `folder`; the last rates by arm.

    The arms' folders inside `folder` are made anew.
    """
    with quiet():
        model = save_toy_model(folder / "model")
    for arm in ARMS:
        shutil.rmtree(folder / arm.name, ignore_errors=True)
    configs = [_config(arm, folder, model, seed) for arm in ARMS]
    total = configs[0].steps
    attempts = configs[0].rollout.tasks_per_step * configs[0].rollout.group_size
    env = toy_env(NUM_ITEMS, seed=seed)
    task = env.load("train")[0]
    say(
        f"Four items have secret codes. Asked {task.messages[-1]['content']!r},\n"
        "a tiny model (141,000 weights) can only guess; one guess in 10,000 is right.\n"
        f"A wrong answer is told: {_feedback(seed)!r}\n"
    )
    say(f"Solved without being told, while three copies learn ({attempts} attempts a step):")
    say("  step  " + "".join(f"{arm.title:>20}" for arm in ARMS))
    solved: dict[str, float] = {}
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                open_run(config, toy_env(NUM_ITEMS, seed=seed, reveal=arm.reveal), is_quiet=True)
            )
            for arm, config in zip(ARMS, configs, strict=True)
        ]
        for rows in zip(*map(train_steps, runs), strict=True):
            if names.EVAL_SOLVED not in rows[0]:
                continue
            solved = {arm.name: row[names.EVAL_SOLVED] for arm, row in zip(ARMS, rows, strict=True)}
            say(f"  {rows[0]['step']:4.0f}  " + "".join(f"{v:20.2f}" for v in solved.values()))
    say("\n" + sentence(solved, total * attempts))
    page = write_report([folder / arm.name for arm in ARMS], folder / "report.html")
    say(f"\nreport: {page}")
    return solved


def sentence(solved: Mapping[str, float], attempts: int) -> str:
    """What the three rates mean."""
    learnt = {name for name, rate in solved.items() if rate >= LEARNT}
    if learnt != {"sdpo"}:
        rates = ", ".join(f"{name} {rate:.2f}" for name, rate in solved.items())
        return f"Not what usually happens ({rates} after {attempts} attempts); try another --seed."
    return (
        f"After {attempts} attempts each, self-distillation solves {solved['sdpo']:.0%}: the model "
        "reread its own\nwrong answers knowing what it was told, and learnt the difference. "
        "GRPO's attempts all had\nreward 0, so it had nothing to learn from. Told nothing, "
        "self-distillation learns nothing\neither: it is the feedback that teaches."
    )


def _feedback(seed: int) -> str:
    """What the environment says about one wrong answer."""
    code = toy_env(NUM_ITEMS, seed=seed).load("train")[0].reference
    return feedback_text("Zu00" if code != "Zu00" else "Ka11", code, "all")


def _config(arm: Arm, folder: Path, model: Path, seed: int) -> RunConfig:
    return load_config(
        ["toy", f"run={folder / arm.name}", f"model.name={model}", f"seed={seed}", *arm.settings]
    )
