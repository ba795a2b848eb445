"""Token credit of one attempt for a reader: colours in a terminal, or a page of its own.

The numbers come from `sdpo.credit` or a run's credit.jsonl (rollouts/credit.py); nothing is
computed here but a colour scale. Blue: the teacher, who read the feedback, approves more than the
student did; red: less.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from sdpo.metrics.jsonl import dumps
from sdpo.printable import printable
from sdpo.report.page import fill, nonce, read_assets
from sdpo.rollouts.credit import Alternatives, TokenCredit

SMALLEST_SCALE = 0.5
"""Nats: below, colours would show rounding instead of disagreement. As in assets/credit.js."""
SCALE_QUANTILE = 0.97
"""A single extreme token must not bleach all others. As in assets/credit.js."""
SHOWN_GAPS = 8
"""Rows of the table of largest gaps."""
MAX_OVER_USUAL = 2.0
"""In a short attempt the quantile is the second largest; the largest must still stand out."""
MAX_GAP = 20.0
"""Nats: a token one side rules out entirely has an infinite gap, which is no colour."""
_POSITIVE, _NEGATIVE = (37, 99, 201), (205, 45, 33)
_SHADES = 5
"""Steps of colour: more cannot be told apart on a terminal."""


def credit_text(credit: TokenCredit) -> RenderableType:
    """The completion with each token coloured by its gap, a legend and the largest gaps."""
    gaps = _finite_gaps(credit)
    scale = _scale(gaps)
    text = Text()
    for token, gap, is_trained in zip(
        credit.token_ids, gaps, credit.trained or (True,) * len(gaps), strict=True
    ):
        shown = printable(_name(credit, token))
        text.append(shown, style=_style(gap, scale) if is_trained else Style(dim=True))
    advantage = "no group" if credit.advantage is None else f"{credit.advantage:+.2f}"
    legend = Text.assemble(
        (f" -{scale:.1f} ", _style(-scale, scale)),
        " teacher disagrees   ",
        (f" +{scale:.1f} ", _style(scale, scale)),
        f" approves (log q - log p, nats)   GRPO: {advantage} for every token",
    )
    return Group(legend, Text(), text, Text(), _table(credit))


def credit_page(credit: TokenCredit, title: str | None = None) -> str:
    """A self-contained HTML page of one attempt."""
    row = credit.row() | {
        "prompt": None if credit.prompt is None else [dict(m) for m in credit.prompt],
        "teacher": None if credit.teacher is None else [dict(m) for m in credit.teacher],
        "feedback": credit.feedback,
        "solved": credit.solved,
    }
    data = script_json(row)
    return fill(
        "credit.html",
        {
            "title": html.escape(title or f"Token credit: {credit.task_id}"),
            "nonce": nonce(data),
            "css": read_assets(("base.css",)),
            "js": read_assets(("util.js", "credit.js", "creditpage.js")),
            "data": data,
        },
    )


def script_json(value: object) -> str:
    """JSON that may stand inside a script element: no `</script>`, no `<!--`, whatever the strings
    hold."""
    return dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _table(credit: TokenCredit) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ("token in context", "gap", "student", "teacher", "student prefers")
    for column in (*columns, "teacher prefers"):
        table.add_column(
            column, justify="right" if column in ("gap", "student", "teacher") else "left"
        )
    gaps = _finite_gaps(credit)
    order = sorted(range(len(gaps)), key=lambda i: -abs(gaps[i]))
    trained = [i for i in order if credit.trained is None or credit.trained[i]]
    for i in trained[:SHOWN_GAPS]:
        before = "".join(_name(credit, token) for token in credit.token_ids[max(0, i - 4) : i])
        place = Text(_visible(before), style="dim")
        place.append(_visible(_name(credit, credit.token_ids[i])), style="bold")
        table.add_row(
            place,
            f"{gaps[i]:+.2f}",
            f"{math.exp(credit.student_logprobs[i]):.1%}",
            f"{math.exp(credit.teacher_logprobs[i]):.1%}",
            _first(credit, credit.student_top, i),
            _first(credit, credit.teacher_top, i),
        )
    return table


def _first(credit: TokenCredit, top: Sequence[Alternatives], position: int) -> Text:
    """The likeliest token of one side at `position`; empty when it was not kept."""
    if position >= len(top) or not top[position]:
        return Text()
    token, logprob = top[position][0]
    return Text(f"{_visible(_name(credit, token))} {math.exp(logprob):.1%}")


def _finite_gaps(credit: TokenCredit) -> tuple[float, ...]:
    return tuple(max(-MAX_GAP, min(MAX_GAP, gap)) for gap in credit.gaps)


def _name(credit: TokenCredit, token: int) -> str:
    return credit.texts[token] or f"<{token}>"


def _visible(text: str) -> str:
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def _scale(gaps: tuple[float, ...]) -> float:
    sizes = sorted(abs(gap) for gap in gaps)
    if not sizes:
        return SMALLEST_SCALE
    usual = sizes[int((len(sizes) - 1) * SCALE_QUANTILE)]
    return max(SMALLEST_SCALE, min(sizes[-1], MAX_OVER_USUAL * usual))


def _style(gap: float, scale: float) -> Style:
    level = round(min(1.0, abs(gap) / scale) * _SHADES)
    if level == 0:
        return Style()
    # Dark terminals and light ones both show white on a saturated colour; pale shades keep the
    # terminal's own ink.
    red, green, blue = _POSITIVE if gap > 0 else _NEGATIVE
    fade = level / _SHADES
    mix = [round(part * fade + 96 * (1 - fade)) for part in (red, green, blue)]
    return Style(color="#ffffff", bgcolor=f"#{mix[0]:02x}{mix[1]:02x}{mix[2]:02x}")
