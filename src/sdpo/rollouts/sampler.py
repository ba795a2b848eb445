"""A recipe's policy, environment and engine, opened together: what every command that samples
needs. Nothing here trains; the objective's specs are objectives.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

from sdpo.chat import Chat
from sdpo.config.schema import (
    FolderTransferConfig,
    FullWeightsConfig,
    LocalEngineConfig,
    LoraConfig,
    ModelConfig,
    NcclTransferConfig,
    RunConfig,
    ServerEngineConfig,
    VllmEngineConfig,
)
from sdpo.engines.base import Engine, Sampling, StopTexts
from sdpo.engines.peers import check_peers
from sdpo.engines.trial import check_sampler
from sdpo.envs.base import Closing, Env
from sdpo.envs.episodes import Equipping, Limiting, Opening, Replying
from sdpo.envs.opening import check_env, open_env
from sdpo.errors import ConfigError
from sdpo.models.adapters import has_adapter, new_adapter
from sdpo.models.device import keep_freed_memory
from sdpo.models.policy import Policy, load_policy, resolvable_name
from sdpo.models.quantized import check_quantization
from sdpo.models.structure import causal_lm
from sdpo.parallel import Parallel
from sdpo.rollouts.collect import Collector
from sdpo.seeds import derive

_ALONE = Parallel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A policy that can be sampled and judged; no training state.

    Example:
        with open_sampler(config) as sampler: sampler.collector.collect(...)
    """

    policy: Policy
    chat: Chat
    env: Env
    collector: Collector

    @property
    def vocabulary(self) -> int:
        """Ids below it can be sampled, and every id that ends a completion is one of them."""
        return max(self.policy.vocabulary, 1 + max(self.chat.stop_ids))

    def sampling(self, config: RunConfig, *, temperature: float, top_p: float = 1.0) -> Sampling:
        """How this run draws completions at `temperature`."""
        texts = config.rollout.stop
        return Sampling(
            max_new_tokens=config.rollout.max_completion_tokens,
            stop_ids=self.chat.stop_ids,
            temperature=temperature,
            top_p=top_p,
            vocabulary=self.vocabulary,
            stop=StopTexts(texts=texts, decode=self.chat.decode_all) if texts else None,
        )


@contextmanager
def open_sampler(
    config: RunConfig,
    env: Env | None = None,
    policy: Policy | None = None,
    *,
    parallel: Parallel = _ALONE,
) -> Generator[Sampler]:
    """Load model and environment and close what was opened here. `env` replaces `config.env` and
    stays open; `policy` replaces the model that `config.model` names. The ranks of `parallel` have
    the same weights at all times."""
    check_engine(config)
    policy = policy or load_policy(
        config.model.name,
        dtype=config.model.dtype,
        device=config.model.device,
        adapter=config.model.adapter if isinstance(config.model.adapter, LoraConfig) else None,
    )
    if policy.device.type == "cpu":
        keep_freed_memory()
    policy = with_adapter(policy, config.model, config.seed)
    own_env = open_env(config.env) if env is None else env
    try:
        check_env(own_env)
        chat = chat_of(
            policy,
            config.model.chat_template_kwargs,
            tools=own_env.tools if isinstance(own_env, Equipping) else (),
        )
        collector = Collector(
            env=own_env,
            engine=open_engine(config, policy, parallel),
            chat=chat,
            max_prompt_tokens=config.rollout.max_prompt_tokens,
            max_turns=max_turns(own_env, config.rollout.max_turns),
            judging=config.env,
        )
        yield Sampler(policy=policy, chat=chat, env=own_env, collector=collector)
    finally:
        if env is None and isinstance(own_env, Closing):
            own_env.close()


def max_turns(env: Env, wanted: int | Literal["env"]) -> int:
    """Completions per attempt. Raises `ConfigError` when neither side says how many."""
    if not isinstance(env, Opening | Replying):
        return 1
    if wanted != "env":
        return wanted
    if not isinstance(env, Limiting):
        raise ConfigError(
            f"rollout.max_turns = 'env', but {type(env).__name__}, whose attempts are "
            "conversations, has no attribute max_turns; add one, or set rollout.max_turns"
        )
    return env.max_turns


def chat_of(
    policy: Policy,
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    tools: Sequence[Any] = (),
) -> Chat:
    """The policy's chat template with the environment's tools, and every token that its generation
    config ends at."""
    generation = policy.model.generation_config
    stop_ids = None if generation is None else generation.eos_token_id
    return Chat(
        policy.tokenizer,
        template_kwargs=template_kwargs,
        model_stop_ids=[stop_ids] if isinstance(stop_ids, int) else stop_ids or [],
        tools=tools,
    )


def with_adapter(policy: Policy, config: ModelConfig, seed: int) -> Policy:
    """`policy` with the trainable weights that `config.adapter` names; `seed` decides the new ones,
    on every rank alike. An adapter that was loaded to train on stays."""
    match config.adapter:
        case FullWeightsConfig():
            return policy
        case LoraConfig() as wanted:
            check_quantization(policy.model, wanted)
            if has_adapter(policy.model):
                return policy
            base = resolvable_name(policy.name)
            return policy.replace_model(
                new_adapter(policy.model, wanted, base=base, seed=derive(seed, "adapter"))
            )
        case other:
            assert_never(other)


def check_engine(config: RunConfig) -> None:
    """Raises `ConfigError` for an engine that is not installed, before a model is loaded."""
    match config.rollout.engine:
        case VllmEngineConfig():
            needed, instead = "type = 'vllm'", "the local engine (rollout.engine.type=local)"
        case ServerEngineConfig(weights=NcclTransferConfig()):
            needed, instead = "weights.type = 'nccl'", "rollout.engine.weights.type=folder"
        case _:
            return
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        raise ConfigError(
            f"rollout.engine.{needed} needs vLLM: pip install 'sdpo[vllm]', or take {instead}"
        )


def open_engine(config: RunConfig, policy: Policy, parallel: Parallel = _ALONE) -> Engine:
    """The engine `config.rollout.engine` names, sampling with the policy's weights; several ranks
    have the same."""
    wanted = config.rollout.engine
    match wanted:
        case LocalEngineConfig(max_sequences=max_sequences):
            from sdpo.engines.local import LocalEngine

            return LocalEngine(policy.model, max_sequences=max_sequences)
        case VllmEngineConfig(memory_fraction=memory_fraction, tensor_parallel=count):
            from sdpo.engines.vllm import JointVllmEngine, VllmEngine

            check_peers(count, parallel)
            sizes: dict[str, Any] = {
                "memory_fraction": memory_fraction,
                "max_model_len": _longest(config),
            }
            engine = (
                VllmEngine(policy.model, **sizes)
                if count == 1
                else JointVllmEngine(policy.model, count=count, parallel=parallel, **sizes)
            )
        case ServerEngineConfig():
            engine = _open_servers(wanted, config, policy, parallel)
        case _:
            assert_never(wanted)
    # A library of its own reads the weights its own way; the local engine tries itself.
    check_sampler(engine, causal_lm(policy.model))
    return engine


def _open_servers(
    wanted: ServerEngineConfig, config: RunConfig, policy: Policy, parallel: Parallel
) -> Engine:
    from sdpo.engines.server import ServerEngine
    from sdpo.engines.server_http import Server
    from sdpo.engines.weight_transfer import FolderTransfer, NcclTransfer

    match wanted.weights:
        case FolderTransferConfig(path=path):
            transfer = FolderTransfer(Path(path))
        case NcclTransferConfig(address=address):
            transfer = NcclTransfer(address)
        case _:
            assert_never(wanted.weights)
    return ServerEngine(
        policy.model,
        [Server(url, timeout_s=wanted.timeout_s) for url in wanted.urls],
        transfer,
        max_model_len=_longest(config),
        parallel=parallel,
    )


def _longest(config: RunConfig) -> int | None:
    """Tokens that a sampled sequence may have, its prompt included and all turns of a conversation;
    None where the recipes of held-out tasks have sizes of their own."""
    rollout = config.rollout
    if config.eval.holdout:
        return None
    prompts = (
        rollout.max_prompt_tokens,
        config.teacher.context.max_tokens,  # probes sample the teacher
        config.discover.window_tokens,
    )
    return max(prompts) + rollout.max_completion_tokens
