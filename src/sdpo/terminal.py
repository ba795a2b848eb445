"""What commands need of the terminal: errors as one message, arguments in groups, text in any
locale, the version.

No command is here, and nothing that a command shows of its own; see `cli.py`.
"""

from __future__ import annotations

import io
import itertools
import os
import sys

import click
from rich.console import Console

from sdpo._version import __version__
from sdpo.errors import SandboxError, SdpoError, Terminated
from sdpo.printable import printable


class Errors(click.Group):
    """Turns `SdpoError` and an interrupt into one message and the exit status; anything else keeps
    its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except SdpoError as error:
            text = _escape(printable(str(error)))
            Console(stderr=True).print(f"[bold red]error:[/] {text}", soft_wrap=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as stop:
            Console(stderr=True).print(_escape(str(stop) or "interrupted"), soft_wrap=True)
            ctx.exit(143 if isinstance(stop, Terminated) else 130)


class Arms(click.Command):
    """`A... -- B...`: click drops the separator, so the groups are noted before it parses."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        arms: list[list[str]] = [[]]
        options: list[str] = []
        takes_value = {
            name
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }
        words = iter(args)
        for word in words:
            if word == "--":
                arms.append([])
            elif word.startswith("-"):
                options.append(word)
                if word in takes_value:
                    options += itertools.islice(words, 1)
            else:
                arms[-1].append(word)
        ctx.meta["arms"] = arms
        return super().parse_args(ctx, [*options, *(path for arm in arms for path in arm)])


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
