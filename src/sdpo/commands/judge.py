"""Judging files of answers: `sdpo judge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click


@click.command()
@click.argument("arguments", nargs=-1, metavar="[RECIPE... key=value ...]")
@click.option("--tasks", help="Code tasks: a built-in set or a file.")
@click.option(
    "--responses",
    required=True,
    type=click.Path(path_type=Path),
    help='File of lines {"id": ..., "response": ...}, or of `sdpo eval --attempts`.',
)
@click.option(
    "--split",
    type=click.Choice(["public", "private"]),
    default="private",
    show_default=True,
    help="Tests of code tasks to run; feedback shows public ones only.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File for the verdict lines; default: standard output.",
)
@click.option(
    "--sandbox",
    type=click.Choice(["auto", "none"]),
    help="With --tasks: auto (default) isolates programs or refuses; none runs them unprotected.",
)
def judge(
    arguments: tuple[str, ...],
    tasks: str | None,
    responses: Path,
    split: Literal["public", "private"],
    out: Path | None,
    sandbox: Literal["auto", "none"] | None,
) -> None:
    """Judge a file of responses.

    One verdict line each, in order.

    The environment is named as for a run: `env.type=choice env.tasks=FILE`, a recipe, a run's
    folder; --tasks stands for code tasks.
    """
    from sdpo.rollouts.responses import judge_file as write_verdicts

    if (tasks is None) == (not arguments):
        raise click.UsageError("name the environment: --tasks FILE for code tasks, or a recipe")
    if tasks is not None:
        arguments = ("env.type=code", f"env.tasks={json.dumps(tasks)}")
        arguments += () if sandbox is None else (f"env.sandbox={sandbox}",)
    elif sandbox is not None:
        raise click.UsageError(f"--sandbox belongs to --tasks; write env.sandbox={sandbox}")
    write_verdicts(*arguments, responses=responses, split=split, out=out)
