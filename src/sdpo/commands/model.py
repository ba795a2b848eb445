"""What is done with a model once it is trained: `sdpo export`."""

from __future__ import annotations

from pathlib import Path

import click


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
        click.echo(f'      transformers.AutoModelForCausalLM.from_pretrained("{found.folder}")')
