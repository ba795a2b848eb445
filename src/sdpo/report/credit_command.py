"""What `sdpo credit` does: an attempt from files and options, explained on a terminal and as a
page."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from sdpo.config.schema import CodeEnvConfig
from sdpo.envs import code
from sdpo.errors import ConfigError, SdpoError
from sdpo.inspection.attempt import credit, find_task
from sdpo.printable import printable
from sdpo.records import Task
from sdpo.report.credit import credit_page, credit_text
from sdpo.rollouts.credit import TokenCredit


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt as the command line names it.

    Example:
        Attempt(model="smollm2-135m-instruct", prompt="What is 2 + 2?", completion="5",
                feedback="The sum is even.")
    """

    model: str
    completion: str
    """One newline at its end is the file's and not the attempt's."""
    prompt: str | None = None
    """Text of the task, or `@` and the name of a file that holds it."""
    task: str | None = None
    """Id of a task of `tasks`."""
    tasks: str | None = None
    """Built-in set or task file of code tasks."""
    worked_example: bool = False
    feedback: str | None = None
    """Text, or `@` and the name of a file."""
    demonstration: str | None = None
    layout: Literal["single_turn", "turns"] = "single_turn"

    def explain(self) -> TokenCredit:
        """Its token credit; a code task is judged as in training. Raises `SdpoError`."""
        with ExitStack() as stack:
            task, env = self._task(stack)
            return credit(
                self.model,
                task,
                self.completion.removesuffix("\n"),
                text_or_file(self.feedback, "--feedback"),
                None if self.demonstration is None else self.demonstration.removesuffix("\n"),
                env=env,
                layout=self.layout,
            )

    def _task(self, stack: ExitStack) -> tuple[Task | str, code.CodeEnv | None]:
        prompt = text_or_file(self.prompt, "--prompt")
        if (prompt is None) == (self.task is None) or (self.task is None) != (self.tasks is None):
            raise ConfigError(
                f"--prompt = {self.prompt!r}, --task = {self.task!r}, --tasks = {self.tasks!r}: "
                "give either --prompt TEXT or both --task ID and --tasks SET"
            )
        if self.worked_example and self.tasks is None:
            raise ConfigError("--worked-example belongs to code tasks: give --task and --tasks too")
        if self.task is None or self.tasks is None:
            assert prompt is not None
            return prompt, None
        config = CodeEnvConfig(tasks=self.tasks, worked_example=self.worked_example)
        env = stack.enter_context(closing(code.CodeEnv(config)))
        return find_task(env, self.task), env


def show_attempt(attempt: Attempt, console: Console, *, html: Path | None = None) -> TokenCredit:
    """Print the attempt's token credit and, with `html`, write its page there."""
    found = attempt.explain()
    if found.solved is not None:
        said = "solved" if found.solved else f"not solved: {found.info['category']}"
        console.print(printable(f"the judge: {said}"), highlight=False, markup=False)
    if found.info["context"] is not None:
        console.print(f"the teacher's context: {found.info['context']}", highlight=False)
    console.print(credit_text(found))
    if html is not None:
        try:
            html.write_text(credit_page(found), encoding="utf-8")
        except OSError as error:
            raise SdpoError(
                f"--html = {str(html)!r} cannot be written: {error.strerror}; choose another file"
            ) from error
        console.print(str(html), highlight=False, markup=False, soft_wrap=True)
    return found


def text_or_file(value: str | None, option: str) -> str | None:
    """`value`, or the content of the file that `@NAME` names."""
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{option} = {value!r}: cannot read the file ({error}); name a readable text file "
            "after @, or give the text itself"
        ) from error
