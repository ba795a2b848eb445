"""A training run as `loop.py` drives it: its state, its canaries, and what is written where.

Groups are gathered after judging, so every rank holds all groups of a step: statistics and records
need no further exchange. What a step learns from them is learner.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from sdpo.config.schema import RunConfig
from sdpo.errors import CanaryStop
from sdpo.inspection.held_out import TaskSet, own_tasks, probe
from sdpo.metrics import names
from sdpo.metrics.canaries import Alert, Canaries
from sdpo.metrics.dashboard import Dashboard
from sdpo.metrics.rollback import CURE, EvaluationHistory
from sdpo.metrics.rollout_stats import num_completion_tokens, rollout_metrics
from sdpo.metrics.writer import MetricsWriter
from sdpo.parallel import Parallel
from sdpo.records import Group, Task, Verdict
from sdpo.rollouts.ahead import Ahead
from sdpo.rollouts.collect import Collected, drop_empty
from sdpo.rollouts.curriculum import other_tasks, tasks_of_step
from sdpo.rollouts.record import LEFT_OUT, RolloutRecorder
from sdpo.rollouts.redraw import collect_varied
from sdpo.rollouts.sampler import Sampler
from sdpo.rollouts.together import Together
from sdpo.seeds import derive
from sdpo.signals import Signals
from sdpo.training.checkpoint import Checkpoints
from sdpo.training.learner import Learner
from sdpo.training.samples import unread_note, without_teacher
from sdpo.training.step import StepResult


class Run:
    """The state of one training run and its verbs. Built by `open_run`."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        sampler: Sampler,
        learner: Learner,
        parallel: Parallel,
        signals: Signals,
        *,
        holdouts: Sequence[TaskSet],
        is_quiet: bool,
    ) -> None:
        self.config = config
        self.dir = run_dir
        self.env = sampler.env
        self.learner = learner
        self.signals = signals
        self.last_metrics: dict[str, float] = {}
        self.unevaluated: dict[str, float] | None = None
        """The metrics of a step that has trained and whose evaluation is still to come."""
        self._has_acted = True
        self._sampler = sampler
        self._own = own_tasks(sampler, config)
        self._holdouts = holdouts
        self._parallel = parallel
        self._together = Together(parallel=parallel, signals=signals)
        self._ahead = Ahead(self._together)
        self.land = self._ahead.land
        self._checkpoints = Checkpoints(
            run_dir,
            keep=config.checkpoint.keep,
            in_background=config.checkpoint.background,
            parallel=parallel,
            layout=learner.layout,
        )
        self._canaries = Canaries(config.canaries.action, config.canaries.patience)
        self._history = EvaluationHistory()
        self._totals = {names.ROLLOUTS_TOTAL: 0, names.TOKENS_TOTAL: 0}
        self._last_rollout: tuple[str, Verdict] | None = None
        log = config.log if parallel.is_main else None
        self._writer = MetricsWriter(run_dir, log, config.model_dump(mode="json"))
        self._recorder = RolloutRecorder(run_dir, kept=config.log.rollouts)
        self._dashboard = Dashboard(
            config.steps, run_dir, is_quiet=not parallel.is_main or is_quiet, step=lambda: self.step
        )
        signals.say = self.say

    def __enter__(self) -> Run:
        self._dashboard.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._dashboard.__exit__(*error)
        self._writer.close()
        self._recorder.close()

    @property
    def step(self) -> int:
        """Steps completed."""
        return self.learner.step

    def start(self) -> bool:
        """Continue from the newest checkpoint; true if there is none and the run starts from the
        beginning.

        Rows after the checkpoint are dropped from every record, so that a killed run ends with the
        same files as an uninterrupted one; without a checkpoint they begin anew beside the `.bak`
        of what they held. Raises `CanaryStop` when a canary has ended the run.
        """
        if steps := self._saved():
            self._load(steps[-1])
            if self._canaries.action == "stop" and (fired := self._canaries.fired()):
                raise CanaryStop(
                    f"{self.dir} was stopped at step {self.step} by {', '.join(fired)}; {CURE}"
                )
            self.say(f"resuming {self.dir} after step {self.step}")
        self._parallel.from_main(self._resume_records if steps else self._begin_anew)
        self.last_metrics = self._parallel.from_main(self._writer.last)
        return not steps

    @property
    def is_alone(self) -> bool:
        """Whether no other process takes part."""
        return self._parallel.world_size == 1

    def tasks_of(self, step: int) -> list[Task]:
        """The tasks of the step after `step` completed ones."""
        return tasks_of_step(
            self.env.load("train"),
            step=step,
            count=self.config.rollout.tasks_per_step,
            seed=self.config.seed,
        )

    def sample_ahead(self) -> None:
        """Begin to sample for the next step, where the config asks for it: with the weights that
        the engine has now, which it keeps until `land` returns."""
        self._ahead.clear()
        if not self.config.rollout.staleness or self.step + 1 >= self.config.steps:
            return
        tasks, collector = self.tasks_of(self.step + 1), self._sampler.collector
        work = partial(
            collector.collect, tasks, parallel=self._parallel, **self._drawn(self.step + 1)
        )
        self._ahead.begin(collector, work, count=len(tasks))

    def collect(self, tasks: Sequence[Task]) -> Collected:
        """Judged groups of all ranks for `tasks`, in their order, without those of which no attempt
        could be judged, and with others in the place of flat ones where the config asks for it.
        Raises `JudgeError` on every rank, as it does an interrupt of any."""
        others = other_tasks(self.env.load("train"), tasks, step=self.step, seed=self.config.seed)
        found = collect_varied(self._collect, tasks, others, rounds=self.config.rollout.redraws)
        if not self.config.rollout.staleness:
            return found
        versions = [r.policy_version for g in found.groups for r in g.rollouts]
        stale = self.learner.optimizer.num_updates - fmean(versions) if versions else 0.0
        return replace(found, staleness=stale)

    def _collect(self, tasks: Sequence[Task]) -> Collected:
        collected = self._ahead.take() or self._together.collect(
            self._sampler.collector, tasks, **self._drawn(self.step)
        )
        self.heed()
        return replace(collected, groups=drop_empty(collected.groups))

    def measure(
        self, groups: Sequence[Group], losses: StepResult, left_out: Sequence[Group] = ()
    ) -> dict[str, float]:
        """The metrics of the step that `learner` has just trained on `groups`, without times; the
        rollouts and tokens of all groups are added to the run's totals."""
        if self.step == 0 and (note := unread_note(groups, self.config.objective.type)):
            self.say(note)
        groups = [*groups, *map(without_teacher, left_out)]
        metrics = rollout_metrics(groups)
        metrics.merge(losses.metrics)
        self._totals[names.ROLLOUTS_TOTAL] += sum(len(g.rollouts) for g in groups)
        self._totals[names.TOKENS_TOTAL] += sum(
            num_completion_tokens(r) for g in groups for r in g.rollouts
        )
        return metrics.reduce() | self._totals

    def record_rollouts(
        self, groups: Sequence[Group], losses: StepResult, left_out: Sequence[Group] = ()
    ) -> None:
        """Write the rollouts and the token credit of the step that has just ended."""

        def write() -> None:
            lengths = losses.teacher_prompt_tokens
            rows = self._recorder.write(self.step, groups, teacher_prompt_tokens=lengths)
            self._recorder.write(self.step, left_out, split=LEFT_OUT)
            self._writer.write_rollouts(self.step, rows)
            self._recorder.record_credit(replace(c, step=self.step) for c in losses.credit)

        self._parallel.from_main(write)
        self._last_rollout = (groups[-1].rollouts[-1].text, groups[-1].verdicts[-1])

    def begin(self, metrics: Mapping[str, float]) -> None:
        """Write the row of the initial weights, and a checkpoint where a rollback may need it."""
        with self.signals.undivided():
            self.record(metrics, self.watch(metrics))
            if self._canaries.action == "rollback":
                self.save()

    def complete(self, metrics: Mapping[str, float]) -> None:
        """Evaluate the step that has just trained if that is due, write its row and act on its
        alerts. A judge that fails in the evaluation, or an interrupt, leaves the step
        `unevaluated`; saved so, the run makes the evaluation when it continues."""
        self.unevaluated = dict(metrics)
        if self.is_due(self.config.eval.every):
            metrics = {**metrics, **self.evaluate()}
        with self.signals.undivided():
            self._has_acted = False
            alerts = self.watch(metrics)
            self.record(metrics, alerts)
            self.unevaluated = None
            # Before any save: a run killed in between resumes before the alert and acts on it
            # again.
            self.act(alerts)
            self._has_acted = True

    def evaluate(self) -> dict[str, float]:
        """The `eval/*` metrics of the current weights on held-out tasks, and where the config asks
        for them `holdout/*` at both ends of the run and `probe/*` on training tasks."""
        metrics = self._attempt(self._own)
        if self.step in (0, self.config.steps):
            for holdout in self._holdouts:
                metrics |= self._attempt(holdout)
        return metrics | probe(self._sampler, self.config, self._together)

    def _attempt(self, tasks: TaskSet) -> dict[str, float]:
        groups = tasks.attempts(seed=self.config.seed, together=self._together).groups

        def write() -> None:
            self._recorder.write(self.step, drop_empty(groups), split=tasks.split)

        self._parallel.from_main(write)
        return tasks.metrics(groups)

    def is_due(self, every: int) -> bool:
        """Whether something that happens every `every` steps and after the last one is due now; 0
        means after the last one only."""
        return self.step == self.config.steps or bool(every and self.step % every == 0)

    def watch(self, metrics: Mapping[str, float]) -> list[Alert]:
        """The alerts of canaries that fire on this step's metrics; those that roll back name the
        checkpoint to go back to."""
        self._history.observe(self.step, metrics)
        alerts = self._canaries.observe(self.step, metrics)
        if not alerts:
            return alerts
        target = self._history.newest_good(self._saved(), min(alert.good for alert in alerts))
        return [replace(a, restored=target) if a.action == "rollback" else a for a in alerts]

    def record(self, metrics: Mapping[str, float], alerts: Sequence[Alert] = ()) -> None:
        """Write the row of this step and show it."""
        self.last_metrics = {**metrics, "step": self.step}

        def write() -> None:
            self._writer.write(self.step, metrics, alerts)
            self._dashboard.update(self.step, metrics, last=self._last_rollout, alerts=alerts)

        self._parallel.from_main(write)

    def save(self) -> None:
        """Write a checkpoint of this step, which `settle` waits for. The one a rollback would need
        is kept beyond `checkpoint.keep`."""
        protect = None
        if self._canaries.action == "rollback":
            protect = self._history.newest_good(self._saved(), self._canaries.good(self.step))
        model, tokenizer = self._sampler.policy.model, self._sampler.policy.tokenizer
        self._checkpoints.save(self.step, model, tokenizer, self._state(), protect=protect)

    def settle(self) -> None:
        """Wait until the last checkpoint stands. Collective."""
        self._parallel.agreed(self._checkpoints.finish)

    def _saved(self) -> list[int]:
        """Steps with a checkpoint, on every rank. The main rank looks: a file system may show new
        files to other machines later."""
        self.settle()
        return self._parallel.from_main(self._checkpoints.steps)

    def save_interrupted(self) -> None:
        """Save the run after an interrupt, unless it has not written its first row yet."""
        if self.last_metrics:
            self._save_unless_saved()
            self.say(f"interrupted: saved step {self.step}; the same command continues")

    def save_before_stop(self, why: str) -> None:
        """Save the last step that has trained, evaluated or not, before an error ends the run;
        nothing when some updates of the next step have been made, or an alert is not acted on. What
        is being written is waited for. Collective."""
        self.settle()
        is_recorded = self.last_metrics.get("step") == self.step or self.unevaluated is not None
        if is_recorded and self._has_acted and not self.learner.is_within_step:
            self._save_unless_saved()
            self.say(f"{why}: step {self.step} is saved; the same command continues")

    def heed(self) -> None:
        """Do what signals ask of any rank: save this step and go on, or end."""
        asked = self._parallel.gather((self.signals.takes_save(), self.signals.noted()))
        if any(saves for saves, _ in asked) and self.last_metrics:
            self._save_unless_saved()
            self.say(f"saved step {self.step}, as SIGUSR1 asks")
        for _, stop in asked:
            if stop is not None:
                raise stop

    def act(self, alerts: Sequence[Alert]) -> None:
        """Do what fired canaries ask for: nothing, end the run (`CanaryStop`), or go back to the
        last good checkpoint."""
        if any(alert.action == "stop" for alert in alerts):
            self.save()
            self.settle()
            messages = "; ".join(f"{alert.canary}: {alert.message}" for alert in alerts)
            raise CanaryStop(
                f"stopped at step {self.step}, saved in {self._checkpoints.folder}: "
                f"{messages}; {CURE}"
            )
        rollbacks = [alert for alert in alerts if alert.action == "rollback"]
        if rollbacks:
            self._roll_back(rollbacks[0].restored)

    def _resume_records(self) -> None:
        is_evaluated = self.unevaluated is None
        self._writer.resume_at(self.step if is_evaluated else self.step - 1)
        self._recorder.resume_at(self.step, is_evaluated=is_evaluated)

    def _begin_anew(self) -> None:
        self._recorder.begin_anew()
        if count := self._writer.begin_anew():
            self.say(
                f"{self.dir} has no checkpoint: starting from the beginning; the {count} rows "
                "recorded before are kept as *.jsonl.bak"
            )

    def _save_unless_saved(self) -> None:
        if self.step not in self._saved():
            self.save()
            self.settle()

    def say(self, text: str) -> None:
        """One line for the user."""
        if self._parallel.is_main:
            self._dashboard.say(text)

    def _roll_back(self, target: int | None) -> None:
        """Go back to the weights, optimizer and teacher of checkpoint `target`; from then on with
        half the learning rate and a frozen teacher.

        Steps and records count on: a rollback is part of the run's history and does not undo it.
        """
        if target is None:
            raise CanaryStop(
                f"canary at step {self.step}: no good checkpoint is left to roll back to; {CURE}"
            )
        state = self._parallel.agreed(lambda: self._checkpoints.load(target, self.learner.model))
        self.learner.roll_back(state)
        self._ahead.clear()
        self._canaries.restart(self.step)
        self._history.restored(self.step, target)
        self.say(
            f"rolled back to step {target}; "
            f"learning rate x {self.learner.optimizer.lr_scale:g}, teacher frozen"
        )
        # Not before every rank has read the old checkpoint, which the new one may replace.
        self._parallel.barrier()
        self.save()

    def _drawn(self, step: int) -> dict[str, Any]:
        """How the attempts of the step after `step` completed ones are drawn."""
        rollout = self.config.rollout
        return {
            "group_size": rollout.group_size,
            "sampling": self._sampler.sampling(self.config, temperature=rollout.temperature),
            "seed": derive(self.config.seed, "rollout", step),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "totals": self._totals,
            "canaries": self._canaries.state(),
            "evaluations": self._history.state(),
            "unevaluated": self.unevaluated,
            "ahead": self._ahead.state(),
        } | self.learner.state()

    def _load(self, step: int) -> None:
        state = self._parallel.agreed(lambda: self._checkpoints.load(step, self.learner.model))
        self.learner.load_state(state)
        self._totals = dict(state["totals"])
        self._canaries.load_state(state["canaries"])
        self._history.load_state(state.get("evaluations", ()))
        self.unevaluated = state.get("unevaluated")
        self._ahead.load_state(state.get("ahead"), self.env.load("train"))
