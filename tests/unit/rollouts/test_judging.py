"""What a judge may do without ending a run, and what it says when it does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from sdpo import Rollout, Task, Unjudged, Verdict, env
from sdpo.config.environments import JudgingConfig
from sdpo.errors import JudgeError, TaskError
from sdpo.rollouts.judging import judge_all

TASK = Task(id="a", messages=({"role": "user", "content": "say a"},))


def attempts(count):
    return [
        (
            TASK,
            Rollout(
                task_id="a", index=index, prompt_ids=(1,), completion_ids=(2,),
                sampler_logprobs=(0.0,), text=f"text {index}", truncated=False, policy_version=0,
            ),
        )
        for index in range(count)
    ]  # fmt: skip


def judged(judge, count=1, **settings):
    return judge_all(env([TASK], judge), attempts(count), JudgingConfig(**settings))


class HttpError(Exception):
    def __init__(self, status):
        super().__init__(f"HTTP {status}")
        self.status_code = status


class Response:
    status_code = 503


class RequestsError(Exception):
    response = Response()


class ReadTimeout(Exception):
    """As httpx and requests name theirs."""


@pytest.mark.parametrize("is_async", [False, True])
def test_judging_inside_a_running_loop_as_in_jupyter(is_async):
    """`asyncio.run() cannot be called from a running event loop`."""

    async def waits(task, rollout):
        await asyncio.sleep(0)
        return 1.0

    async def cell():
        return judged(waits if is_async else lambda task, rollout: 1.0)

    (verdict,) = asyncio.run(cell())
    assert verdict.solved


def test_an_async_judge_keeps_its_session_between_steps():
    loops = []

    async def judge(task, rollout):
        loops.append(asyncio.get_running_loop())
        return 1.0

    for _ in range(2):
        judged(judge)
    assert loops[0] is loops[1]
    assert not loops[0].is_closed()


def test_many_waiting_plain_judges_did_queue_behind_six_threads():
    barrier = threading.Barrier(64, timeout=30)

    def judge(task, rollout):
        barrier.wait()
        return 1.0

    assert len(judged(judge, 64)) == 64


@pytest.mark.parametrize("is_async", [False, True])
def test_no_more_judges_at_once_than_asked_for(is_async):
    running, peak, lock = 0, 0, threading.Lock()

    def enter(change):
        nonlocal running, peak
        with lock:
            running += change
            peak = max(peak, running)

    def plain(task, rollout):
        enter(1)
        time.sleep(0.005)
        enter(-1)
        return 1.0

    async def waits(task, rollout):
        enter(1)
        await asyncio.sleep(0.005)
        enter(-1)
        return 1.0

    judged(waits if is_async else plain, 12, concurrency=3)
    assert peak == 3


@pytest.mark.parametrize(
    "error",
    [Unjudged("down"), HttpError(429), HttpError(503), RequestsError(), ReadTimeout(),
     TimeoutError()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_not_now_leaves_one_attempt_without_a_verdict(error):
    def judge(task, rollout):
        if rollout.index == 1:
            raise error
        return rollout.index / 4

    verdicts = judged(judge, 4, retries=0)
    assert [v and v.reward for v in verdicts] == [0.0, None, 0.5, 0.75]


def test_one_503_is_asked_again():
    calls = []

    def judge(task, rollout):
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise HttpError(503)
        return 1.0

    (verdict,) = judged(judge, retries=1)
    assert verdict.solved
    assert calls[1] - calls[0] >= 0.5


def test_more_without_a_verdict_than_allowed_stop_with_the_first_and_the_settings():
    def judge(task, rollout):
        raise Unjudged("the service is down")

    with pytest.raises(JudgeError, match=r"2 of 2.*max_unjudged = 0\.25.*'a', attempt 0.*is down"):
        judged(judge, 2, retries=0)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_judge_that_hangs_did_hang_the_run(is_async):
    release = threading.Event()

    def plain(task, rollout):
        if rollout.index == 0:
            release.wait(60)
        return 1.0

    async def waits(task, rollout):
        if rollout.index == 0:
            await asyncio.sleep(60)
        return 1.0

    verdicts = judged(waits if is_async else plain, 4, retries=0, timeout_s=0.2)
    release.set()
    assert [v is None for v in verdicts] == [True, False, False, False]


def test_the_interpreter_ends_while_a_judge_hangs():
    code = (
        "import time, sdpo\n"
        "from sdpo.config.environments import JudgingConfig\n"
        "from sdpo.rollouts.judging import judge_all\n"
        "task = sdpo.Task(id='a', messages=({'role': 'user', 'content': 'x'},))\n"
        "attempt = sdpo.Rollout(task_id='a', index=0, prompt_ids=(1,), completion_ids=(2,),\n"
        "    sampler_logprobs=(0.0,), text='x', truncated=False, policy_version=0)\n"
        "env = sdpo.env([task], lambda task, rollout: time.sleep(600))\n"
        "try:\n"
        "    judge_all(env, [(task, attempt)], JudgingConfig(retries=0, timeout_s=0.1))\n"
        "except sdpo.SdpoError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert "no answer within env.timeout_s = 0.1 s" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill sends no SIGINT there")
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_reaches_the_caller_while_a_judge_waits():
    release, entered = threading.Event(), threading.Event()

    def interrupt():
        entered.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    def judge(task, rollout):
        entered.set()
        release.wait(60)
        return 1.0

    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        judged(judge)
    release.set()
    sender.join()


def test_the_users_frames_came_after_six_of_ours():
    def score(text):
        return {}[text]

    with pytest.raises(JudgeError, match="'a', attempt 0 raised KeyError: 'text 0'") as error:
        judged(lambda task, rollout: score(rollout.text))
    frames = [line for line in str(error.value).splitlines() if line.startswith("  File ")]
    assert len(frames) == 2
    assert all(__file__ in frame for frame in frames)


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(0), asyncio.CancelledError()])
@pytest.mark.parametrize("is_async", [False, True])
def test_exceptions_that_futures_do_not_carry_are_a_judges_error_too(error, is_async):
    def plain(task, rollout):
        raise error

    async def waits(task, rollout):
        raise error

    with pytest.raises(JudgeError, match="attempt 0 raised"):
        judged(waits if is_async else plain)
    assert judged(lambda task, rollout: 1.0)


@pytest.mark.parametrize(
    ("answer", "reward", "solved", "feedback"),
    [
        (Verdict(reward=0.5, solved=True), 0.5, True, None),
        (True, 1.0, True, None),
        (0.7, 0.7, True, None),
        (np.float32(0.5), 0.5, False, None),
        (np.bool_(True), 1.0, True, None),
        ((0.0, "bad"), 0.0, False, "bad"),
        ((np.bool_(True), None), 1.0, True, None),
        ({"reward": 0.75, "feedback": "good"}, 0.75, True, "good"),
        ({"reward": 1, "solved": np.bool_(False)}, 1.0, False, None),
    ],
)
def test_what_a_judge_may_return(answer, reward, solved, feedback):
    the_env = env([TASK], lambda task, rollout: answer, solved_at=0.7)
    (verdict,) = judge_all(the_env, attempts(1))
    assert (verdict.reward, verdict.solved, verdict.feedback) == (reward, solved, feedback)
    assert type(verdict.solved) is bool


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "NoneType None"),
        ("good", "str 'good'"),
        ((1.0, "a", "b"), "tuple"),
        (np.zeros(3), "ndarray"),
        ({"score": 1.0}, r"a mapping with \['score'\]"),
        ({"reward": "1"}, r"a mapping with \['reward'\]"),
        ((1.0, 3), "feedback = 3"),
    ],
)
def test_what_is_not_a_verdict_names_task_and_what_to_return(answer, said):
    with pytest.raises(JudgeError, match=f"task 'a' returned.*{said}"):
        judged(lambda task, rollout: answer)


def test_a_judge_of_one_argument_is_refused_at_once():
    def length(text):
        return len(text)

    with pytest.raises(TaskError, match=r"length\(task, rollout\), but takes \(text\)"):
        env([TASK], length)


def test_rewards_outside_0_1_are_said_once():
    code = (
        "from test_judging import *\n"
        "for _ in range(3): judged(lambda task, rollout: 7 + rollout.index, 2)\n"
    )
    folder = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("outside [0, 1]") == 1
