"""Ways to see what a setting does, each as small as it can be: a config to plain, comparable facts.

An error is a fact too. The only fakes stand at the engine (vLLM) and at services outside.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

import sdpo
from sdpo.config.schema import LogConfig, LoraConfig, RunConfig
from sdpo.discovery.run import discover_tasks
from sdpo.engines import server, vllm
from sdpo.envs.adapters import reasoning_gym
from sdpo.envs.adapters.llm_judge import LlmJudge
from sdpo.envs.opening import open_env
from sdpo.errors import SdpoError
from sdpo.memory import Cards, plan_memory
from sdpo.metrics import writer
from sdpo.models.policy import Policy, load_policy
from sdpo.records import Group, Rollout, Verdict
from sdpo.rollouts import sampler as sampler_module
from sdpo.rollouts.record import read_rollouts
from sdpo.rollouts.sampler import open_sampler
from sdpo.rollouts.together import Together
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.loop import train
from sdpo.training.opening import open_run

DOORS = """
import torch

def shown(group, index, others, rng, say=""):
    solved = [r for r, v in zip(group.rollouts, group.verdicts) if v.solved and r.index != index]
    said = group.verdicts[index].feedback or ""
    example = solved[0] if solved else None
    told = [turn.feedback for turn in group.rollouts[index].turns]
    return {
        "demonstration": example, "feedback": say + said, "attempt": group.rollouts[index],
        "turn_feedback": told,
    }

def other_shown(group, index, others, rng):
    return {"feedback": "Try again."}

def share(metrics, state, rate=0.5):
    return rate

def other_share(metrics, state):
    return 0

def rule(group, index, has_context, mix=0.4):
    return {"pg": mix, "distill": 1 - mix} if has_context else {"pg": mix}

def other_rule(group, index, has_context):
    return {"pg": 1.0}

def weights(tokens, slope=1.0):
    return 1.0 + slope * torch.arange(len(tokens))

def other_weights(tokens):
    return torch.exp(-tokens.teacher_logprob)

def divergence(log_p, log_q, alpha=0.5):
    return 1 - ((1 - alpha) * log_p + alpha * log_q).exp().sum(-1)

def other_divergence(log_p, log_q):
    return (log_p.exp() * (log_p - log_q) * (1 + log_p.exp())).sum(-1)
"""
"""A module of functions for the plug points."""
TEMPLATE_SWITCH = "{% if aloud %}(aloud) {% endif %}"
TASKS = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)]
LATE = 6
"""Policy version from which the attempts of the toy environment lose their form."""


def judge(task: sdpo.Task, rollout: Rollout) -> Verdict:
    """Letters from a to h are right; everything is badly formed after `LATE` updates."""
    hits = sum(character in "abcdefgh" for character in rollout.text)
    category = "incorrect_format" if rollout.policy_version >= LATE else "wrong_answer"
    return Verdict(
        reward=min(1.0, hits / 2),
        solved=hits > 1,
        feedback=None if hits > 1 else f"only {hits} of its characters are from a to h",
        info={"category": "accepted" if hits > 1 else category},
    )


def reply(task: sdpo.Task, turns: Any) -> sdpo.Reply:
    said = f"turn {len(turns)} was {turns[-1].text[:2]!r}"
    more = ({"role": "user", "content": "again"},) if len(turns) < 3 else ()
    return sdpo.Reply(messages=more, feedback=said)


ENV = sdpo.env(TASKS, judge, reply=reply)
QUIET_ENV = sdpo.env(TASKS, judge)


def make_world(folder: Path) -> None:
    """Two models (the tokenizer's template has a switch) and the task files of every environment,
    two of each."""
    for seed, name in enumerate(("model", "other_model")):
        tokenizer = byte_tokenizer()
        assert isinstance(tokenizer.chat_template, str)
        tokenizer.chat_template = TEMPLATE_SWITCH + tokenizer.chat_template
        tokenizer.save_pretrained(folder / name)
        _model(seed, tokenizer.eos_token_id).save_pretrained(folder / name)
    (folder / "doors.py").write_text(DOORS)
    options = "What?\n\nA: 1 kg\nB: 2 kg"
    tools = "Tools:\nfind: finds\nParameters: {}\nFind it."
    for number, name in enumerate(("", "other_")):
        ids = range(10 * number, 10 * number + 8)
        code = {
            "id": f"code{number}", "prompt": "Write `f(x)`.", "kind": "function",
            "entry_point": "f", "time_limit_s": 5.0,
            "tests": {"public": [{"input": [i], "output": -i if i else 0} for i in range(5)]},
            "reference_solution": "def f(x):\n    return -x\n",
        }  # fmt: skip
        rows: dict[str, list[dict[str, Any]]] = {
            "code": [code, code | {"id": f"more{number}"}],
            "contests": [
                {"question_id": str(m), "question_content": "Print 1.", "starter_code": "",
                 "contest_date": f"2025-0{m}-02T00:00:00", "private_test_cases": "[]",
                 "public_test_cases": '[{"input": "", "output": "1", "testtype": "stdin"}]'}
                for m in (1, 2, 6)
            ],
            "choice": [{"idx": i, "prompt": f"{options} {i}", "answer": "A"} for i in ids],
            "sql": [
                {"id": str(i), "question": f"Who is older than {i}?", "database": "staff.sql",
                 "query": f"SELECT lbl FROM stf WHERE yrs > {i}", "evidence": "lbl is a name"}
                for i in ids
            ],
            "math": [{"id": str(i), "problem": f"What is {i}?", "answer": str(i)} for i in ids],
            "tools": [
                {"idx": i, "prompt": f"{tools} {i}",
                 "answer": [{"Action": "find", "Action_Input": "{}"}]} for i in ids
            ],
        }  # fmt: skip
        (folder / "staff.sql").write_text(
            "CREATE TABLE stf (lbl TEXT, yrs INTEGER, place TEXT);\n"
            "INSERT INTO stf VALUES ('Ann', 31, 'A'), ('Bob', 45, 'B'), ('Cleo', 62, 'A');\n"
        )
        for kind, lines in rows.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{name}{kind}.jsonl").write_text(text)
        (folder / f"{name}holdout.toml").write_text(
            f"[env]\ntype = 'custom'\npath = '{folder}/{name}custom.py:ENV'\n"
        )
        (folder / f"{name}custom.py").write_text(
            f"import sdpo\nENV = sdpo.env(['say {number}'], lambda task, rollout: 0.0)\n"
        )


@torch.no_grad()
def _model(seed: int, end: int) -> Any:
    """A tiny model with opinions: large weights, and an end of turn after about ten tokens."""
    model = tiny_model(num_layers=1, hidden_size=16, seed=seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(8.0)
    embeddings: Any = model.get_input_embeddings()
    # Every state points along the first coordinate, and the end of turn lies furthest that way.
    embeddings.weight[:, 0] = 1.0
    embeddings.weight[end, 0] = 2.0
    return model


# --- learning from given attempts -----------------------------------------------------------


def _group(task: sdpo.Task, chat: Any, step: int, rewards: list[float], prompt: Any) -> Group:
    texts = [f"{task.id} {'abcdefgh'[i]} {'x' * (3 * i + step)}" for i in range(len(rewards))]
    rollouts, verdicts = [], []
    for index, (text, reward) in enumerate(zip(texts, rewards, strict=True)):
        ids = (*chat.text_ids(text), chat.stop_ids[0])
        # Some tokens the sampler found likelier than the student does, some less: caps act.
        logprobs = tuple(-7.5 if (i + index) % 3 else -4.5 for i in range(len(ids)))
        rollouts.append(
            Rollout(
                task_id=task.id, index=index, prompt_ids=prompt, completion_ids=ids,
                sampler_logprobs=logprobs, text=text, truncated=False, policy_version=step,
            )
        )  # fmt: skip
        said = None if reward == 1.0 else f"{task.id}: {'no, ' * 40}that is {reward}"
        verdicts.append(Verdict(reward=reward, solved=reward == 1.0, feedback=said))
    return Group(task=task, rollouts=tuple(rollouts), verdicts=tuple(verdicts))


REWARDS = (
    [1.0, 0.0, 0.25, 0.0],  # one solved: nobody else's demonstration for it
    [0.0, 0.5, 0.0, 0.25],  # all failed: feedback only
    [1.0, 1.0, 0.0, 0.0],
    [1.0, 1.0, 1.0, 0.0],
)


_known: dict[str, tuple[Policy, dict[str, torch.Tensor]]] = {}
"""Policies by the settings of their model, with the weights that they were loaded with."""


def _as_loaded(config: RunConfig) -> Policy | None:
    """The policy that `config` names with its first weights, loaded and tried once: that takes a
    third of an observation. None where settings change the modules themselves."""
    if config.optim.gradient_checkpointing or isinstance(config.model.adapter, LoraConfig):
        return None
    settings = config.model.model_dump_json()
    if settings not in _known:
        policy = load_policy(
            config.model.name, dtype=config.model.dtype, device=config.model.device
        )
        first = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
        _known[settings] = policy, first
    policy, first = _known[settings]
    policy.model.load_state_dict(first)
    return policy


def learned(config: RunConfig, table: Any = REWARDS) -> Any:
    """Losses and weights after `config.steps` steps of a real run on written attempts; rewards
    rise from step to step."""
    facts: list[Any] = []
    with _in_fresh_directory(config), open_run(config, QUIET_ENV, _as_loaded(config)) as run:
        tasks = run.env.load("train")
        chat = run._sampler.chat
        for step in range(config.steps):
            groups = []
            for number, task in enumerate(tasks):
                rewards = table[(number if number < 2 or step < 2 else 3)]
                prompt = chat.prompt_ids(task.messages)
                groups.append(_group(task, chat, step, rewards, prompt))
            groups = run.learner.with_contexts(groups)
            losses = run.learner.update(run.learner.samples(groups))
            row = run.measure(groups, losses)
            row |= run.learner.follow(row)
            run.record_rollouts(groups, losses)
            facts.append({k: repr(v) for k, v in row.items() if not k.startswith("time/")})
        weights = run.learner.model.named_parameters()
        facts.append({name: p.detach().double().sum().item() for name, p in weights})
    return facts


def learned_beside_flat(config: RunConfig) -> Any:
    """As `learned`, with a group of equal rewards."""
    return learned(config, (REWARDS[0], [0.0] * 4, *REWARDS[2:]))


# --- whole runs ------------------------------------------------------------------------------


def trained(config: RunConfig, env: Any = ENV) -> Any:
    """Everything a whole run leaves in its directory, without times."""
    with _in_fresh_directory(config):
        try:
            train(config, env=env)
        except SdpoError as error:
            return type(error).__name__, _files(Path(config.run))
        return _files(Path(config.run))


def trained_single_turn(config: RunConfig) -> Any:
    return trained(config, QUIET_ENV)


def placed(config: RunConfig) -> Any:
    """Where the run is."""
    with _in_fresh_directory(config):
        result = train(config, env=QUIET_ENV)
        return str(result.run_dir), (Path(config.run) / "metrics.jsonl").exists()


def written_by(config: RunConfig) -> Any:
    """The threads that write the states of checkpoints."""
    write, threads = torch.save, set()

    def watched(*arguments: Any) -> None:
        threads.add(threading.current_thread().name)
        write(*arguments)

    with mock.patch.object(torch, "save", watched):
        trained_single_turn(config)
    return threads


def worked(config: RunConfig) -> Any:
    """How often modules ran and with how many tokens: for settings that must not change results."""
    calls: collections.Counter[Any] = collections.Counter()

    def count(module: torch.nn.Module, arguments: Any) -> None:
        shapes = tuple(tuple(a.shape) for a in arguments if isinstance(a, torch.Tensor))
        calls[type(module).__name__, shapes] += 1

    hook = register_module_forward_pre_hook(count)
    try:
        trained_single_turn(config)
    finally:
        hook.remove()
    return calls


def _files(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [
                {k: v for k, v in row.items() if not k.startswith(("time/", "seconds"))}
                for row in rows
            ]
        elif path.parts[-2:-1] == ("checkpoints",) or name.startswith("checkpoints/step"):
            found[name] = None
    return found


@contextlib.contextmanager
def _in_fresh_directory(config: RunConfig) -> Any:
    shutil.rmtree(config.run, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(config.run, ignore_errors=True)


# --- parts -----------------------------------------------------------------------------------


def counted(config: RunConfig) -> Any:
    """What each of two cards holds."""
    return plan_memory(config, Cards.parse("2x80")).parts


def loaded(config: RunConfig) -> Any:
    """Name, compute type, device and trainable weights of the policy, and what it thinks."""
    try:
        with open_sampler(config, QUIET_ENV) as sampler:
            model = sampler.policy.model
            shapes = {n: (tuple(p.shape), str(p.dtype)) for n, p in model.named_parameters()}
            scales = [getattr(m, "scaling", None) for m in model.modules()]
            return (
                shapes,
                [s for s in scales if isinstance(s, dict)],
                float(next(model.parameters()).detach().double().sum()),
                sampler.chat.prompt_ids(QUIET_ENV.load("train")[0].messages),
            )
    except SdpoError as error:
        return type(error).__name__


def sampled_with(config: RunConfig) -> Any:
    """Class of the engine, and what vLLM, or the servers, would have been opened with."""
    opened: list[Any] = []

    class Fake:
        class LLM:
            def __init__(self, **settings: Any) -> None:
                opened.append({k: v for k, v in settings.items() if k != "model"})

            def apply_model(self, *_: Any) -> None: ...
            def collective_rpc(self, *_: Any, **kwargs: Any) -> None: ...
            def reset_prefix_cache(self) -> None: ...

    class Engine:
        def __init__(self, model: Any, servers: Any, transfer: Any, **_: Any) -> None:
            opened.extend([sorted(vars(server).items()) for server in servers])
            opened.append((type(transfer).__name__, sorted(map(repr, vars(transfer).items()))))

    # Settings are looked at; there is no vLLM whose log-probs could be tried.
    with (
        mock.patch.object(vllm, "_vllm", return_value=Fake),
        mock.patch.object(server, "ServerEngine", Engine),
        mock.patch.object(sampler_module, "check_sampler", return_value=0.0),
        mock.patch.object(sampler_module, "check_engine"),
        open_sampler(config, QUIET_ENV) as sampler,
    ):
        return type(sampler.collector.engine).__name__, opened


def refused_or_sampled(config: RunConfig) -> Any:
    """As `sampled_with`, or why not."""
    try:
        return sampled_with(config)
    except SdpoError as error:
        return str(error)


def mirrored(config: RunConfig) -> Any:
    """Services that a run opened, and what it is called there."""
    opened: list[Any] = []

    class Silent:
        def log(self, *_: Any) -> None: ...
        def table(self, *_: Any) -> None: ...
        def alert(self, *_: Any) -> None: ...
        def close(self) -> None: ...

    def open_backend(name: str, run_dir: Path, log: LogConfig, *_: Any) -> Silent:
        opened.append((name, log.project, log.name, log.tags))
        return Silent()

    originals = writer.check_installed, writer.open_backend
    writer.check_installed = lambda names: None
    writer.open_backend = open_backend
    try:
        trained_single_turn(config)
    finally:
        writer.check_installed, writer.open_backend = originals
    return opened


def recorded(config: RunConfig) -> Any:
    """The texts that a run recorded."""
    with _in_fresh_directory(config):
        train(config, env=QUIET_ENV)
        return [row["text"] for row in read_rollouts(Path(config.run))]


ANSWERS = (
    "```python\ndef f(x):\n    return x\n```",
    "```python\ndef f(x):\n    return x * 'a long story'\n```",
    "<answer>B</answer>",
    "<answer>B",
    "Action: find\nAction Input: {}",
    "Action: find()\nAction Input: {}",
    "\\boxed{3}",
    "SELECT name FROM employees",
    "SELECT a.lbl FROM stf a, stf b",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT COUNT(*) FROM c",
)


GYM = SimpleNamespace(
    create_dataset=lambda name, *, size, **options: [
        {"question": f"{name} {options} {i}?", "answer": str(i)} for i in range(size)
    ],
    factory=SimpleNamespace(DATASETS=("one", "two")),
    utils=SimpleNamespace(SYSTEM_PROMPTS={"default": "Answer."}),
)
"""What is used of the library Reasoning Gym to make tasks."""


def judged(config: RunConfig) -> Any:
    """Tasks of both splits of the environment and verdicts on a few answers."""
    with mock.patch.object(reasoning_gym, "library", return_value=GYM):
        env = open_env(config.env)
    try:
        tasks = {split: env.load(split) for split in ("train", "eval")}
        facts: list[Any] = [{s: [(t.id, t.messages) for t in ts] for s, ts in tasks.items()}]
        if config.env.type in ("custom", "math", "reasoning-gym", "judge"):
            return facts
        for text in ANSWERS:
            rollout = Rollout(
                task_id="", index=0, prompt_ids=(1,), completion_ids=(2,),
                sampler_logprobs=(0.0,), text=text, truncated=False, policy_version=0,
            )  # fmt: skip
            verdict: Any = env.judge(tasks["train"][0], rollout)
            info = {k: v for k, v in verdict.info.items() if not k.endswith("_s")}
            facts.append((verdict.reward, verdict.feedback, info))
        return facts
    finally:
        if hasattr(env, "close"):
            env.close()


def asked(config: RunConfig) -> Any:
    """Tasks of an environment that a model judges, what it would be asked, and the verdict."""
    questions: list[Any] = []

    def reply(judge: LlmJudge, question: str) -> str:
        questions.append((judge.config.url, judge.config.model, question))
        return '{"feedback": "no", "score": 0.5}'

    with mock.patch.object(LlmJudge, "_reply", reply):
        env = LlmJudge(config.env)  # ty: ignore[invalid-argument-type]
        tasks = [(split, task.id, task.messages) for split in ("train", "eval")
                 for task in env.load(split)]  # fmt: skip
        rollout = Rollout(
            task_id="", index=0, prompt_ids=(1,), completion_ids=(2,), sampler_logprobs=(0.0,),
            text="so", truncated=False, policy_version=0,
        )  # fmt: skip
        verdicts = [env.judge(env.load("train")[0], rollout) for _ in range(2)]
    return tasks, questions, [(v.reward, v.feedback) for v in verdicts]


def judge_calls(config: RunConfig) -> Any:
    """Calls, the most at once, and the verdicts of a judge of which one attempt is slow and another
    finds its service down."""
    calls: list[int] = []
    running, peak = 0, 0

    async def slow_or_down(task: sdpo.Task, rollout: Rollout) -> float:
        nonlocal running, peak
        calls.append(rollout.index)
        running += 1
        peak = max(peak, running)
        try:
            await asyncio.sleep(0.2 if rollout.index == 1 else 0.01)
        finally:
            running -= 1
        if rollout.index == 0:
            raise sdpo.Unjudged("down")
        return 1.0

    with open_sampler(config, sdpo.env(TASKS[:1], slow_or_down)) as sampler:
        sampling = sampler.sampling(config, temperature=1.0)
        try:
            (group,) = (
                Together()
                .collect(
                    sampler.collector,
                    sampler.env.load("train"),
                    group_size=9,
                    sampling=sampling,
                    seed=0,
                )
                .groups
            )
        except SdpoError as error:
            return type(error).__name__, sorted(calls), peak
    return [rollout.index for rollout in group.rollouts], sorted(calls), peak


def isolated(config: RunConfig) -> Any:
    """How the sandbox is set up, or why none can be had."""
    env: Any = open_env(config.env)
    try:
        return env._open().sandbox._settings
    except SdpoError as error:
        return type(error).__name__
    finally:
        env.close()


def discovered(config: RunConfig) -> Any:
    """Every search of a discovery and every prompt it sampled from."""
    prompts: list[Any] = []

    def watch(task: sdpo.Task, rollout: Rollout) -> Verdict:
        prompts.append((task.id, rollout.prompt_ids, rollout.text))
        solved = task.id == "t1" and rollout.index % 2 == 0
        said = None if solved else f"{len(rollout.text)} characters are not it"
        return Verdict(reward=float(solved), solved=solved, feedback=said)

    env = sdpo.env(TASKS[:2], watch, eval_tasks=TASKS[1:3])
    with _in_fresh_directory(config):
        try:
            results = discover_tasks(config, env)
        except SdpoError as error:
            return type(error).__name__, sorted(prompts)
    rows = [{k: v for k, v in r.row().items() if k != "seconds"} for r in results]
    return rows, sorted(prompts)
