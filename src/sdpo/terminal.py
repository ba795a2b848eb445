"""What commands need of the terminal: errors as one message, arguments in groups, text in any
locale, the version.

No command is here, and nothing that a command shows of its own; see `cli.py`.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.live import Live
from rich.text import Text

from sdpo._version import __version__
from sdpo.errors import SandboxError, SdpoError, Terminated
from sdpo.metrics.dashboard import REFRESH_S, SECONDS_BETWEEN_LINES
from sdpo.printable import printable
from sdpo.progress import Progress, listening


class Errors(click.Group):
    """Turns `SdpoError` and an interrupt into one message and the exit status; anything else keeps
    its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        words = [*ctx._protected_args, *ctx.args]
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            if fix := _as_setting(error.option_name, words):
                raise click.UsageError(
                    f"no option {error.option_name}: settings have no dashes; {fix}", error.ctx
                ) from error
            raise
        except SdpoError as error:
            _say_once(f"[bold red]error:[/] {_escape(printable(str(error)))}")
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as stop:
            _say_once(_escape(str(stop) or "interrupted"))
            ctx.exit(143 if isinstance(stop, Terminated) else 130)


def complete_settings(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Recipes and keys that begin with `incomplete`, for the shell; files too, as recipes."""
    from sdpo.config.load import builtin_recipes, setting_keys

    names = [*builtin_recipes(), *(f"{key}=" for key in sorted(setting_keys()))]
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def _as_setting(option: str, words: Sequence[str]) -> str | None:
    """How `--steps 3` is written as a setting; None where there is no such setting."""
    from sdpo.config.load import settings_like

    key = option.lstrip("-").replace("-", "_")
    known = settings_like(key)
    if not known:
        return None
    given = next((word for word in words if word.split("=")[0] == option), option)
    after = words[words.index(given) + 1 :] if given in words else []
    value = given.partition("=")[2] or (after[0] if after and "=" not in after[0] else "VALUE")
    return "write " + " or ".join(f"{name}={value}" for name in known)


def num_processes() -> int:
    """How many processes `torchrun` has started for this command; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the one of them that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def leave_output_to_main() -> None:
    """Of several processes one prints results; the others' standard output goes nowhere."""
    if num_processes() > 1 and not is_main_process():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end


def _say_once(text: str) -> None:
    """Print how the command ends; of several processes the first that ends does so for all, since
    what the others say is the same, or follows from it."""
    if num_processes() == 1:
        Console(stderr=True).print(text, soft_wrap=True)
        return
    from sdpo.parallel import speaking_first

    with speaking_first() as is_first:
        if is_first:
            Console(stderr=True).print(text, soft_wrap=True)
            sys.stderr.flush()


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


def show_version(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
    """The version, and what a report of a bug needs to say of the machine; loads no torch."""
    if not is_asked:
        return
    from sdpo.machine import describe_machine

    click.echo(f"sdpo {__version__}")
    for name, value in (describe_machine() | {"sandbox": _sandbox_level()}).items():
        click.echo(f"{name:<13} {value}")
    ctx.exit()


def _sandbox_level() -> str:
    """What programs under judgement would be isolated by, found out by isolating one."""
    from sdpo.sandbox import open_sandbox

    try:
        with open_sandbox(width=1) as sandbox:
            return sandbox.level
    except SandboxError as error:
        return f"unavailable: {error}"


def write_any_text() -> None:
    """Output to a file or pipe is UTF-8 in every locale (a redirected `sdpo judge` is a file of
    JSON), and what a terminal has no character for is shown as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if not stream.isatty() and "PYTHONIOENCODING" not in os.environ:
                stream.reconfigure(encoding="utf-8")
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def showing_progress() -> Generator[None]:
    """Show on standard error where the computation inside the block stands: one line that changes
    in a terminal and goes at the end, elsewhere a line every ten seconds. The main process does."""
    if not is_main_process():
        yield
        return
    console = Console(stderr=True)
    live = Live(console=console, auto_refresh=False, transient=True)
    wait = REFRESH_S if console.is_terminal else SECONDS_BETWEEN_LINES
    shown_at = time.monotonic()

    def show(found: Progress) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at < wait:
            return
        if console.is_terminal:
            live.update(Text(str(found), style="dim"), refresh=True)
        else:
            console.print(str(found), highlight=False, markup=False)
        shown_at = time.monotonic()

    if console.is_terminal:
        live.start()
    try:
        with listening(show):
            yield
    finally:
        if console.is_terminal:
            live.stop()
