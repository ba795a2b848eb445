"""The reference of metrics, canaries, commands, public names and packages, from the code itself.

Pure: returns Markdown; `hooks.py` gives it to MkDocs.
"""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
from settings_pages import cell

import sdpo
from sdpo.cli import main
from sdpo.metrics.canaries import BASELINE_EVALS, BASELINE_STEPS, RULES, WINDOW
from sdpo.report.panels import PANELS, STEP_SECONDS, TIME_PARTS

ROOT = Path(__file__).parents[2]

COUNTERS = {
    "step": "Steps completed when the row was written; 0 is the evaluation before the first.",
    "rollouts_total": "Attempts of training so far, all steps and ranks.",
    "tokens_total": "Tokens the policy sampled in them.",
}
"""What `UNDRAWN` names: horizontal axes and counters."""

MODULES = {
    "Environments": ("sdpo.envs.base", "sdpo.envs.episodes", "sdpo.envs.adapters.datasets",
                     "sdpo.envs.adapters.reward_functions", "sdpo.envs.adapters.verifiers"),
    "The objective alone": ("sdpo.losses.divergence", "sdpo.losses.specs.CustomDivergence",
                            "sdpo.losses.head.fused"),
    "Testing your own environment": ("sdpo.testing",),
}  # fmt: skip
"""Public modules beside the names of `sdpo` itself."""


def metrics_page() -> str:
    """The page of every key of metrics.jsonl."""
    lines = [
        "# Metrics",
        "",
        "`metrics.jsonl` has one object a step. A key is absent where nothing was measured: "
        "evaluations write `eval/*`, probes `probe/*`. `KEY_low` and `KEY_high` are the ends of a "
        "90% interval. A report draws each of these; `*` stands for several endings.",
        "",
    ]
    for group in dict.fromkeys(panel.group for panel in PANELS):
        lines += [f"## {group}", "", "| key | unit | meaning |", "|---|---|---|"]
        for panel in (panel for panel in PANELS if panel.group == group):
            keys = "<br>".join(
                f"`{key}`" + (f" {label}" if label else "") for key, label in panel.keys.items()
            )
            watched = "".join(f" [{name}](canaries.md#{name})" for name in panel.canaries)
            watched = f" Watched by{watched}." if watched else ""
            lines.append(f"| {keys} | {panel.axis} | {panel.meaning}{watched} |")
        lines.append("")
    lines += ["## Time and counters", "", "| key | unit | meaning |", "|---|---|---|"]
    lines.append(f"| `{STEP_SECONDS}` | seconds | A whole step, evaluations aside. |")
    for part in TIME_PARTS:
        rest = f" without {', '.join(part.without)}" if part.without else ""
        lines.append(f"| `{part.metric}` | seconds | Shown as *{part.name}*{rest}. |")
    lines += [f"| `{key}` | | {meaning} |" for key, meaning in COUNTERS.items()]
    lines += [
        "",
        "## What the environment adds",
        "",
        "| key | unit | meaning |",
        "|---|---|---|",
        '| `env/unjudged` | share of attempts | Attempts whose judge said "not now" to the last '
        "(`env.retries`); they are left out of their groups. |",
        "| `env/*` | the environment's | Means of `Verdict.metrics`, one key each. |",
        "",
    ]
    return "\n".join(lines)


def canaries_page() -> str:
    """The glossary of canaries."""
    lines = [
        "# Canaries",
        "",
        "A canary is a metric with a bound that a healthy run does not cross. It fires after "
        "`canaries.patience` bad steps in a row (two for evaluations), once per streak; "
        "`canaries.action` says what follows: a line (`warn`), the end of the run (`stop`), or a "
        "return to the newest weights that evaluated well (`rollback`). Alerts are rows of "
        "`alerts.jsonl` and dashed verticals in the report.",
        "",
        f"*Start* is the median of the first {BASELINE_STEPS} good steps (of "
        f"{BASELINE_EVALS} evaluation), *best* the largest mean of {WINDOW} steps so far.",
        "",
    ]
    for rule in RULES:
        lines += [
            f"## {rule.name}",
            "",
            f"{_sentence(rule.meaning)} Fires when `{rule.metric}` is "
            f"{'below' if rule.below else 'above'} {_bound(rule)}."
            + (" It only ever warns." if rule.only_warns else "")
            + (" Looked at after evaluations." if rule.is_eval else ""),
            "",
        ]
    return "\n".join(lines)


def commands_page() -> str:
    """The page of the command line."""
    lines = [
        "# Commands",
        "",
        "Exit status: 0 done, 2 wrong input (the message names the key, the value and the cure), 1 "
        "the world was wrong, 130 and 143 interrupted by Ctrl-C or SIGTERM with the last complete "
        "step saved.",
        "",
    ]
    for path, command in commands(main, "sdpo"):
        context = click.Context(command, info_name=path)
        usage = " ".join([path, *command.collect_usage_pieces(context)])
        lines += [f"## {path}", "", "```text", usage, "```", "", _help(command), ""]
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        if options:
            lines += ["| option | default | |", "|---|---|---|"]
            lines += [_option(option, context) for option in options]
            lines.append("")
    return "\n".join(lines)


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below `group` with its full name."""
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def api_page() -> str:
    """The page of public names; mkdocstrings fills the directives."""
    lines = [
        "# Python",
        "",
        "`import sdpo` loads no torch; functions do when they are first called. What is listed "
        "here is public: it changes with an entry in the changelog. Anything else may move.",
        "",
        "## sdpo",
        "",
    ]
    for name, source in public_names().items():
        lines += [f"::: {source}", "    options:",
                  "      heading_level: 3", f"      toc_label: {name}", ""]  # fmt: skip
    for title, modules in MODULES.items():
        lines += [f"## {title}", ""]
        for module in modules:
            lines += [f"::: {module}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


def public_names() -> dict[str, str]:
    """Every name of `sdpo.__all__` with the place that it is imported from, lazily or not."""
    tree = ast.parse((ROOT / "src" / "sdpo" / "__init__.py").read_text(encoding="utf-8"))
    found = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return {name: found[name] for name in sdpo.__all__}


def map_page() -> str:
    """One page about the source: who may import whom, and what each package holds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    layers = [[part.strip() for part in layer.split("|")] for layer in contract["layers"]]
    lines = [
        "# A map of the source",
        "",
        "Attempts run one way through the packages. Left of *targets* everything is plain Python "
        "objects; tensors begin there.",
        "",
        "```text",
        "tasks -> rollouts -> verdicts -> teacher contexts -> targets -> losses -> update",
        " envs     engines      envs          teacher         training   losses   training",
        "            ^                                                               |",
        "            +------------------------- weights ----------------------------+",
        "```",
        "",
        "Who may import whom: a box may import boxes below it, never one above or beside it. "
        "`make check` enforces this picture, which is drawn from the rule itself.",
        "",
        _picture(layers),
        "",
        "| package | holds |",
        "|---|---|",
    ]
    for layer in layers:
        for module in layer:
            lines.append(f"| `{module.removeprefix('sdpo.')}` | {_first_sentence(module)} |")
    lines += [
        "",
        "Read these five files first: `records.py`, `training/loop.py`, `teacher/context.py`, "
        "`losses/reference.py`, `envs/code/env.py`. The whole method in one file: "
        "`examples/nano_sdpo.py`. Every equation with its function: [algorithm](algorithm.md).",
    ]
    return "\n".join(lines)


def _picture(layers: list[list[str]]) -> str:
    """The layers as boxes, in the colours of the page."""
    width, row = 720, 34
    height = row * len(layers)
    boxes = []
    for place, layer in enumerate(layers):
        each = width / len(layer)
        for column, module in enumerate(layer):
            x, y = column * each, place * row
            name = module.removeprefix("sdpo.")
            boxes.append(
                f'<rect x="{x + 3:.0f}" y="{y + 3}" width="{each - 6:.0f}" height="{row - 6}" '
                'rx="4" fill="none" stroke="currentColor" stroke-opacity="0.5"/>'
                f'<text x="{x + each / 2:.0f}" y="{y + row / 2 + 5:.0f}" text-anchor="middle" '
                f'font-size="14" fill="currentColor">{name}</text>'
            )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" style="width:100%;max-width:{width}px" '
        f'aria-label="Packages of sdpo, importers above what they import">{"".join(boxes)}</svg>'
    )


def _first_sentence(module: str) -> str:
    path = ROOT / "src" / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return cell(text.partition("\n\n")[0])


def _bound(rule: object) -> str:
    """A rule's bound in words."""
    origin = "best" if rule.from_best else "start"
    parts = []
    if rule.absolute:
        return f"{rule.offset:g}"
    if rule.factor != 1:
        parts.append(f"{rule.factor:g} x {origin}")
    if rule.offset:
        sign = "+" if rule.offset > 0 else "-"
        parts.append(f"{origin} {sign} {abs(rule.offset):g}")
    text = " and ".join(parts)
    return f"{text}, and above {rule.floor:g}" if rule.floor > 0 else text


def _help(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").replace("\n\n", "\n\n").replace("*", "\\*")


def _option(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    default = option.default
    has_default = option.show_default and default is not None and not option.is_flag
    shown = f"`{default}`" if has_default else ""
    required = " Required." if option.required else ""
    return f"| {names} {cell(value)} | {shown} | {cell(option.help or '')}{required} |"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + "."
