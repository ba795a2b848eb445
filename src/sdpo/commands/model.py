"""What is done with a model once it is trained: `sdpo sample`, `sdpo export`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from sdpo.errors import ConfigError
from sdpo.terminal import num_processes, showing_progress


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--to", required=True, type=click.Path(path_type=Path), help="New or empty folder.")
@click.option("--merge", is_flag=True, help="Add a LoRA adapter into its base model.")
@click.option("--gguf", is_flag=True, help="Write one GGUF file too, for llama.cpp.")
@click.option("--push", metavar="OWNER/NAME", help="Upload it to the hub, as a private model.")
@click.option("--public", is_flag=True, help="With --push: for everybody to see.")
def export(run: str, to: Path, merge: bool, gguf: bool, push: str | None, public: bool) -> None:
    """A run's weights as a folder for other tools.

    RUN is a run's folder (`runs/quickstart`: its newest weights, `runs/quickstart@4`: those of step
    4). transformers, PEFT and vLLM load the folder; its model card says how it was trained and what
    came of it.
    """
    from sdpo.export import export_run, push_folder
    from sdpo.export.hub import check_repository

    if push is not None:
        check_repository(push)
    elif public:
        raise click.UsageError("--public needs --push")
    found = export_run(run, to, merge=merge, gguf=gguf)
    click.echo(f"{found.folder}: the {found.kind} of {found.checkpoint}, with a model card")
    if found.gguf is not None:
        click.echo(f"{found.gguf}: the same for llama.cpp")
    if found.base is not None:
        click.echo(f"needs its base model {found.base}; --merge makes it whole")
        if Path(found.base).exists():
            click.echo("which is a folder of this machine: others need --merge")
    if push is not None:
        click.echo(push_folder(found.folder, push, private=not public))
    elif found.base is None:
        click.echo(f"next: vllm serve {found.folder}     or in Python:")
        click.echo(f'      transformers.{found.loader}.from_pretrained("{found.folder}")')


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="RUN|MODEL [key=value ...]")
@click.option("--prompt", metavar="TEXT|@FILE", help="One user message; nobody judges.")
@click.option("--task", metavar="ID", help="A task of the environment, judged.")
@click.option("--chat", is_flag=True, help="Talk: every line of standard input is a message.")
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="Answers.")
@click.option("--only", type=click.Choice(["before", "after"]), help="One side of a run.")
def sample(
    arguments: tuple[str, ...],
    prompt: str | None,
    task: str | None,
    chat: bool,
    samples: int,
    only: str | None,
) -> None:
    """Talk to a model; a run's before and after training.

    Of a run (`runs/quickstart`, `runs/quickstart@4`) the model it began with and the trained one
    answer with the same random numbers. Without --prompt, --task or --chat they try the first
    held-out tasks and are judged. Temperature, top-p and lengths are an evaluation's
    (`eval.temperature=0`).
    """
    from sdpo.commands.talk_view import show_answers, show_lines
    from sdpo.report.credit_command import text_or_file
    from sdpo.talk import answers, conversation, speakers, unjudged

    if sum((prompt is not None, task is not None, chat)) > 1:
        raise click.UsageError("--prompt, --task and --chat: give one of them")
    is_judged = prompt is None and not chat
    who = speakers(arguments, needs_env=is_judged)
    if is_judged and task is None and len(who) == 1 and arguments[0] == who[0].name:
        raise ConfigError(
            f"{arguments[0]!r} is a model without tasks: add --prompt TEXT or --chat, or name a "
            "run or a recipe whose tasks it shall try (quickstart model.name=...)"
        )
    if only is not None:
        who = [one for one in who if one.moment == only] or who
    if chat:
        if num_processes() > 1:
            raise ConfigError(
                f"--chat is with one process, not {num_processes()}: start it without torchrun"
            )
        show_lines(conversation(who, _lines()))
        return
    text = text_or_file(prompt, "--prompt")
    tasks = None if text is None else unjudged([text]).load("eval")
    with showing_progress():
        found = [answers(one, tasks, samples=samples, task=task) for one in who]
    show_answers(who, found)


def _lines() -> Iterator[str]:
    """Messages, one a line, until the end of the input."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            click.echo("you: ", nl=False)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")
