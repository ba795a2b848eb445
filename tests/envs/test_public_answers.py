"""Final answers, options and tool calls that other judges got wrong in public, with their verdicts
here. Each case names the report it comes from; those without one are neighbours of the case above.
"""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from sdpo.config import schema
from sdpo.envs.choice import Choice
from sdpo.envs.math import Math
from sdpo.envs.tools import Tools

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


# --- multiple choice ------------------------------------------------------------------------

QUESTION = "Which?\n\nA: above\nB: below\nC: beside\nD: none"
CHOICE = [
    # (source, text of an attempt, strict, as the paper), where D is right
    ("https://github.com/UKGovernmentBEIS/inspect_ai/issues/2216", "<answer>Don't know</answer>",
     False, False),
    ("https://github.com/UKGovernmentBEIS/inspect_ai/issues/2216",
     "<answer>I don't know</answer>", False, False),
    ("https://github.com/aniri15/OPD-V/issues/2",
     "<reasoning>(A) is incorrect.</reasoning><answer>D</answer>", True, True),
    ("https://github.com/aniri15/OPD-V/issues/2", "Answer: **D**", False, False),
    ("https://github.com/jundot/omlx/pull/3668", "<answer>D</answer> Note that A distracts.",
     True, True),
    ("https://github.com/EleutherAI/lm-evaluation-harness/pull/4188", "<answer>d</answer>",
     True, False),
    ("https://github.com/EleutherAI/lm-evaluation-harness/pull/4188",
     "<answer>The answer is D because a car moves.</answer>", False, False),
    ("https://github.com/chigkim/Ollama-MMLU-Pro/issues/6", "<answer>(D)</answer>", False, False),
    ("https://github.com/multimodal-art-projection/OmniBench/issues/8",
     "<answer>D. A pretty girl</answer>", False, False),
    ("https://github.com/groq/openbench/issues/348",
     "Answer seems to be A.\n<answer>\nD\n</answer>", True, True),
    ("https://github.com/NVIDIA-NeMo/Skills/pull/1526",
     "<reasoning>\\boxed{\\Delta E}</reasoning>\n<answer>D</answer>", True, True),
    ("https://github.com/openai/simple-evals/issues/33",
     "<answer>A</answer> no: <answer>D</answer>", False, True),
    # Where the paper's judge differs, from its source (verl/utils/reward_score/feedback/mcq.py)
    ("", "<answer>D</answer> <answer>D</answer>", False, True),
    ("", "<answer>D</answer> <answer>A</answer>", False, False),
    ("", "so <answer>D", False, True),
    ("", "D</answer>", False, True),
    ("", "<ANSWER>D</ANSWER>", True, False),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(CHOICE)), ids=[text for _, text, *_ in CHOICE])
def test_multiple_choice(tmp_path, place):
    _, text, *wanted = CHOICE[place]
    path = tmp_path / "choice.jsonl"
    path.write_text(json.dumps({"prompt": QUESTION, "answer": "D"}))
    for grading, is_right in zip(("strict", "paper"), wanted, strict=True):
        env = Choice(schema.ChoiceEnvConfig(tasks=str(path), eval_fraction=0, grading=grading))
        (task,) = env.load("train")
        verdict = env.judge_text(task, text, is_truncated=False)
        assert verdict.solved == is_right
        assert (verdict.feedback is None) == is_right
        assert env.check().failures == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("A: 1 kg\nB: 2 kg\nC:  2  kg", "options B and C are the same, of which one is right"),
        ("A: 1 kg\nB: 2 kg\nC: 1 kg", "options A and C are the same, neither of them right"),
        ("A: 1 kg\nB: 2 kg", None),
    ],
)
def test_twin_options_are_not_reported(tmp_path, options, says):
    path = tmp_path / "choice.jsonl"
    path.write_text(json.dumps({"id": "it", "prompt": f"Mass?\n{options}\nThink.", "answer": "B"}))
    env = Choice(schema.ChoiceEnvConfig(tasks=str(path), eval_fraction=0))
    assert env.check().warnings == ({} if says is None else {"it": says})


def test_twin_options_of_sciknoweval_are_reported(shared_data):
    path = shared_data / "sciknoweval_physics_train.json"
    env = Choice(schema.ChoiceEnvConfig(tasks=str(path)))
    assert {"237", "632", "691"} <= set(env.check().warnings)


# --- tool calls -----------------------------------------------------------------------------

TOOL_PROMPT = (
    "Tools:\nbook: Books a table.\nParameters: "
    '{"people": "integer", "place": "string"}\nOutput: x\n\nQuestion: Book for 2 at Luigi\'s.'
)
BOOKED = [{"Action": "book", "Action_Input": '{"people": 2, "place": "Luigi"}'}]


def call(arguments, action="book"):
    return f"Thought: go\nAction: {action}\nAction Input: {arguments}\n"


TOOLS = [
    # (source, text of an attempt, strict, as the paper)
    ("https://github.com/thinking-machines-lab/tinker-cookbook/issues/937",
     call('{"people": 2, "place": "Luigi", "dogs": 1}'), False, False),
    ("https://github.com/ServiceNow/AU-Harness/issues/31",
     call('{"people": 999, "place": "Luigi"}'), False, False),
    ("https://github.com/ShishirPatil/gorilla/issues/1049",
     call('{"people": 2.0, "place": "Luigi"}'), True, True),
    ("https://github.com/ShishirPatil/gorilla/issues/443", "abc", False, False),
    ("", call('{"place": "Luigi", "people": 2}'), True, True),
    # Where the paper's judge differs, from its source (verl/utils/reward_score/feedback/tooluse.py)
    ("", call('{"people": 2, "place": "Luigi"}', action="book()"), False, True),
    ("", call('{"people": 2, "place": "Luigi"} Action Input: {"people": 2}'), True, True),
    ("", call('{"people": 3, "place": "Luigi"}\nAction Input: {"people": 2}'), False, True),
    ("", call('{"people": 2, "place": "Luigi"}\nAction Input: {broken}'), True, True),
]  # fmt: skip


def tools_env(tmp_path, row, grading="strict"):
    path = tmp_path / "tools.jsonl"
    path.write_text(json.dumps({"id": "it", "prompt": TOOL_PROMPT, "answer": BOOKED, **row}))
    return Tools(schema.ToolsEnvConfig(tasks=str(path), eval_fraction=0, grading=grading))


@pytest.mark.parametrize("place", range(len(TOOLS)))
def test_tool_calls(tmp_path, place):
    _, text, *wanted = TOOLS[place]
    for grading, is_right in zip(("strict", "paper"), wanted, strict=True):
        env = tools_env(tmp_path, {}, grading)
        verdict = env.judge_text(env.load("train")[0], text, is_truncated=False)
        assert verdict.solved == is_right
        assert (verdict.feedback is None) == is_right


def test_parallel_calls_in_another_order_are_right(tmp_path):
    """https://github.com/smg-project/smg/pull/523"""
    prompt = TOOL_PROMPT.replace("Output", "Parameters").replace(
        "Question", 'pay: Pays.\nParameters: {"sum": "number"}\n\nQuestion'
    )
    answer = [*BOOKED, {"Action": "pay", "Action_Input": '{"sum": 5}'}]
    for grading in ("strict", "paper"):
        env = tools_env(tmp_path, {"answer": answer, "prompt": prompt}, grading)
        text = call('{"sum": 5}', "pay") + call('{"people": 2, "place": "Luigi"}')
        assert env.judge_text(env.load("train")[0], text, is_truncated=False).solved


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([{"Action": "getDetails", "Action_Input": "{}"}], "needs the tool getDetails"),
        ([{"Action": "book", "Action_Input": '{"filter": 1}'}], "needs book's argument filter"),
        (BOOKED, None),
    ],
)
def test_rows_that_need_what_is_not_documented_are_not_reported(tmp_path, answer, says):
    report = tools_env(tmp_path, {"answer": answer}).check()
    assert report.failures == {}
    assert (says or "") in report.warnings.get("it", "")
    assert bool(report.warnings) == (says is not None)


def test_toolalpacas_unsolvable_rows_are_reported(shared_data):
    env = Tools(schema.ToolsEnvConfig(tasks=str(shared_data / "tooluse_test.json")))
    assert {"4106", "4107", "4056"} <= set(env.check().warnings)
