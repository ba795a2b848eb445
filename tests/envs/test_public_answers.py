"""Final answers, options and tool calls that other judges got wrong in public, with their verdicts
here. Each case names the report it comes from; those without one are neighbours of the case above.
"""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from sdpo.config import schema
from sdpo.envs.math import Math

MATH_VERIFY = "https://github.com/huggingface/Math-Verify/issues"
DS4 = "https://github.com/antirez/ds4/pull/319"

MATH = [
    # (source, reference, answer, is right): tiny values, of which any two were equal
    (f"{MATH_VERIFY}/14", "\\frac{1}{2004!}", "\\frac{1}{2006!}", False),
    (f"{MATH_VERIFY}/14", "\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}", False),
    (f"{MATH_VERIFY}/14", "\\frac{2^{2005}+1}{3 \\cdot 2^{2006}}",
     "\\frac{1}{3 \\cdot 2^{2006}}", False),
    ("", "1.6 \\times 10^{-19}", "0.0", False),
    ("", "1.6 \\times 10^{-19}", "1.60 \\times 10^{-19}", True),
    ("", "1.6 \\times 10^{-19}", "1.7 \\times 10^{-19}", False),
    ("", "\\frac{1}{2^{99}}", "2^{-99}", True),
    ("", "\\frac{1}{2^{99}}", "0.00000001", False),
    ("", "0.0000032", "0.0000034", False),
    ("", "\\frac{1}{3}", "0.333333", True),
    ("", "\\frac{1}{3}", "0.333", False),
    ("", "(0, 10^{-9})", "(0, 10^{-10})", False),
    ("", "\\{1, 10^{-9}\\}", "\\{10^{-10}, 1\\}", False),
    ("", "\\{1, 10^{-9}\\}", "\\{10^{-9}, 1\\}", True),
    ("", "0", "0.0", True),
    ("", "0", "\\sqrt{2}\\sqrt{3}-\\sqrt{6}", True),
    # the other pairs of the same report, which must differ
    (f"{MATH_VERIFY}/14", "n=2, 3, 4", "n=1, 2, 3", False),
    (f"{MATH_VERIFY}/14", "D = (0, 1)", "D = (0, 1.5)", False),
    (f"{MATH_VERIFY}/14", "19, 46, \\text{ and } 82", "21, 36, and 82", False),
    (f"{MATH_VERIFY}/14", "1 - \\frac{1}{\\mathrm{e}}", "1 + \\frac{1}{\\mathrm{e}}", False),
    (f"{MATH_VERIFY}/14", "\\pm 2021", "2021", False),
    (f"{MATH_VERIFY}/14", "12:00", "1:00", False),
    # equal values in other forms
    (f"{MATH_VERIFY}/2", "\\frac{1}{12}", "0.0833333333333333", True),
    (f"{MATH_VERIFY}/2", "(1,\\frac{9}{2})", "(1,4.5)", True),
    (f"{MATH_VERIFY}/2", "\\frac{x+2}{7}", "\\frac{x}{7}+\\frac{2}{7}", True),
    (f"{MATH_VERIFY}/2", "34x+45y-20z+100=0", "-34x-45y+20z-100=0", True),
    (f"{MATH_VERIFY}/2", "33.3", "\\frac{100}{3}", False),
    (f"{MATH_VERIFY}/26", "2x+4y-3=0", "y = -\\frac{1}{2}x + \\frac{3}{4}", True),
    (f"{MATH_VERIFY}/37", "\\text{13}", "13", True),
    (f"{MATH_VERIFY}/69", "\\dfrac{\\pi}{2}", "\\pi/2", True),
    # chains: the last side is the answer, if the sides agree
    (DS4, "293", "m+n = 256+37 = 293", True),
    (DS4, "62", "a+b+c = 12+25+25 = 62", True),
    ("", "294", "m+n = 256+37 = 294", False),
    ("", "42", "41=42", False),
    ("", "42", "x=41=42", False),
    ("", "42", "1 = 42", False),
    ("", "42", "x = 42", True),
    ("", "0.333", "\\frac{1}{3} = 0.333", True),
    ("", "y = 2x + 1", "2x + 1 = y", True),
    # numbers as people write them
    ("https://github.com/open-compass/opencompass/pull/2426", "200000", "\\$200,000", True),
    ("https://github.com/AISBench/benchmark/issues/359", "200000", "200{,}000", True),
    ("", "1000000", "1\\,000\\,000", True),
    ("", "42", "42.", True),
    ("", "1500", "1.5e3", True),
    ("", "2.5 \\times 10^{-4}", "2.5e-4", True),
    ("", "1.6e-19", "1.6 \\times 10^{-19}", True),
    ("", "2e", "2e", True),
    ("", "i", "\\sqrt{-1}", True),
    ("", "(1, 234)", "1234", False),
    # units are compared where both sides have one that is known
    ("", "7\\text{ m}", "7\\text{ cm}", False),
    ("", "7\\text{ m}", "7\\text{ kg}", False),
    ("", "7\\text{ m}", "700\\text{ cm}", True),
    ("", "7\\text{ m}", "7", True),
    ("", "7", "7\\text{ m}", True),
    ("", "25 m/s", "25", True),
    ("", "25 m/s", "90\\ \\text{km/h}", True),
    ("", "25 m/s", "25\\text{ km/h}", False),
    ("", "3\\text{ m}^2", "30000\\text{ cm}^2", True),
    ("", "3\\text{ m}^2", "300\\text{ cm}^2", False),
    ("", "5\\text{ apples}", "5\\text{ pears}", True),
    ("", "50\\%", "0.5", True),
    ("", "50\\%", "50", True),
    ("", "90^\\circ", "90", True),
]  # fmt: skip


@pytest.fixture(scope="module")
def mathematics(tmp_path_factory):
    pytest.importorskip("math_verify")
    path = tmp_path_factory.mktemp("math") / "math.jsonl"
    rows = [{"id": str(i), "problem": "p", "answer": row[1]} for i, row in enumerate(MATH)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with closing(Math(schema.MathEnvConfig(tasks=str(path), eval_fraction=0))) as env:
        yield env


@pytest.mark.parametrize("place", range(len(MATH)), ids=[f"{g} {a}" for _, g, a, _ in MATH])
def test_mathematics(mathematics, place):
    task = mathematics.load("train")[place]
    _, _, answer, is_right = MATH[place]
    verdict = mathematics.judge_text(task, f"\\boxed{{{answer}}}", is_truncated=False)
    assert verdict.solved == is_right


def test_references_pass_for_themselves(mathematics):
    assert mathematics.check().failures == {}


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("approximately 3.14", "it has words (approximately)"),
        ("Proof omitted", "it has words (Proof)"),
        ("(B) 42", "begins with the letter of an option"),
        ("\\text{Tuesday}", "only the same text is right"),
        ("((((", "cannot be read as mathematics"),
        ("5.", None),
        ("1.6e-19", None),
        ("25 m/s", None),
        ("\\frac{1}{2^{99}}", None),
        ("0.00", None),
        ("x^2 + \\sin(x)", None),
    ],
)
def test_check_is_silent_about_references_that_nobody_can_match(tmp_path, reference, says):
    pytest.importorskip("math_verify")
    path = tmp_path / "math.jsonl"
    path.write_text(json.dumps({"id": "it", "problem": "p", "answer": reference}))
    with closing(Math(schema.MathEnvConfig(tasks=str(path), eval_fraction=0))) as env:
        report = env.check()
    assert report.failures == {}
    assert (says or "") in report.warnings.get("it", "")
    assert bool(report.warnings) == (says is not None)
