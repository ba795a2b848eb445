"""Environments that others have published for verifiers (to 0.3), loaded and judged as they are.

`pip install staros-stardata 'verifiers<0.4'`; importing the library takes tens of seconds.
"""

from __future__ import annotations

import pytest

from sdpo.envs.adapters.verifiers import from_verifiers
from sdpo.records import Rollout
from sdpo.rollouts.judging import judge_all

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

verifiers = pytest.importorskip("verifiers")
if not hasattr(verifiers, "SingleTurnEnv"):
    pytest.skip("verifiers 0.4 has tasksets instead", allow_module_level=True)
constraints = pytest.importorskip("stardata.envs.constraint_gym")
sokoban = pytest.importorskip("stardata.envs.sokoban_gym")


def judged(env, text):
    task = env.load("train")[0]
    (verdict,) = judge_all(env, [(task, Rollout.written(task, text))])
    return verdict


def test_poems_under_constraints():
    env = from_verifiers(constraints.load_environment())
    good = judged(env, "An old silent pond\nA frog jumps into the pond\nSplash! Silence again")
    assert good.reward > judged(env, "No poem").reward
    assert len(good.metrics) > 2  # its parts, from a function that returns a dict


def test_texts_without_a_letter_and_their_held_out_topics():
    env = from_verifiers(constraints.load_lipogram_env(), solved_at=0.9)
    held_out = from_verifiers(constraints.load_lipogram_env(holdout=True))
    seen = {task.messages[-1]["content"] for task in env.load("train")}
    assert not seen & {task.messages[-1]["content"] for task in held_out.load("train")}
    letter = env.load("train")[0].reference["info"]["letter"]
    with_it = judged(env, f"{letter} " * 30)
    assert (with_it.reward, with_it.solved) == (0.0, False)


def test_puzzles():
    rows = sokoban.build_dataset(per_band=1)
    puzzles = verifiers.SingleTurnEnv(
        dataset=constraints._as_hf_dataset(rows),
        rubric=verifiers.Rubric(
            funcs=[sokoban.sokoban_reward, sokoban.component_metrics], weights=[1.0, 0.0]
        ),
    )
    env = from_verifiers(puzzles)
    assert judged(env, rows[0]["answer"]).solved
    assert judged(env, "no move").reward < 1
