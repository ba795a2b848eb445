import io
import json
import math

from rich.console import Console
from synthetic_run import ATTACK

from sdpo.report.credit import credit_text, script_json
from sdpo.rollouts.credit import TokenCredit


def attempt(**fields):
    return TokenCredit(
        **{
            "task_id": "clamp",
            "token_ids": (1, 2, 3),
            "student_logprobs": (-0.1, -0.2, -0.3),
            "teacher_logprobs": (-0.1, -4.2, -0.1),
            "student_entropies": (0.2,) * 3,
            "teacher_entropies": (0.1,) * 3,
            "student_top": (((1, -0.1),), ((2, -0.2),), ((3, -0.3),)),
            "teacher_top": (((1, -0.1),), ((4, -0.1), (2, -4.2)), ((3, -0.1),)),
            "texts": {1: "return", 2: " x", 3: "\n\x1b[31m", 4: " lo"},
            "advantage": -0.25,
            **fields,
        }
    )


def rendered(credit, *, color=True):
    out = io.StringIO()
    system = "truecolor" if color else None
    console = Console(file=out, force_terminal=color, color_system=system, width=100)
    console.print(credit_text(credit))
    return out.getvalue()


def test_disliked_tokens_are_red_and_neutral_ones_plain():
    text = rendered(attempt())
    assert "48;2;205;45;33m x" in text
    assert "\nreturn\x1b" in text


def test_the_largest_gap_comes_first_with_what_the_teacher_prefers():
    table = rendered(attempt(), color=False).split("teacher prefers")[1]
    first = table.strip().splitlines()[0]
    assert first.startswith("return x")
    for part in ("-4.00", "81.9%", "1.5%", " lo 90.5%"):
        assert part in first


def test_model_output_cannot_send_terminal_codes():
    assert "\x1b" not in rendered(attempt(), color=False)


def test_tokens_of_the_environment_are_dim_and_not_ranked():
    text = rendered(attempt(trained=(True, False, True)), color=False)
    assert "-4.00" not in text


def test_a_token_the_teacher_rules_out_has_the_largest_gap():
    text = rendered(attempt(teacher_logprobs=(-0.1, -math.inf, -0.1)), color=False)
    assert "-20.00" in text


def test_script_json_round_trips_and_cannot_end_the_script():
    text = script_json({"x": ATTACK + "&\u2028"})
    assert "<" not in text
    assert json.loads(text)["x"] == ATTACK + "&\u2028"
