"""Tool calls written as Thought / Action / Action Input (ToolAlpaca).

A row has `prompt` (the tools' documentation and the question) and `answer`, a JSON list of
`{"Action": name, "Action_Input": JSON text of an object}`, and may have `id` or `idx`, `system`,
`split`; other keys are ignored.

An answer is right if its actions are the reference's, in any order, and its inputs, merged over all
calls, are too: for each argument the same values, in any order. (Keeping only an argument's last
value would accept "small, small, large" for "small, medium, large".) Numbers compare by value. A
reference action marked `[Optional]` may be omitted.

The paper's judge keeps the last value of an argument, passes over input that is not JSON or has
objects inside, and finds `Action:` anywhere; `env.grading = "paper"` judges so, for numbers that
compare with its tables. (There an `[Optional]` call is needed; the paper's own judge accepts
nothing for such a row, one of the 68 of the test file.)

Feedback reads like that of a tool server: input that is not JSON and where it breaks, unknown
actions, missing and unexpected arguments, arguments with a wrong value. It names arguments, never a
right value or a missing action.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from sdpo.chat import strip_thinking
from sdpo.config import schema
from sdpo.envs.rows import RowsEnv
from sdpo.envs.table import Line, id_of, messages_of, text_of
from sdpo.envs.text import TRUNCATED, safe
from sdpo.envs.verdicts import accepted, failed
from sdpo.records import Task, Verdict

_ACTION = re.compile(r"^[ \t]*Action[ \t]*:(.*)$", re.MULTILINE)
_INPUT = re.compile(r"^[ \t]*Action Input[ \t]*:[ \t]*", re.MULTILINE)
_TOOL = re.compile(r"^(\S+): .*\nParameters:", re.MULTILINE)
_OPTIONAL = "[Optional]"

_PAPER_ACTION = re.compile(r"Action:\s*(\w+)")
_PAPER_INPUT = re.compile(r"Action Input:\s*(\{[^}]*\})")

MAX_PROBLEMS = 5
"""Most lines of one feedback text."""

NO_ACTION = (
    "Incorrect Format: There is no action. Write a line `Action: NAME` and below it a line "
    "`Action Input: JSON`."
)
NO_INPUT = "Incorrect Format: Action {name} has no line `Action Input: JSON` below it."
BAD_JSON = "Incorrect Format: The input of action {name} is not a JSON object: {problem}."
UNKNOWN = "Unknown Action: There is no tool {name}. Tools: {tools}."
TOO_MANY = "Wrong Answer: Action {name} is called {given} times; that is too often."
NOT_NEEDED = "Wrong Answer: Action {name} is not needed."
TOO_FEW = "Wrong Answer: {count} more {calls} needed."
MISSING = "Wrong Answer: Missing argument: {names}."
EXTRA = "Wrong Answer: Unexpected argument: {names}."
LAST_COUNTS = "Wrong Answer: The calls or the last value of an argument are not as expected."
WRONG_VALUE = "Wrong Answer: The value of argument {name} is wrong: {value}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a tool.

    Example:
        Call(action="searchUser", arguments={"query": "MisterArcade"})
    """

    action: str
    arguments: Mapping[str, Any]


class Tools(RowsEnv):
    """The tool-use tasks in a file.

    Example:
        Tools(schema.ToolsEnvConfig(tasks="tooluse_test.json")).check()
    """

    def __init__(self, config: schema.ToolsEnvConfig) -> None:
        super().__init__(config)
        self._grading = config.grading

    def parse(self, line: Line) -> Task:
        """The task of one row; its reference holds every accepted list of calls, longest first."""
        prompt = text_of(line, "prompt")
        marked = _reference_calls(line)
        needed = [call for call in marked if not call.action.startswith(_OPTIONAL)]
        every = [
            Call(action=call.action.removeprefix(_OPTIONAL), arguments=call.arguments)
            for call in marked
        ]
        accepted_calls = [every] if len(needed) in (0, len(every)) else [every, needed]
        tools = dict.fromkeys(_TOOL.findall(prompt))
        return Task(
            id=id_of(line, prompt),
            messages=messages_of(line, prompt),
            reference={"calls": accepted_calls, "tools": tuple(tools)},
        )

    def judge_text(self, task: Task, text: str, *, is_truncated: bool) -> Verdict:
        """The verdict on one answer; of several accepted lists, feedback is about the nearest."""
        match self._grading:
            case "strict":
                return self._strict(task, text, is_truncated=is_truncated)
            case "paper":
                found = self._strict(task, text, is_truncated=is_truncated)
                return _as_the_paper(found, task, text)
            case _:
                assert_never(self._grading)

    def doubt(self, task: Task) -> str | None:
        """Whether the reference needs a tool or an argument that the prompt does not document."""
        documented = _documented(task.messages[-1]["content"])
        for call in task.reference["calls"][-1]:
            if call.action not in documented:
                return f"needs the tool {call.action}, which the prompt does not document"
            known = documented[call.action]
            strange = [name for name in call.arguments if known is not None and name not in known]
            if strange:
                return f"needs {call.action}'s argument {strange[0]}, which is not documented"
        return None

    def _strict(self, task: Task, text: str, *, is_truncated: bool) -> Verdict:
        calls, problem = parse_calls(strip_thinking(text))
        if problem is not None:
            if is_truncated:
                return failed("truncated", TRUNCATED, num_calls=float(len(calls)))
            return failed("incorrect_format", problem, num_calls=float(len(calls)))
        references = task.reference["calls"]
        known = set(task.reference["tools"]) | {call.action for call in references[0]}
        problems = [_problems(calls, reference) for reference in references]
        lines = min(problems, key=len)
        if not lines:
            return accepted(num_calls=float(len(calls)))
        unknown = dict.fromkeys(call.action for call in calls if call.action not in known)
        if unknown:
            tools = ", ".join(task.reference["tools"])
            lines = [UNKNOWN.format(name=safe(name), tools=tools) for name in unknown]
        if len(lines) > MAX_PROBLEMS:
            lines = [*lines[:MAX_PROBLEMS], f"... ({len(lines) - MAX_PROBLEMS} more problems)"]
        return failed("wrong_answer", "\n".join(lines), num_calls=float(len(calls)))

    def reference_answer(self, task: Task) -> str:
        """The reference's calls in the form that the prompt asks for."""
        return "\n".join(
            f"Thought: I call {call.action}.\nAction: {call.action}\n"
            f"Action Input: {json.dumps(dict(call.arguments))}"
            for call in task.reference["calls"][0]
        )

    def trivial_answer(self, task: Task) -> str:
        """A call of a tool that does not exist, without arguments."""
        return "Thought: Nothing to do.\nAction: none\nAction Input: {}"


def _documented(prompt: str) -> dict[str, set[str] | None]:
    """Tool to the names of its parameters; None where they are not JSON."""
    found: dict[str, set[str] | None] = {}
    for match in _TOOL.finditer(prompt):
        parameters, problem = _parse_object(prompt[match.end() :])
        found[match[1]] = set(parameters) if problem is None else None
    return found


def _as_the_paper(found: Verdict, task: Task, text: str) -> Verdict:
    """The verdict by the paper's rule, with our feedback where there is any: the same names after
    `Action:`, wherever they stand, and the same input, where objects without an inner object count
    and of several values the last."""
    wanted = task.reference["calls"][0]
    names = Counter(_PAPER_ACTION.findall(text))
    given: dict[str, Any] = {}
    for written in _PAPER_INPUT.findall(text):
        arguments, problem = _parse_object(written)
        if problem is None:
            given.update(arguments)
    merged: dict[str, Any] = {}
    for call in wanted:
        merged.update(call.arguments)
    if names == Counter(call.action for call in wanted) and given == merged:
        return accepted(**found.metrics)
    return failed("wrong_answer", LAST_COUNTS, **found.metrics) if found.solved else found


def parse_calls(text: str) -> tuple[list[Call], str | None]:
    """The calls in `text` up to the first malformed one, and what is wrong with that one, or
    None."""
    calls: list[Call] = []
    actions = list(_ACTION.finditer(text))
    if not actions:
        return calls, NO_ACTION
    ends = [action.start() for action in actions[1:]] + [len(text)]
    for action, end in zip(actions, ends, strict=True):
        name = action[1].strip("`*\"' \t")
        shown = safe(name)
        found = _INPUT.search(text, action.end(), end)
        if found is None:
            return calls, NO_INPUT.format(name=shown)
        arguments, problem = _parse_object(text[found.end() : end])
        if problem is not None:
            return calls, BAD_JSON.format(name=shown, problem=problem)
        calls.append(Call(action=name, arguments=arguments))
    return calls, None


def _parse_object(text: str) -> tuple[dict[str, Any], str | None]:
    """The JSON object at the start of `text`, and what is wrong with it, or None."""
    text = text.lstrip().removeprefix("```json").removeprefix("```").lstrip()
    try:
        value, _ = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text)
    except json.JSONDecodeError as error:
        return {}, f"{error.msg} at line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits, and nesting too deep for the parser.
        return {}, str(error)
    if not isinstance(value, dict):
        return {}, f"it is {safe(json.dumps(value))}"
    return value, None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _problems(calls: Sequence[Call], reference: Sequence[Call]) -> list[str]:
    """One line for each way in which `calls` differ from `reference`; empty when they are
    right."""
    given, wanted = (Counter(call.action for call in group) for group in (calls, reference))
    lines = []
    for action, surplus in (given - wanted).items():
        template = TOO_MANY if given[action] > surplus else NOT_NEEDED
        lines.append(template.format(name=safe(action), given=given[action]))
    num_missing = (wanted - given).total()
    if num_missing:
        lines.append(
            TOO_FEW.format(count=num_missing, calls="call is" if num_missing == 1 else "calls are")
        )
    # With wrong calls, their arguments would be blamed on the right ones.
    return lines or _argument_problems(_merged(calls), _merged(reference))


def _argument_problems(
    given: Mapping[str, list[Any]], wanted: Mapping[str, list[Any]]
) -> list[str]:
    lines = []
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    if missing:
        lines.append(MISSING.format(names=", ".join(missing)))
    if extra:
        lines.append(EXTRA.format(names=", ".join(map(safe, extra))))
    for name, values in given.items():
        if name in extra:
            continue
        left = list(wanted[name])
        wrong = []
        for value in values:
            match = next((i for i, other in enumerate(left) if same_json(value, other)), None)
            if match is None:
                wrong.append(value)
            else:
                left.pop(match)
        for value in wrong:
            shown = safe(json.dumps(value, ensure_ascii=False))
            lines.append(WRONG_VALUE.format(name=safe(name), value=shown))
        if left and not wrong:
            lines.append(MISSING.format(names=f"{name} (in another call)"))
    return lines


def _merged(calls: Sequence[Call]) -> dict[str, list[Any]]:
    """Argument name to its values over all calls."""
    merged: dict[str, list[Any]] = {}
    for call in calls:
        for name, value in call.arguments.items():
            merged.setdefault(name, []).append(value)
    return merged


def same_json(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal: 5 equals 5.0, but `true` does not equal 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return left == right


def _reference_calls(line: Line) -> list[Call]:
    answer = line.row.get("answer")
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise line.error("answer", f"not JSON: {error}") from error
    if not isinstance(answer, list) or not answer:
        raise line.error("answer", 'expected a list of {"Action", "Action_Input"}')
    calls = []
    for place, call in enumerate(answer):
        if not isinstance(call, dict) or set(call) != {"Action", "Action_Input"}:
            raise line.error(f"answer[{place}]", "expected the keys Action and Action_Input")
        name, arguments = call["Action"], call["Action_Input"]
        if not isinstance(name, str) or not name:
            raise line.error(f"answer[{place}].Action", "expected the name of a tool")
        problem = None
        if isinstance(arguments, str):
            arguments, problem = _parse_object(arguments)
        if problem is not None or not isinstance(arguments, dict):
            raise line.error(f"answer[{place}].Action_Input", problem or "expected an object")
        calls.append(Call(action=name, arguments=arguments))
    return calls
