"""A training run: the parts that `loop.py` drives, their state, and what is written where.

Every rank holds all groups of a step (they are gathered after judging), so statistics and records
need no further exchange; each rank trains on its own share of the tasks.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpo.config.objective import SftConfig
from sdpo.config.schema import RunConfig
from sdpo.engines.base import Sampling
from sdpo.envs.base import Env
from sdpo.errors import CanaryStop
from sdpo.evaluation import attempt_tasks, summarise
from sdpo.inspection.probe import check_can_probe, choose_tasks, probe_tasks
from sdpo.inspection.tokens import choose_inspected
from sdpo.metrics.canaries import Alert, Canaries
from sdpo.metrics.dashboard import Dashboard
from sdpo.metrics.rollout_stats import num_completion_tokens, rollout_metrics
from sdpo.metrics.values import Mean, Metrics
from sdpo.metrics.writer import MetricsWriter
from sdpo.models.hidden import enable_checkpointing
from sdpo.models.structure import check_head
from sdpo.parallel import Parallel, start_parallel
from sdpo.records import Group, Sample, Task, TeacherContext
from sdpo.rollouts.collect import Collected
from sdpo.rollouts.record import RolloutRecorder
from sdpo.rollouts.sampler import Sampler, open_sampler
from sdpo.seeds import derive
from sdpo.teacher.schedule import TeacherSchedule
from sdpo.training.checkpoint import Checkpoints, open_run_dir, run_facts
from sdpo.training.objectives import objective_spec, routing_rule
from sdpo.training.optim import Optimizer
from sdpo.training.rollback import CURE, EvaluationHistory, roll_back
from sdpo.training.samples import NO_CONTEXT, SampleBuilder, teacher_lengths
from sdpo.training.self_teacher import check_can_sample, solved_by_self_teacher
from sdpo.training.step import Updater


class Run:
    """The state of one training run and its verbs. Built by `open_run`."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        sampler: Sampler,
        builder: SampleBuilder,
        updater: Updater,
        parallel: Parallel,
    ) -> None:
        self.config = config
        self.dir = run_dir
        self.env = sampler.env
        self.step = 0
        """Steps completed."""
        self.last_metrics: dict[str, float] = {}
        self._sampler = sampler
        self._builder = builder
        self._updater = updater
        self._parallel = parallel
        self._checkpoints = Checkpoints(run_dir, keep=config.checkpoint.keep)
        self._canaries = Canaries(config.canaries.action, config.canaries.patience)
        self._history = EvaluationHistory()
        self._totals = {"rollouts_total": 0, "tokens_total": 0}
        backends = config.log.backends if parallel.is_main else ()
        self._writer = MetricsWriter(run_dir, backends, config.model_dump(mode="json"))
        self._recorder = RolloutRecorder(run_dir)
        self._dashboard = Dashboard(config.steps, run_dir, is_quiet=not parallel.is_main)

    def __enter__(self) -> Run:
        self._dashboard.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._dashboard.__exit__(*error)
        self._writer.close()
        self._recorder.close()

    def start(self) -> bool:
        """Continue from the newest checkpoint if there is one; true when the run starts from the
        beginning.

        Rows after the checkpoint are dropped from every record, so a killed run's files end up like
        an uninterrupted one's. Raises `CanaryStop` when a canary has ended the run.
        """
        steps = self._checkpoints.steps()
        if steps:
            self._load(steps[-1])
            if self._canaries.action == "stop" and (fired := self._canaries.fired()):
                raise CanaryStop(
                    f"{self.dir} was stopped at step {self.step} by {', '.join(fired)}; {CURE}"
                )
            self.say(f"resuming {self.dir} after step {self.step}")
        if self._parallel.is_main:
            self._writer.resume_at(self.step if steps else -1)
            self._recorder.resume_at(self.step if steps else -1)
            self.last_metrics = self._writer.last()
        return not steps

    def collect(self, tasks: Sequence[Task]) -> Collected:
        """Judged groups of all ranks for `tasks`, in their order."""
        collected = self._sampler.collector.collect(
            self._parallel.share(tasks),
            group_size=self.config.rollout.group_size,
            sampling=self._sampling(),
            seed=derive(self.config.seed, "rollout", self.step),
        )
        return replace(collected, groups=self._parallel.gather_shares(collected.groups))

    def contexts(self, groups: Sequence[Group]) -> list[list[TeacherContext]]:
        """What the teacher reads for every rollout of every group."""
        return self._builder.contexts(groups, seed=derive(self.config.seed, "context", self.step))

    def update(
        self, groups: Sequence[Group], contexts: Sequence[Sequence[TeacherContext]]
    ) -> Metrics:
        """Train on this rank's share of the groups; metrics of all ranks."""
        share = None
        if isinstance(self.config.objective, SftConfig):
            groups, share = solved_by_self_teacher(
                *(self._sampler, self._updater.schedule, self._parallel, groups, contexts),
                sampling=self._sampling(),
                seed=derive(self.config.seed, "teacher", self.step),
            )
            contexts = [[NO_CONTEXT] * len(group.rollouts) for group in groups]
        samples = self._samples(groups, contexts)
        spec = objective_spec(
            self.config.objective,
            step=self.step,
            temperature=self.config.rollout.temperature,
            max_completion_tokens=self.config.rollout.max_completion_tokens,
            trust=self._updater.schedule.trust,
        )
        inspected = choose_inspected(
            [s for part in samples for s in part if self._updater.compares(s, spec)],
            len(self._parallel.share(range(self.config.credit.rollouts))),
            seed=derive(self.config.seed, "credit", self.step),
        )
        result = self._updater.step(samples, spec, where=f"step {self.step + 1}", inspect=inspected)
        if share is not None:
            result.metrics.add("teacher/solved", share)
        self._publish()
        self._credit = [part for parts in self._parallel.gather(result.credit) for part in parts]
        self._teacher_lengths = {
            key: length
            for lengths in self._parallel.gather(teacher_lengths(samples))
            for key, length in lengths.items()
        }
        return Metrics.merged(self._parallel.gather(result.metrics.state()))

    def finish_step(
        self,
        collected: Collected,
        contexts: Sequence[Sequence[TeacherContext]],
        update: Metrics,
    ) -> dict[str, float]:
        """Count the step, let the teacher follow it, record its rollouts; the step's metrics
        without times."""
        self.step += 1
        groups = collected.groups
        metrics = rollout_metrics(groups, contexts)
        metrics.merge(update)
        logprobs = [p for g in groups for r in g.rollouts for p in r.sampler_logprobs]
        # An unbiased estimate over every sampled token, at no cost; multi-turn attempts count their
        # last turn.
        metrics.add("policy/entropy", Mean(-sum(logprobs), len(logprobs)))
        row = metrics.reduce()
        self._totals["rollouts_total"] += sum(len(g.rollouts) for g in groups)
        self._totals["tokens_total"] += sum(
            num_completion_tokens(r) for g in groups for r in g.rollouts
        )
        refreshed = self._updater.schedule.after_step(
            self.step - 1,
            self._updater.model,
            mean_reward=row["train/reward"],
            length_p90=row["rollouts/length_p90"],
        )
        if self._parallel.is_main:
            rows = self._recorder.record(
                self.step, groups, contexts, teacher_prompt_tokens=self._teacher_lengths
            )
            self._writer.write_rollouts(self.step, rows)
            self._recorder.record_credit(replace(c, step=self.step) for c in self._credit)
        self._last_rollout = (groups[-1].rollouts[-1].text, groups[-1].verdicts[-1])
        return row | self._totals | {"teacher/refreshed": float(refreshed)}

    def evaluate(self) -> dict[str, float]:
        """The `eval/*` metrics of the current weights on held-out tasks, and the `probe/*` metrics
        on training tasks when the config asks for them."""
        evaluation = self.config.eval
        tasks = list(self.env.load("eval"))[: evaluation.max_tasks or None]
        # With fewer tasks than ranks this share may be empty, so only the whole is summarised.
        part = attempt_tasks(
            self._sampler.collector,
            self._parallel.share(tasks),
            samples=evaluation.samples,
            sampling=self._sampler.sampling(
                self.config, temperature=evaluation.temperature, top_p=evaluation.top_p
            ),
            seed=self.config.seed,
        )
        groups = self._parallel.gather_shares(part)
        if self._parallel.is_main:
            self._recorder.record(self.step, groups, split="eval")
        return summarise(groups).metrics() | self._probe()

    def is_due(self, every: int) -> bool:
        """Whether something done `every` steps (0: never in between) and after the last step is due
        now."""
        return self.step == self.config.steps or bool(every and self.step % every == 0)

    def watch(self, metrics: Mapping[str, float]) -> list[Alert]:
        """Canaries that fire on this step's metrics; those that roll back know to which
        checkpoint."""
        self._history.observe(self.step, metrics)
        alerts = self._canaries.observe(self.step, metrics)
        good = min((alert.good for alert in alerts), default=0)
        target = self._history.newest_good(self._checkpoints.steps(), good)
        return [replace(a, restored=target) if a.action == "rollback" else a for a in alerts]

    def record(self, metrics: Mapping[str, float], alerts: Sequence[Alert] = ()) -> None:
        """Write the row of this step and show it."""
        self.last_metrics = {**metrics, "step": self.step}
        if self._parallel.is_main:
            self._writer.write(self.step, metrics, alerts)
            self._dashboard.update(
                self.step, metrics, last=getattr(self, "_last_rollout", None), alerts=alerts
            )

    def save(self) -> None:
        """Write a checkpoint of this step; the one a rollback would need outlives `keep`."""
        if self._parallel.is_main:
            good = self._canaries.good(self.step)
            self._checkpoints.save(
                self.step,
                self._updater.model,
                self._sampler.policy.tokenizer,
                self._state(),
                protect=self._history.newest_good(self._checkpoints.steps(), good)
                if self._canaries.action == "rollback"
                else None,
            )
        self._parallel.barrier()

    def save_start(self) -> None:
        """Write a checkpoint of the initial weights where a rollback may need it."""
        if self._canaries.action == "rollback":
            self.save()

    def save_interrupted(self) -> None:
        """Save what an interrupt left, unless not even the first row is written: then there is
        nothing to keep."""
        if self.last_metrics:
            self.save()
            self.say(f"interrupted: saved step {self.step}; the same command continues")

    def act(self, alerts: Sequence[Alert]) -> None:
        """Do what fired canaries ask for: nothing, end the run (`CanaryStop`), or go back to the
        last good checkpoint."""
        if any(alert.action == "stop" for alert in alerts):
            self.save()
            said = "; ".join(f"{alert.canary}: {alert.message}" for alert in alerts)
            raise CanaryStop(
                f"stopped at step {self.step}, saved in {self._checkpoints.folder}: {said}; {CURE}"
            )
        if any(alert.action == "rollback" for alert in alerts):
            self._roll_back(alerts[0].restored)

    def say(self, text: str) -> None:
        """One line for the user."""
        if self._parallel.is_main:
            self._dashboard.say(text)

    def _roll_back(self, target: int | None) -> None:
        """Weights, optimizer and teacher of checkpoint `target`, then half the rate and a frozen
        teacher.

        Steps and records go on: a rollback is part of the run's history, not an undoing of it.
        """
        if target is None:
            raise CanaryStop(
                f"canary at step {self.step}: no good checkpoint is left to roll back to; {CURE}"
            )
        roll_back(self._checkpoints.load(target, self._updater.model), self._updater)
        self._publish()
        self._canaries.restart(self.step)
        self._history.restored(self.step, target)
        self.say(
            f"rolled back to step {target}; "
            f"learning rate x {self._updater.optimizer.lr_scale:g}, teacher frozen"
        )
        # Not before every rank has read the old checkpoint, which the new one may replace.
        self._parallel.barrier()
        self.save()

    def _probe(self) -> dict[str, float]:
        config = self.config
        if not config.eval.probe_tasks:
            return {}
        return probe_tasks(
            self._sampler.collector,
            choose_tasks(self.env.load("train"), config.eval.probe_tasks, config.seed),
            config.teacher.context,
            samples=config.eval.samples,
            sampling=self._sampling(),
            seed=config.seed,
            parallel=self._parallel,
        ).metrics()

    def _samples(
        self, groups: Sequence[Group], contexts: Sequence[Sequence[TeacherContext]]
    ) -> list[list[Sample]]:
        """This rank's samples of each update.

        Tasks go to updates first, then to ranks: what an update sees does not depend on their
        number."""
        count = self.config.optim.updates_per_step
        seed = derive(self.config.seed, "samples", self.step)
        pairs = list(zip(groups, contexts, strict=True))
        return [
            [
                sample
                for group, of_group in self._parallel.share(pairs[number::count])
                for sample in self._builder.samples(group, of_group, seed=seed)
            ]
            for number in range(count)
        ]

    def _sampling(self) -> Sampling:
        temperature = self.config.rollout.temperature
        return self._sampler.sampling(self.config, temperature=temperature)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "totals": self._totals,
            "optimizer": self._updater.optimizer.state(),
            "schedule": self._updater.schedule.state(),
            "canaries": self._canaries.state(),
            "evaluations": self._history.state(),
        }

    def _load(self, step: int) -> None:
        state = self._checkpoints.load(step, self._updater.model)
        self.step = state["step"]
        self._totals = dict(state["totals"])
        self._updater.optimizer.load_state(state["optimizer"])
        self._updater.schedule.load_state(state["schedule"])
        self._canaries.load_state(state["canaries"])
        self._history.load_state(state.get("evaluations", ()))
        self._publish()

    def _publish(self) -> None:
        """Let the engine sample from the current weights."""
        self._sampler.collector.engine.load_weights(
            self._sampler.policy.model, self._updater.optimizer.num_updates
        )


@contextmanager
def open_run(config: RunConfig, env: Env | None = None) -> Generator[Run]:
    """Everything a run of `config` needs, opened and closed again. `env` replaces `config.env`."""
    check_can_sample(config)
    if config.eval.probe_tasks:
        check_can_probe(config.rollout.max_turns)
    parallel = start_parallel()
    run_dir = open_run_dir(config, run_facts(env)) if parallel.is_main else Path(config.run)
    parallel.barrier()
    with open_sampler(config, env) as sampler:
        model = sampler.policy.model
        check_head(model)
        if config.optim.gradient_checkpointing:
            enable_checkpointing(model)
        updater = Updater(
            model,
            sampler.policy.tokenizer,
            Optimizer(config.optim, model),
            TeacherSchedule(
                config.teacher.schedule, model, keep_initial=config.objective.kl_coefficient > 0
            ),
            config=config.optim,
            objective=config.objective,
            parallel=parallel,
        )
        builder = SampleBuilder(
            chat=sampler.chat,
            rules=config.teacher.context,
            objective=config.objective,
            rule=routing_rule(config.objective),
        )
        with Run(config, run_dir, sampler, builder, updater, parallel) as run:
            yield run
