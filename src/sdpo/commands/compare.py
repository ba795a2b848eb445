"""`sdpo compare`."""

from __future__ import annotations

import itertools
import json

import click


class _Arms(click.Command):
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


@click.command(cls=_Arms)
@click.argument("runs", nargs=-1, required=True, metavar="RUN... -- RUN... [-- RUN...]")
@click.option("--step", type=click.IntRange(0), help="Evaluated step; default: each run's last.")
@click.option("--reach", type=float, help="Held-out mean to count attempts to.")
@click.option("--confidence", type=float, default=0.9, show_default=True, help="Of intervals.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["text", "json", "markdown"]),
    default="text",
    show_default=True,
)
@click.pass_context
def compare(
    ctx: click.Context,
    runs: tuple[str, ...],
    step: int | None,
    reach: float | None,
    confidence: float,
    form: str,
) -> None:
    """Compare runs, with intervals.

    Means and paired differences; `--` separates the arms. A RUN is a run's folder, a folder of runs
    that `seeds=3` made, or a file of `sdpo eval --out`.
    The first arm is the baseline.
    """
    from sdpo.compare import compare as compare_arms
    from sdpo.report.comparison_table import as_json, as_markdown, as_text

    arms = [arm for arm in ctx.meta["arms"] if arm]
    if len(arms) == 1:
        # Without a separator every path is an arm of its own.
        arms = [[path] for path in runs]
    found = compare_arms(arms, step=step, reach=reach, confidence=confidence)
    if form == "json":
        click.echo(json.dumps(as_json(found), indent=2))
    elif form == "markdown":
        click.echo(as_markdown(found), nl=False)
    else:
        click.echo(as_text(found), nl=False)
