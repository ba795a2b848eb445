"""`sdpo init`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def init() -> None:
    """Begin something of one's own."""


@init.command(name="env")
@click.argument("name")
def init_env(name: str) -> None:
    """An environment in 30 lines, its test, its settings.

    Writes NAME.py, test_NAME.py and NAME.toml into the current folder and overwrites nothing.
    """
    from sdpo.new_env import write_env

    for path in write_env(name, Path()):
        click.echo(f"wrote {path}")
    click.echo(
        f"next: pytest test_{name}.py                  the judge accepts what is right\n"
        f"      sdpo check quickstart {name}.toml      tasks, judge and model fit together\n"
        f"      sdpo train quickstart {name}.toml"
    )
