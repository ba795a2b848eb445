"""Every setting of a run. One class per section; the class default is the only default.

Loads no torch. `sdpo config show RECIPE` prints resolved values with their origin; `load.py` reads
files and overrides.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sdpo.config.base import Config
from sdpo.config.environments import (
    ChoiceEnvConfig,
    CodeEnvConfig,
    CustomEnvConfig,
    LlmJudgeEnvConfig,
    MathEnvConfig,
    ReasoningGymEnvConfig,
    SqlEnvConfig,
    ToolsEnvConfig,
)
from sdpo.config.objective import (
    DistillingConfig,
    Fraction,
    NonNegative,
    ObjectiveConfig,
    SdpoConfig,
)
from sdpo.config.teacher import TeacherConfig


class FullWeightsConfig(Config):
    type: Literal["full"] = "full"
    """Every weight trains, as in the paper."""


class LoraConfig(Config):
    type: Literal["lora"] = "lora"
    """Low-rank adapters (PEFT); the initial model stays available for free as the adapter-less
    model."""
    rank: PositiveInt = 16
    """Rank of each adapter."""
    alpha: PositiveInt = 32
    """Scale; the update is alpha / rank times the product."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More fields of PEFT's LoraConfig, for instance `{target_modules = ["q_proj", "v_proj"]}` or
    `{use_rslora = true}`: which layers, and how they are scaled and start. Default: every linear
    layer but the head."""
    quantization: Literal["none", "nf4"] = "none"
    """Format of the frozen base: `nf4` holds its linear layers in 4 bits (QLoRA), a quarter of
    bfloat16's memory, and samples and trains more slowly; needs the extra `qlora`. Embeddings, LM
    head and adapters stay as they are. Paper: none."""


AdapterConfig = Annotated[FullWeightsConfig | LoraConfig, Field(discriminator="type")]


class ModelConfig(Config):
    name: str = "smollm2-135m-instruct"
    """Hub id, folder, GGUF file, the demo model, or a run (`runs/quickstart`: its newest
    checkpoint, `runs/quickstart@4`: that of step 4). Paper: Qwen/Qwen3-8B,
    allenai/Olmo-3-7B-Instruct."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; auto takes bfloat16 where the hardware multiplies it natively. Optimizer state
    is float32 always."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    parallel: Literal["auto", "replicate", "shard", "shard_all"] = "auto"
    """What the processes of one run keep of weights, gradients, moments and teacher: `replicate`
    all of each, `shard` an equal part with the others of their node (PyTorch's FSDP2; of several
    nodes each holds everything), `shard_all` one with those of all nodes, for models too large for
    a node. auto shards on several GPUs, unless only adapters train or the model takes no packed
    sequences; on CPUs it replicates."""
    adapter: AdapterConfig = FullWeightsConfig()
    """Which weights train."""
    chat_template_kwargs: dict[str, bool | int | str] = Field(default_factory=dict)
    """Passed to the chat template, for instance `{enable_thinking = false}`. Paper: thinking
    off."""


EnvConfig = Annotated[
    CodeEnvConfig
    | ChoiceEnvConfig
    | ToolsEnvConfig
    | MathEnvConfig
    | SqlEnvConfig
    | LlmJudgeEnvConfig
    | ReasoningGymEnvConfig
    | CustomEnvConfig,
    Field(discriminator="type"),
]


class LocalEngineConfig(Config):
    type: Literal["local"] = "local"
    """In process, sharing the trained weights."""
    max_sequences: PositiveInt = 64
    """Completions decoded at once; more wait. Bounds the key-value cache."""


class VllmEngineConfig(Config):
    type: Literal["vllm"] = "vllm"
    """vLLM in process; needs the extra `vllm`."""
    memory_fraction: Fraction = 0.4
    """Share of the device's memory for vLLM."""
    tensor_parallel: PositiveInt = 1
    """Processes of a node that hold one copy of vLLM's weights together and sample as one: less
    memory for weights, more for the cache. Divides their number."""


class FolderTransferConfig(Config):
    type: Literal["folder"] = "folder"
    """Through a file that trainer and servers see under one path; on any device."""
    path: str = "runs/weights"
    """The folder. A copy of the weights lies in it while a run lasts, two during updates."""


class NcclTransferConfig(Config):
    type: Literal["nccl"] = "nccl"
    """From GPU to GPU, by vLLM's weight-transfer engine; needs the extra `vllm` here too, and
    servers started with `--weight-transfer-config '{"backend": "nccl"}'`."""
    address: str = "127.0.0.1"
    """This machine's address, as the servers reach it."""


class ServerEngineConfig(Config):
    type: Literal["server"] = "server"
    """vLLM servers, here or on other machines, that get the weights after each update."""
    urls: Annotated[tuple[str, ...], Field(min_length=1)] = ("http://127.0.0.1:8000",)
    """The servers. They share the attempts, and one that dies leaves its share to the others."""
    weights: Annotated[FolderTransferConfig | NcclTransferConfig, Field(discriminator="type")] = (
        FolderTransferConfig()
    )
    """How weights get there."""
    timeout_s: PositiveFloat = 1800.0
    """Seconds that a server may take for one attempt, or for new weights."""


EngineConfig = Annotated[
    LocalEngineConfig | VllmEngineConfig | ServerEngineConfig, Field(discriminator="type")
]


class RolloutConfig(Config):
    tasks_per_step: PositiveInt = 8
    """Tasks sampled each step, without replacement until all were seen. Paper: 32."""
    group_size: PositiveInt = 8
    """Attempts per task. Paper: 8."""
    redraws: NonNegativeInt = 0
    """Rounds in which tasks whose attempts all got the same reward are replaced by others, so that
    rewards have something to compare (DAPO's dynamic sampling). `rollouts/redrawn` counts what is
    left out; what is still equal after the last round is kept. Paper: 0."""
    max_prompt_tokens: PositiveInt = 512
    """A longer prompt is an error. Paper: 2048."""
    max_completion_tokens: PositiveInt = 128
    """Attempts end here at the latest and count as truncated. In a conversation the environment's
    replies count too. Paper: 8192."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; student and teacher are compared at it. Paper: 1."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a completion besides the end of turn, such as `</answer>`. They stay in it,
    and it does not count as truncated. Paper: none."""
    max_turns: PositiveInt | Literal["env"] = "env"
    """Completions per attempt at most: as many as the environment says (1 where it never replies),
    or another number."""
    staleness: Literal[0, 1] = 0
    """1: servers sample the next step's attempts while this step trains, with the weights before
    it; the objective's truncated importance weights correct for that. A step then takes the longer
    of both instead of their sum. Paper: 0."""
    engine: EngineConfig = LocalEngineConfig()
    """Who samples."""

    @model_validator(mode="after")
    def _servers_sample_ahead(self) -> Self:
        if self.staleness and not isinstance(self.engine, ServerEngineConfig):
            raise ValueError(
                f"staleness = {self.staleness} samples while weights train, and engine.type = "
                f"{self.engine.type!r} needs the same weights or their memory: set engine.type = "
                "'server', or staleness = 0"
            )
        return self


class OptimConfig(Config):
    lr: PositiveFloat = 1e-5
    """AdamW's learning rate after warm-up. Paper: 1e-5 without rich feedback, 1e-6 with it."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warm-up. Paper: 10 without rich feedback, 0 with it."""
    decay_steps: NonNegativeInt = 0
    """Steps after warm-up in which the rate halves: it falls as lr / (1 + t / decay_steps). 0:
    constant. Paper: 0."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay. Paper: 0.01."""
    grad_clip: PositiveFloat = 1.0
    """Bound of the global gradient norm. Paper: 1."""
    updates_per_step: PositiveInt = 1
    """Optimizer updates a step, each on its own share of the step's tasks; more than 1 is
    off-policy. Paper: 1 without rich feedback, 32 (one task each) with it."""
    passes: PositiveInt = 1
    """Passes over the step's attempts, each with all of its updates; more than 1 is off-policy.
    Attempts cost more than updates, so a search or a small budget of attempts gains by 2 to 4.
    Paper: 1."""
    micro_batch_tokens: PositiveInt = 4096
    """Packed tokens per forward pass; changes memory and speed, never the result."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    offload: bool = False
    """Keep AdamW's moments, and float32 weights and gradient sums that are not shared out, in the
    CPU's memory and run AdamW there: a GPU has 8 to 16 bytes a weight less, and updates are
    slower. GPUs only."""


class EvalConfig(Config):
    every: NonNegativeInt = 10
    """Steps between evaluations; also before the first and after the last step. 0: only before and
    after."""
    samples: PositiveInt = 4
    """Attempts per task. Paper: 16 without rich feedback, 4 with it."""
    max_tasks: NonNegativeInt = 0
    """Evaluate the first so many tasks; 0 means all."""
    probe_tasks: NonNegativeInt = 0
    """Training tasks of a teacher probe at every evaluation (`probe/*`), with `samples` attempts
    each: does what the teacher reads still help the current weights? 0: no probe."""
    holdout: tuple[str, ...] = ()
    """Other tasks that show what training forgets, evaluated before the first and after the last
    step: recipes (built-in or .toml; with their own env, eval and rollout sections) or files of
    tasks of the run's own kind. Paper: a hold-out average."""
    temperature: PositiveFloat = 0.6
    """Paper: 0.6."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Paper: 0.95."""


class CheckpointConfig(Config):
    every: NonNegativeInt = 10
    """Steps between checkpoints; also after the last step. 0: only after the last."""
    keep: PositiveInt = 2
    """Newest checkpoints kept; with `canaries.action = "rollback"` the one to return to besides."""
    background: bool = False
    """Write optimizer state and teacher while the run goes on, from a copy in CPU memory; the
    model's own files are written before. A run that is killed meanwhile continues from the
    checkpoint before."""


class CreditConfig(Config):
    rollouts: NonNegativeInt = 2
    """Rollouts per step whose token credit is kept for the report; 0 keeps none."""


class CanariesConfig(Config):
    action: Literal["warn", "stop", "rollback"] = "warn"
    """What happens when a canary fires: a line, the end of the run, or a return to the last good
    checkpoint with a frozen teacher and half the rate (step 0 is saved too, so there is one; in
    `sdpo discover` it is the only one)."""
    patience: PositiveInt = 3
    """Consecutive bad steps before a canary fires."""


class LogConfig(Config):
    backends: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Services that receive the metrics besides metrics.jsonl."""
    project: str = "sdpo"
    """Project of W&B and trackio that the run belongs to."""
    name: str = ""
    """The run's name there; empty: its folder's. With `seeds` above 1 each seed is appended."""
    tags: tuple[str, ...] = ()
    """W&B's tags of the run. The other services have none: trackio shows them among the settings,
    TensorBoard as the text `about`, beside project and name."""
    rollouts: Literal["all", "sample", "failures"] = "all"
    """Whose texts (attempt, prompt, feedback, teacher's context) rollouts.jsonl.gz keeps: of all
    attempts, of four tasks a step and an evaluation, or of those not solved. Verdicts and numbers
    of all are kept always."""


class SelectConfig(Config):
    pass_at: PositiveInt = 64
    """k of the pass@k that decides."""
    attempts: NonNegativeInt = 0
    """Attempts per task from which pass@k is estimated; 0: four times `pass_at`. With no more than
    k of them the estimate is 0 or 1, and every `below` in between means the same."""
    below: Fraction = 0.5
    """Tasks with pass@k below this are kept. Paper: 0.5 hard, 0.03 very hard, from 2,944
    attempts."""

    @model_validator(mode="after")
    def _has_enough_attempts(self) -> Self:
        if self.attempts and self.attempts < self.pass_at:
            raise ValueError(
                f"attempts = {self.attempts} cannot estimate pass@{self.pass_at}; "
                "make attempts at least pass_at, or leave it at 0"
            )
        return self


class DiscoverConfig(Config):
    methods: tuple[Literal["self_distillation", "best_of_k", "multi_turn"], ...] = (
        "self_distillation",
        "best_of_k",
        "multi_turn",
    )
    """Methods to run on each task."""
    tasks: tuple[str, ...] = ()
    """Task ids; empty means all, or those that `select` keeps."""
    split: Literal["train", "eval"] = "eval"
    """Split the tasks come from."""
    budget: PositiveInt = 256
    """Attempts per task, method and seed. Paper: 2750."""
    batch: PositiveInt = 16
    """Attempts per step. Paper: 16."""
    restart_every: NonNegativeInt = 0
    """Self-distillation: updates of a stage; the attempts after them are its last, and the next
    stage starts from the initial weights (as in 2607.01763). 0: one stage. Paper: 0."""
    seeds: PositiveInt = 3
    """Independent repetitions. Paper: 5."""
    select: SelectConfig | Literal["off"] = "off"
    """Measure pass@k first and keep the hard tasks only."""
    window_tokens: PositiveInt = 1024
    """Multi-turn: budget of the accumulated prompt, first in first out. Paper: 32k."""
    show_attempts: bool = False
    """Multi-turn: keep earlier attempts next to their feedback. Paper: worse."""


class RunConfig(Config):
    """A whole run; `sdpo config show` prints one."""

    seed: NonNegativeInt = 0
    """Decides task order, sampling, demonstrations and everything else that is random."""
    seeds: PositiveInt = 1
    """Runs of `sdpo train`: seed, seed + 1, ..., each in its own folder `seed-N` inside `run`;
    `sdpo compare` takes `run` as one arm."""
    steps: PositiveInt = 40
    """Rounds of collect and update."""
    run: str = "runs/sdpo"
    """Directory the run writes to."""
    model: ModelConfig = ModelConfig()
    env: EnvConfig = CodeEnvConfig()
    rollout: RolloutConfig = RolloutConfig()
    teacher: TeacherConfig = TeacherConfig()
    objective: ObjectiveConfig = SdpoConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    credit: CreditConfig = CreditConfig()
    canaries: CanariesConfig = CanariesConfig()
    log: LogConfig = LogConfig()
    discover: DiscoverConfig = DiscoverConfig()

    @model_validator(mode="after")
    def _stale_attempts_are_corrected(self) -> Self:
        wrong = ""
        if getattr(self.objective, "importance", "token") == "logit":
            wrong = "objective.importance = 'logit' does not know who sampled a token"
        elif self.objective.type == "sft" or self.teacher.gate.type == "probe":
            wrong = "the servers hold the self-teacher's weights when the next step is sampled"
        if self.rollout.staleness and wrong:
            raise ValueError(f"rollout.staleness = 1: {wrong}; set rollout.staleness = 0")
        return self

    @model_validator(mode="after")
    def _one_mixture_of_targets(self) -> Self:
        if (
            isinstance(self.objective, DistillingConfig)
            and self.objective.teacher_exponent != 1
            and self.teacher.schedule.type == "trust_region"
        ):
            raise ValueError(
                f"objective.teacher_exponent = {self.objective.teacher_exponent:g} mixes the "
                "teacher with the initial model, and so does teacher.schedule.type = "
                "'trust_region': leave the exponent at 1, or take another schedule"
            )
        return self
