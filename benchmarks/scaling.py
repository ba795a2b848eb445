"""What a training step costs over the length of the prompt and the size of the group; ours alone.

    python benchmarks/scaling.py                    table, runs/benchmarks/scaling.{json,html}
    python benchmarks/scaling.py --model tiny       a test of this script
    python benchmarks/scaling.py --tasks 8 --new-tokens 96 --steps 5      at the size of step.py

Prompts of 64 to 2,048 tokens with groups of 8, and groups of 4 to 32 with prompts of 256 tokens;
one task and 16 new tokens unless told otherwise, so that the prompt is what is measured. Steps are
those of `step.py`: every rollout has its own feedback of 60 to 150 tokens and is distilled. Each
point is a process of its own. "Of proportional" is a point's time over that of the first point of
its line scaled with the product of prompt length and group size: what a trainer that computes the
prompt for every rollout would keep near 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from shapes import default_dtype
from step import check, machine, num_threads, versions
from step_process import Side
from step_setup import MODELS, make_spec, model_folder

LINES = {
    "prompt tokens": [(64, 8), (128, 8), (256, 8), (512, 8), (1024, 8), (2048, 8)],
    "group size": [(256, 4), (256, 8), (256, 16), (256, 32)],
}
"""(prompt tokens, group size) of each point, by what varies along the line."""
PARTS = {"step_s": "step", "sample_s": "sampling", "teacher_s": "teacher", "rest_s": "rest"}


def measure(args, folder: Path, scratch: Path, point: tuple[int, int]) -> dict[str, float]:
    """Medians of the measured steps at one point; the peak is the largest."""
    prompt_tokens, group = point
    options = argparse.Namespace(**{**vars(args), "group": group})
    spec = make_spec(options, folder, scratch, prompt_tokens=prompt_tokens)
    name = f"{prompt_tokens} tokens, group {group}"
    with Side(name, sys.executable, "step_ours.py", spec, scratch, args.threads) as side:
        for _ in range(args.warmup + args.steps):
            check(options, name, side.step())
    rows = side.steps[args.warmup :]
    print(f"{name}: {statistics.median(row['step_s'] for row in rows):.2f} s", file=sys.stderr)
    medians = {key: statistics.median(row[key] for row in rows) for key in PARTS}
    return {
        "prompt_tokens": prompt_tokens,
        "group": group,
        **medians,
        "peak_bytes": max(row["peak_bytes"] for row in rows),
    }


def of_proportional(row: dict[str, float], first: dict[str, float]) -> float:
    """Time of `row` over what it would be if time followed prompt length x group size."""
    growth = row["prompt_tokens"] * row["group"] / (first["prompt_tokens"] * first["group"])
    return row["step_s"] / (first["step_s"] * growth)


def print_lines(args, lines: dict[str, list[dict[str, float]]]) -> None:
    for varying, rows in lines.items():
        print(
            f"\nover {varying}: {args.tasks} tasks, {args.new_tokens} new tokens, "
            f"{Path(args.model).name}, {args.dtype}, {num_threads(args)} threads, "
            f"median of {args.steps}"
        )
        columns = ("prompt", "group", *(f"{part} s" for part in PARTS.values()), "peak GB")
        print("".join(f"{column:>12}" for column in columns) + f"{'of proportional':>18}")
        for row in rows:
            print(
                f"{row['prompt_tokens']:12}{row['group']:12}"
                + "".join(f"{row[key]:12.2f}" for key in PARTS)
                + f"{row['peak_bytes'] / 1e9:12.2f}{of_proportional(row, rows[0]):18.2f}"
            )


def write_plot(lines: dict[str, list[dict[str, float]]], path: Path) -> None:
    """One panel per line, both axes logarithmic, parts beside the whole and the proportional."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    colors = dict(zip(PARTS, ("#1f2937", "#2563eb", "#16a34a", "#d97706"), strict=True))
    figure = make_subplots(cols=len(lines), subplot_titles=[f"over {name}" for name in lines])
    for column, (varying, rows) in enumerate(lines.items(), start=1):
        key = "group" if varying == "group size" else "prompt_tokens"
        places = [row[key] for row in rows]
        proportional = [rows[0]["step_s"] * place / places[0] for place in places]
        figure.add_scatter(
            x=places,
            y=proportional,
            name="in proportion",
            mode="lines",
            line={"dash": "dot", "color": "#9ca3af"},
            showlegend=column == 1,
            row=1,
            col=column,
        )
        for part, label in PARTS.items():
            figure.add_trace(
                go.Scatter(
                    x=places,
                    y=[row[part] for row in rows],
                    name=label,
                    line={"color": colors[part]},
                    showlegend=column == 1,
                ),
                row=1,
                col=column,
            )
        figure.update_xaxes(type="log", tickvals=places, title=varying, row=1, col=column)
    figure.update_yaxes(type="log", title="seconds a step", row=1, col=1)
    figure.update_yaxes(type="log")
    figure.update_layout(title="Cost of a training step", template="plotly_white")
    figure.write_html(path, include_plotlyjs=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each point")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--model", default="smollm2-135m-instruct", help=MODELS)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/scaling.json"))
    args = parser.parse_args()
    args.dtype = args.dtype or default_dtype("cpu")
    args.device, args.trl_batch, args.trl_checkpointing = "cpu", 0, False
    return args


def main() -> None:
    args = parse()
    points = dict.fromkeys(point for name in args.lines for point in LINES[name])
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(args.model, Path(scratch), args.device)
        found = {point: measure(args, folder, Path(scratch), point) for point in points}
    lines = {name: [found[point] for point in LINES[name]] for name in args.lines}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine(),
        "versions": versions(sys.executable, ("torch", "transformers")),
        "settings": {key: str(value) for key, value in vars(args).items()},
        "results": list(found.values()),
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_plot(lines, args.out.with_suffix(".html"))
    print_lines(args, lines)
    print(f"\nplot: {args.out.with_suffix('.html')}")


if __name__ == "__main__":
    main()
