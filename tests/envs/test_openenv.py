"""Episodes on a real OpenEnv server on loopback, made with the package's own server classes."""

from __future__ import annotations

import itertools
import random
import threading
import time

import pytest

from sdpo.chat import Chat
from sdpo.config.environments import JudgingConfig
from sdpo.engines.base import Sampling
from sdpo.envs.adapters.openenv import from_openenv
from sdpo.errors import JudgeError, TaskError
from sdpo.rollouts.collect import Collector
from sdpo.testing import byte_tokenizer
from sdpo.testing.scripted import ScriptedEngine, in_order

pytestmark = pytest.mark.filterwarnings("ignore")

core = pytest.importorskip("openenv.core")
client_types = pytest.importorskip("openenv.core.client_types")
server = pytest.importorskip("openenv.core.env_server")
uvicorn = pytest.importorskip("uvicorn")

CHAT = Chat(byte_tokenizer())
COUNT = itertools.count()


class Guess(server.Action):
    number: int


class Heard(server.Observation):
    said: str = ""


class Number(server.Environment):
    """Guess a number; each step waits, as a browser or a container would."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    alive = 0
    most = 0
    is_seeded = True

    def __init__(self):
        super().__init__()
        self._number, self._tries = 0, 0
        Number.alive += 1
        Number.most = max(Number.most, Number.alive)

    def reset(self, seed=None, episode_id=None, **kwargs):
        self._number = random.Random(seed).randrange(100)
        self._tries = 0
        if not self.is_seeded:
            return Heard(said=f"game {next(COUNT)}")
        return Heard(said=f"A number {'above' if self._number >= 50 else 'below'} 50.")

    def step(self, action, timeout_s=None, **kwargs):
        time.sleep(0.02)
        if action.number < 0:
            raise RuntimeError("the machine is broken")
        self._tries += 1
        right = action.number == self._number
        said = "higher" if action.number < self._number else "lower"
        return Heard(said="yes" if right else said, done=right, reward=float(right))

    @property
    def state(self):
        return server.State(step_count=self._tries)

    def close(self):
        Number.alive -= 1


@pytest.fixture(scope="module")
def serve():
    running = []

    def started(max_concurrent_envs=8):
        app = server.create_fastapi_app(
            Number, Guess, Heard, max_concurrent_envs=max_concurrent_envs
        )
        ours = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=ours.run, daemon=True)
        thread.start()
        running.append((ours, thread))
        wait_until(lambda: ours.started)
        return f"http://127.0.0.1:{ours.servers[0].sockets[0].getsockname()[1]}"

    yield started
    for ours, thread in running:
        ours.should_exit = True
        thread.join(20)


def wait_until(is_so, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def number_of(seed):
    return random.Random(seed).randrange(100)


def act(text):
    return {"number": int(text)}


def play(env, scripts, retries=0, max_unjudged=0.25):
    width = max(map(len, scripts))
    turns = [script[n] for n in range(width) for script in scripts if n < len(script)]
    engine = ScriptedEngine(in_order(turns), encode=CHAT.text_ids, stop_id=CHAT.end_of_turn_id)
    collector = Collector(
        env=env, engine=engine, chat=CHAT, max_turns=4, max_prompt_tokens=900,
        judging=JudgingConfig(retries=retries, max_unjudged=max_unjudged),
    )  # fmt: skip
    (group,) = collector.collect(
        [env.load("train")[0]],
        group_size=len(scripts),
        sampling=Sampling(max_new_tokens=900, stop_ids=CHAT.stop_ids),
        seed=1,
    ).groups
    return group


def test_a_server_becomes_episodes_that_play_at_once_and_are_closed(serve):
    env = from_openenv(
        serve(),
        [{"seed": i} for i in range(3)],
        eval_resets=[{"seed": 9}],
        prompt="Guess.",
        act=act,
        show="said",
        feedback=lambda task, results, reward: None if reward else f"{len(results)} guesses",
    )
    above = "above" if number_of(0) >= 50 else "below"
    assert [len(env.load(split)) for split in ("train", "eval")] == [3, 1]
    assert env.load("train")[0].messages[-1]["content"] == f"Guess.\n\nA number {above} 50."
    wait_until(lambda: Number.alive == 0)
    Number.most = 0
    right = number_of(0)
    group = play(env, [[str(right - 1), "what?", str(right)]] * 3 + [[str(right + 1)] * 4])
    # The server makes a probe of its own, so at least; one after the other it would be one.
    assert Number.most >= 4
    wait_until(lambda: Number.alive == 0)
    assert [verdict.solved for verdict in group.verdicts] == [True, True, True, False]
    assert group.verdicts[3].feedback == "4 guesses"
    assert group.verdicts[0].metrics == {"refused_actions": 1.0}
    first = group.rollouts[0].turns
    assert [[message["content"] for message in turn.reply] for turn in first] == [
        ["higher"],
        ["That is not an action: invalid literal for int() with base 10: 'what?'"],
        [],
    ]
    assert [turn.reward for turn in first] == [0.0, None, 1.0]


def test_a_client_class_of_the_environments_own(serve):
    url = serve()

    class Client(core.EnvClient):
        def _step_payload(self, action):
            return action.model_dump()

        def _parse_result(self, payload):
            heard = Heard(**payload["observation"])
            done, reward = payload["done"], payload["reward"]
            return client_types.StepResult(observation=heard, reward=reward, done=done)

        def _parse_state(self, payload):
            return server.State(**payload)

    env = from_openenv(
        lambda: Client(base_url=url),
        [{"seed": 0}],
        act=lambda text: Guess(number=int(text)),
        show=lambda heard: heard.said,
    )
    assert play(env, [[str(number_of(0))]]).verdicts[0].solved


def test_actions_that_the_server_finds_invalid_are_told_to_the_model(serve):
    env = from_openenv(serve(), [{"seed": 0}], act="guess")
    assert env.load("train")[0].messages[-1]["content"].startswith('{"said": "A number')
    (rollout,) = play(env, [["5"] * 4]).rollouts
    assert "That is not an action" in rollout.turns[0].reply[0]["content"]


def test_an_error_of_the_environment_stops_the_run_and_closes_every_session(serve):
    env = from_openenv(serve(), [{"seed": 0}], act=act, show="said")
    with pytest.raises(JudgeError, match="the machine is broken"):
        play(env, [["-1"], ["-1"]])
    wait_until(lambda: Number.alive == 0)


def test_a_server_without_a_free_session_means_not_now(serve):
    env = from_openenv(serve(max_concurrent_envs=2), [{"seed": 0}], act=act, show="said")
    group = play(env, [[str(number_of(0))]] * 2 + [[]], max_unjudged=0.5)
    assert len(group.rollouts) == 2
    with pytest.raises(JudgeError, match="max_concurrent_envs of all attempts"):
        play(env, [[str(number_of(0))]] * 2 + [[]] * 4, max_unjudged=0.5)


def test_what_a_server_cannot_give_is_refused(serve, monkeypatch):
    url = serve()
    with pytest.raises(TaskError, match=r"reset 0 failed: .*see whether the server runs"):
        from_openenv("http://127.0.0.1:9", [{"seed": 0}], act=act)
    with pytest.raises(TaskError, match=r"show='text'.: the observation has metadata, said"):
        from_openenv(url, [{"seed": 0}], act=act, show="text")
    monkeypatch.setattr(Number, "is_seeded", False)
    env = from_openenv(url, [{"seed": 0}], act=act, show="said")
    with pytest.raises(JudgeError, match="another than when the tasks were made"):
        play(env, [["1"] * 4])
    wait_until(lambda: Number.alive == 0)
