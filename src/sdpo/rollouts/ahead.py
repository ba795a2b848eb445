"""Attempts of the next step, made while this one trains (`rollout.staleness = 1`).

    ahead.begin(...)       a thread samples with the weights that the engine has, and judges
    ahead.land()           waits for it: before the engine gets other weights
    ahead.take()           the next step's attempts

What has landed is part of a checkpoint, since the weights that sampled it are gone: a run that
continues trains on the same attempts. They are random numbers of their own step, as ever.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import fields, is_dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from sdpo.errors import SdpoError
from sdpo.records import Task
from sdpo.rollouts.collect import Collected, Collector
from sdpo.rollouts.together import Together

_WAKE_S = 0.5
"""How often a waiting process looks up, so that Ctrl-C is heard on every system."""


class Ahead:
    """At most one batch of attempts that is under way, or waits for its step.

    Example:
        ahead.begin(collector, lambda: collector.collect(tasks, ...), count=len(tasks))
        update()
        ahead.land()
    """

    def __init__(self, together: Together) -> None:
        self._together = together
        self._collector: Collector | None = None
        self._own: Future[Collected] | None = None
        """This process's share, under way."""
        self._count = 0
        self._landed: Collected | None = None
        self._failure: SdpoError | None = None
        self._is_taken = False

    def begin(self, collector: Collector, work: Callable[[], Collected], *, count: int) -> None:
        """Do `work`, this process's share of `count` groups, in a thread. `collector`'s engine must
        keep its weights until `land`."""
        self._collector, self._count, self._own = collector, count, Future()
        # The interpreter does not wait for it at its end.
        threading.Thread(target=_run, args=(work, self._own), name="ahead", daemon=True).start()

    def land(self) -> None:
        """Wait for what `begin` began, of all processes, if anything. What fails is raised by
        `take`, in the step that it belongs to. Collective."""
        if self._own is None:
            return
        own, self._own = self._own, None
        assert self._collector is not None
        try:
            share = self._together.parallel.agreed(lambda: _result(own))
            self._landed = self._together.whole(share, count=self._count, collector=self._collector)
        except SdpoError as error:
            self._failure = error

    def take(self) -> Collected | None:
        """What has landed, once; None if nothing has. It stays in `state` until `clear`."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if self._is_taken:
            return None
        self._is_taken = True
        return self._landed

    def clear(self) -> None:
        """Forget what has landed: its step trains on it, or the weights have been given up."""
        self._landed = self._failure = None
        self._is_taken = False

    def state(self) -> str | None:
        """What has landed, as text."""
        if self._landed is None:
            return None
        groups = [replace(g, task=Task(id=g.task.id, messages=())) for g in self._landed.groups]
        return json.dumps(replace(self._landed, groups=groups), default=_plain)

    def load_state(self, text: str | None, tasks: Sequence[Task]) -> None:
        """Continue from `state()`; `tasks` are those that a step chooses from."""
        self.clear()
        if text is None:
            return
        known = {task.id: task for task in tasks}
        landed = TypeAdapter(Collected).validate_python(json.loads(text))
        groups = [replace(group, task=known[group.task.id]) for group in landed.groups]
        self._landed = replace(landed, groups=groups)


def _run(work: Callable[[], Collected], found: Future[Collected]) -> None:
    try:
        found.set_result(work())
    except BaseException as error:  # noqa: BLE001 (raised where the result is asked for)
        found.set_exception(error)


def _result(found: Future[Collected]) -> Collected:
    while not found.done():
        wait([found], timeout=_WAKE_S)
    return found.result()


def _plain(value: Any) -> Any:
    """What JSON can write of `value`; facts that an environment made of anything else as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    # Numbers of numpy and torch.
    return value.item() if hasattr(value, "item") else str(value)
