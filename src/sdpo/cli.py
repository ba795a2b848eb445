"""The `sdpo` command. Each command reads its arguments, calls one public function and prints what
came back."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console
from rich.table import Table

from sdpo.commands.compare import compare
from sdpo.commands.init import init
from sdpo.commands.judge import judge
from sdpo.commands.memory import check_memory
from sdpo.commands.model import export, sample
from sdpo.errors import ConfigError
from sdpo.printable import printable
from sdpo.terminal import (
    Errors,
    complete_settings,
    is_main_process,
    leave_output_to_main,
    num_processes,
    show_version,
    showing_progress,
    write_any_text,
)

ARGUMENTS = click.argument(
    "arguments",
    nargs=-1,
    required=True,
    metavar="RECIPE... [key=value ...]",
    shell_complete=complete_settings,
)


SHARED = ("train", "eval", "discover", "check", "sample")
"""Commands that several processes do together under `torchrun`."""


@click.group(cls=Errors, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_version,
    help="Show the version, the libraries, the device and the sandbox, and exit.",
)
@click.pass_context
def main(context: click.Context) -> None:
    """Self-distillation policy optimization: learn from what the environment says about each
    attempt."""
    write_any_text()
    if num_processes() > 1 and context.invoked_subcommand not in SHARED:
        raise ConfigError(
            f"`sdpo {context.invoked_subcommand}` cannot be shared by the {num_processes()} "
            f"processes of torchrun, each of which would do all of it; start it without "
            f"(those that can: {', '.join(SHARED)})"
        )
    leave_output_to_main()


@main.command()
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Other codes.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder of the runs and their report.",
)
def demo(seed: int, out: Path) -> None:
    """See feedback teach in seconds, in a toy world.

    Needs no download and one CPU core.
    """
    from sdpo.demo import demo as show_demo

    show_demo(out, click.echo, seed=seed)
    click.echo(
        "next: sdpo train quickstart     a 135M model learns Python tasks from tests, 10 minutes\n"
        "      sdpo train learn-schema   a 0.5B model learns a database's names from its errors"
    )


@main.command()
@ARGUMENTS
def train(arguments: tuple[str, ...]) -> None:
    """Train, or continue an interrupted run.

    RECIPE is a built-in name (`sdpo config list`), a TOML file, or a run's folder; later ones and
    key=value override earlier ones (`sdpo config show RECIPE --explain`). Results go to the folder
    `run`.
    """
    from sdpo.config.load import load_config

    settings = load_config(arguments)
    steps = f"{settings.steps} step{'s' * (settings.steps != 1)}"
    # Before torch is loaded, which takes seconds.
    click.echo(printable(f"{settings.run}: {steps}; loading {settings.model.name}"))
    from sdpo import api
    from sdpo.commands.ending import closing_lines

    result = api.train(*arguments)
    for line in closing_lines(result):
        click.echo(printable(line))
    if not result.finished:
        sys.exit(result.exit_status)


@main.command(name="eval")
@ARGUMENTS
@click.option("--split", type=click.Choice(["train", "eval"]), default="eval", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write per-task counts as JSON lines.")
@click.option(
    "--attempts",
    type=click.Path(path_type=Path),
    help="Write every attempt with its verdict, as in a run's rollouts.jsonl.",
)
def evaluate(
    arguments: tuple[str, ...], split: str, out: Path | None, attempts: Path | None
) -> None:
    """mean@k and pass@k with intervals.

    A run's folder (`runs/quickstart`, `runs/quickstart@4`) is evaluated with its newest weights
    (those of step 4) in its own environment.
    """
    from sdpo import api

    for option, path in (("--out", out), ("--attempts", attempts)):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(
                f"{option} {path}: the folder {path.parent} does not exist; create it"
            )
    with showing_progress():
        evaluation = api.evaluate(*arguments, split=split)
    table = Table(
        title=f"{evaluation.model}: {len(evaluation.num_solved)} tasks x {evaluation.samples} "
        f"attempts ({split})"
    )
    for column in ("measure", "value", "90% interval"):
        table.add_column(column)
    mean = evaluation.mean_at_k()
    table.add_row(
        f"mean@{evaluation.samples}", f"{mean.mean:.3f}", f"{mean.low:.3f} - {mean.high:.3f}"
    )
    k = 1
    while k <= evaluation.samples:
        estimate = evaluation.pass_at_k(k)
        table.add_row(
            f"pass@{k}", f"{estimate.mean:.3f}", f"{estimate.low:.3f} - {estimate.high:.3f}"
        )
        k *= 2
    Console().print(table)
    if not is_main_process():
        return
    if out is not None:
        rows = (
            json.dumps({"id": task, "samples": evaluation.samples, "solved": solved})
            for task, solved in evaluation.num_solved.items()
        )
        out.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    if attempts is not None:
        from sdpo.rollouts.record import write_attempts

        write_attempts(attempts, evaluation.groups, split)


@main.command()
@ARGUMENTS
@click.option("--probe", is_flag=True, help="Also sample the teacher: does what it reads help?")
@click.option("--probe-tasks", type=click.IntRange(1), help="Training tasks; default 16.")
@click.option("--probe-samples", type=click.IntRange(1), help="Attempts per task; default 4.")
@click.option("--gpus", metavar="8x80", help="Memory on these cards only: [NODESx]CARDSxGB.")
@click.option(
    "--model-shape",
    type=click.Path(exists=True, path_type=Path),
    help="With --gpus: the model's config.json, if the hub cannot be asked.",
)
def check(
    arguments: tuple[str, ...],
    probe: bool,
    probe_tasks: int | None,
    probe_samples: int | None,
    gpus: str | None,
    model_shape: Path | None,
) -> None:
    """Prove that a recipe can run.

    References pass, prompts fit, the chat template round-trips, the head can be trained. With
    --gpus nothing is loaded: what the recipe takes on such cards is counted, and whether it fits.
    """
    if gpus is not None:
        if probe:
            raise click.UsageError("--gpus counts memory and samples nothing; leave --probe out")
        return check_memory(arguments, gpus, model_shape)
    if model_shape is not None:
        raise click.UsageError("--model-shape needs --gpus")
    from sdpo import api

    sizes = {"tasks": probe_tasks, "samples": probe_samples}
    chosen: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    if chosen and not probe:
        raise click.UsageError(f"--probe-{min(chosen)} needs --probe")
    report = api.check(*arguments)
    console = Console()
    for note in report.notes:
        console.print(printable(note), highlight=False, markup=False, soft_wrap=True)
    for task, what in report.warnings.items():
        text = printable(f"warning: {task}: {what}")
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    for task, what in report.failures.items():
        console.print(printable(f"{task}: {what}"), highlight=False, markup=False)
    console.print(
        f"{report.num_tasks} tasks, {len(report.failures)} failures, "
        + (f"{len(report.warnings)} warnings, " if report.warnings else "")
        + f"{report.skipped} without a reference",
        highlight=False,
    )
    if report.failures:
        sys.exit(1)
    if probe:
        from sdpo.report.probe_table import probe_text

        with showing_progress():
            found = api.probe(*arguments, **chosen)
        console.print(probe_text(found))


@main.command()
@click.option("--model", required=True, help="Hub id, folder, run, GGUF file, demo model.")
@click.option("--prompt", metavar="TEXT|@FILE", help="The task as one user message.")
@click.option("--task", metavar="ID", help="A task of --tasks, instead of --prompt.")
@click.option("--tasks", metavar="SET", help="Built-in set or task file; its judge is asked too.")
@click.option("--worked-example", is_flag=True, help="As env.worked_example = true in a recipe.")
@click.option(
    "--completion",
    required=True,
    type=click.File(encoding="utf-8"),
    help="File of the attempt; -: standard input.",
)
@click.option(
    "--feedback",
    metavar="TEXT|@FILE",
    help="What the teacher reads about it; default: the judge's, unless a demonstration is given.",
)
@click.option(
    "--demonstration",
    type=click.File(encoding="utf-8"),
    help="File of a correct answer that the teacher reads.",
)
@click.option(
    "--layout",
    type=click.Choice(["single_turn", "turns"]),
    default="single_turn",
    show_default=True,
)
@click.option("--html", type=click.Path(path_type=Path), help="Also write the page of the attempt.")
def credit(
    completion: TextIO, demonstration: TextIO | None, html: Path | None, **options: Any
) -> None:
    """Which tokens of an attempt feedback is about.

    Token credit: where a teacher who read feedback or a demonstration agrees with the student.
    """
    from sdpo.report.credit_command import Attempt, show_attempt

    shown = None if demonstration is None else demonstration.read()
    attempt = Attempt(completion=completion.read(), demonstration=shown, **options)
    show_attempt(attempt, Console(), html=html)


@main.group()
def config() -> None:
    """Look at settings and recipes."""


@config.command(name="show")
@ARGUMENTS
@click.option("--explain", is_flag=True, help="Say above every key what it means.")
def config_show(arguments: tuple[str, ...], explain: bool) -> None:
    """Every value with its origin.

    First what the objective resolves to, as comments; the whole is TOML that loads.
    """
    from sdpo.config.load import load
    from sdpo.config.toml import to_toml
    from sdpo.describe import describe_objective

    loaded = load(arguments)
    for line in describe_objective(loaded.config):
        click.echo(f"# {line}")
    click.echo()
    click.echo(to_toml(loaded, explain=explain), nl=False)


@config.command(name="list")
def config_list() -> None:
    """Built-in recipes and what each is for."""
    from sdpo.config.load import builtin_recipes

    table = Table(box=None, show_header=False)
    for name, path in builtin_recipes().items():
        table.add_row(name, path.read_text(encoding="utf-8").splitlines()[0].lstrip("# "))
    Console().print(table)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Default: report.html in the first run."
)
@click.option("--watch", is_flag=True, help="Serve a page that follows the runs, until Ctrl-C.")
@click.option("--port", type=int, help="With --watch. Default: 8600, or a free one.")
def report(runs: tuple[Path, ...], out: Path | None, watch: bool, port: int | None) -> None:
    """One page about a run, or about several.

    Writes a self-contained HTML file; a folder of runs stands for the runs in it.
    """
    from sdpo.metrics.writer import run_folders
    from sdpo.report import watch_runs, write_report

    def say(text: str) -> None:
        Console().print(text, highlight=False, markup=False, soft_wrap=True)

    if not watch:
        if port is not None:
            raise ConfigError(f"--port = {port} belongs to --watch: give both or neither")
        return say(str(write_report(list(runs), out)))
    if out is not None:
        raise ConfigError(f"--out = {str(out)!r}: --watch writes no file; give one of the two")
    folders = [run for path in runs for run in run_folders(path)]
    watch_runs(folders, port=port, say=say)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(0), help="Of this step only.")
@click.option("--task", metavar="ID", help="At this task only.")
@click.option("--solved/--failed", default=None, help="Those that solved it, or did not.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON each, with everything.")
def rollouts(
    run: Path, step: int | None, task: str | None, solved: bool | None, as_json: bool
) -> None:
    """Read what a run recorded of its attempts."""
    from sdpo.report.rollouts_command import show_rollouts

    show_rollouts(run, click.echo, step=step, task=task, solved=solved, as_json=as_json)


@main.command()
@ARGUMENTS
def discover(arguments: tuple[str, ...]) -> None:
    """Search for solutions of hard tasks.

    Test-time self-distillation, beside best-of-k and multi-turn.
    """
    from sdpo.discovery.display import live_progress, next_lines, show
    from sdpo.discovery.run import discover_tasks
    from sdpo.run_folder import search_config

    config = search_config(arguments)
    with live_progress() as progress:
        results = discover_tasks(config, progress=progress)
    show(results)
    for line in next_lines(results, config.run, config.discover.budget):
        click.echo(printable(line))


main.add_command(compare)
main.add_command(export)
main.add_command(init)
main.add_command(judge)
main.add_command(sample)


def run(arguments: Sequence[str]) -> int:
    """Exit status of `sdpo` with `arguments`, for tests and notebooks."""
    try:
        main(list(arguments), standalone_mode=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0
