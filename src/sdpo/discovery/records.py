"""The files of a search, written by the main process on behalf of all that share it.

Every process knows what is finished and what a killed search had already tried, so all of them go
on from the same place, whether or not they see the files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Self

from sdpo.config.schema import RunConfig
from sdpo.discovery.curves import write_summary
from sdpo.discovery.log import SOLUTIONS, SearchLog, Tally
from sdpo.discovery.plot import write_plot
from sdpo.discovery.result import Discovery, Method, from_row
from sdpo.envs.base import Env
from sdpo.files import record_whole
from sdpo.lock import sole_writer
from sdpo.metrics.jsonl import JsonLines, dumps, read_rows
from sdpo.parallel import Parallel
from sdpo.provenance import open_run_dir, run_facts
from sdpo.records import Task

RESULTS = "discovery.jsonl"
END = 1 << 62
"""A step after every row: these files number their rows."""


class SearchRecords:
    """Holds the folder of a search between enter and exit.

    Example:
        with SearchRecords(config, env, parallel, results) as records:
            records.add(result)
    """

    def __init__(
        self, config: RunConfig, env: Env | None, parallel: Parallel, results: list[Discovery]
    ) -> None:
        """Finished searches are added to `results`, as they are read or found."""
        self.folder = Path(config.run)
        self.results = results
        self._config = config
        self._env = env
        self._parallel = parallel
        self._stack = ExitStack()
        self._file = JsonLines(self.folder / RESULTS)
        self._log: SearchLog | None = None
        """The main process's."""

    def __enter__(self) -> Self:
        with self._stack:
            self.results += self._parallel.from_main(self._open)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self) -> list[Discovery]:
        self._stack.enter_context(sole_writer(self.folder))
        open_run_dir(self._config, run_facts(self._config, self._env))
        self._stack.enter_context(closing(self._file)).resume_at(END)
        found = _to_keep(self._file.path, self._config.discover.budget)
        log = SearchLog(self.folder, {(r.task_id, r.method, r.seed) for r in found})
        self._log = self._stack.enter_context(closing(log))
        return found

    def wanted(self, tasks: Sequence[Task], method: Method) -> list[tuple[Task, Tally]]:
        """The searches by `method` that are not finished, with what they have tried so far."""
        finished = {(r.task_id, r.method, r.seed) for r in self.results}
        missing = [
            (task, seed)
            for task in tasks
            for seed in range(self._config.discover.seeds)
            if (task.id, method, seed) not in finished
        ]

        def tallies() -> list[Tally]:
            assert self._log is not None
            budget = self._config.discover.budget
            return [self._log.tally(task.id, method, seed, budget=budget) for task, seed in missing]

        found = self._parallel.from_main(tallies)
        return [(task, tally) for (task, _), tally in zip(missing, found, strict=True)]

    def watch(self, tally: Tally) -> None:
        """Write what is new of a search that goes on."""

        def write() -> None:
            assert self._log is not None
            self._log.write(tally)

        self._parallel.from_main(write)

    def add(self, result: Discovery) -> None:
        """Write a search that has ended, and the summary of all."""
        self.results.append(result)

        def write() -> None:
            _save_solution(self.folder, result)
            self._file.append([result.row() | {"step": len(self.results)}])
            write_summary(self.results, self.folder)

        self._parallel.from_main(write)

    def finish(self) -> None:
        """Write the summary, which a killed process may not have done, and the picture."""

        def write() -> None:
            write_summary(self.results, self.folder)
            write_plot(self.results, self.folder)

        self._parallel.from_main(write)


def _to_keep(path: Path, budget: int) -> list[Discovery]:
    """The finished searches in `path`. One that ended without a solution at a smaller budget is
    dropped from the file, to be made again with `budget`; so is best-of-k, which samples on."""
    rows = list(read_rows(path))
    found = [from_row(row) for row in rows]
    kept = [
        replace(one, budget=budget)
        for one in found
        if one.budget >= budget
        or one.stopped is not None
        or (one.solution is not None and one.method != "best_of_k")
    ]
    if kept != found:
        with record_whole(path) as partial:
            lines = (dumps(one.row() | {"step": n}) for n, one in enumerate(kept, start=1))
            partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return kept


def _save_solution(run_dir: Path, result: Discovery) -> None:
    """Keep the first solution found of a task."""
    path = run_dir / SOLUTIONS / f"{_file_name(result.task_id)}.txt"
    if result.solution is None or path.exists():
        return
    with record_whole(path) as partial:
        partial.write_text(result.solution, encoding="utf-8", errors="backslashreplace")


def _file_name(task_id: str) -> str:
    """`task_id` where it is a file name, otherwise its safe characters and a hash."""
    safe = re.sub(r"[^\w.-]", "_", task_id, flags=re.ASCII)[:100].lstrip(".")
    if safe == task_id:
        return safe
    data = task_id.encode("utf-8", "surrogatepass")
    return f"{safe}-{hashlib.blake2b(data, digest_size=4).hexdigest()}"
