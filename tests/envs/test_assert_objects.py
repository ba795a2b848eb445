"""Asserts about objects over several lines: right programs pass in every form, wrong ones fail."""

from __future__ import annotations

import pytest

from sdpo.envs.code import judge_program
from sdpo.errors import TaskError

RIGHT = """
class EmptyError(IndexError):
    pass


class Stack:
    made = 0

    def __init__(self, items=()):
        self.items = list(items)
        self.limit = 10
        Stack.made += 1
        self.number = Stack.made

    def push(self, x):
        self.items.append(x)
        return self

    def pop(self):
        if not self.items:
            raise EmptyError("empty stack")
        return self.items.pop()

    def total(self):
        return sum(self.items)

    def take(self, others):
        for other in others:
            self.push(other.pop())

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]

    def __setitem__(self, i, x):
        self.items[i] = x

    def __delitem__(self, i):
        del self.items[i]

    def __contains__(self, x):
        return x in self.items

    def __eq__(self, other):
        return isinstance(other, Stack) and self.items == other.items

    def __hash__(self):
        return hash(tuple(self.items))

    def __lt__(self, other):
        return self.total() < other.total()

    def __iadd__(self, other):
        self.items += other.items
        return self

    def __mul__(self, n):
        return Stack(self.items * n)

    def __repr__(self):
        return f"Stack({self.items})"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.items = []
"""
WRONG = RIGHT.replace("self.items.append(x)", "self.items.insert(0, x * 2)").replace(
    'EmptyError("empty', 'KeyError("empty'
)
"""Another order, other values, another exception."""

FORMS = {
    "lines": "s = Stack()\ns.push(2)\nassert s.total() == 2\ns.push(3)\nassert s.total() == 5",
    "for": "s = Stack()\nfor i in (1, 2):\n    s.push(i)\n    assert s.total() == [1, 3][i - 1]",
    "while": "s, i = Stack(), 0\nwhile i < 3:\n    s.push(i)\n    i += 1\nassert s.total() == 3",
    "objects": "a, b = Stack(), Stack([1])\na.push(1)\nassert a == b and a != Stack([2])",
    "try": "s = Stack([5])\ns.push(1)\nassert s.pop() == 1\ns.pop()\ntry:\n    s.pop()\n"
    "    assert False\nexcept IndexError as e:\n    assert str(e) == 'empty stack'",
    "raises": "import pytest\ns = Stack()\nwith pytest.raises(EmptyError):\n    s.pop()\n"
    "assert s.push(1).pop() == 1",
    "attribute": "s = Stack([1])\ns.limit = 5\ns.limit += 1\nassert s.limit == 6\n"
    "assert s.push(2).pop() == 2",
    "items": "s = Stack([1, 2])\ns.push(3)\ns[0] = 7\ndel s[1]\nassert list(s) == [7, 3]",
    "in": "s = Stack()\ns.push(1)\nassert 1 in s\nassert 5 not in s",
    "text": "s = Stack([1])\ns.push(2)\nassert f'{s}' == str(s) == 'Stack([1, 2])'",
    "list": "s = Stack()\nout = []\nfor x in (1, 2):\n    s.push(x)\n    out.append(s.total())\n"
    "assert out == [1, 3]",
    "helper": "def drain(s):\n    return [s.pop() for _ in range(len(s))]\n"
    "assert drain(Stack([1]).push(2)) == [2, 1]",
    "isinstance": "s = Stack([1])\nassert isinstance(s, Stack)\nassert s.push(3).total() == 4",
    "with": "with Stack([1]) as s:\n    s.push(2)\n    assert s.total() == 3\nassert len(s) == 0",
    "iterator": "s = Stack([1]).push(2)\nit = iter(s)\nassert next(it) == 1\nassert next(it) == 2",
    "sorted": "xs = sorted([Stack([3]), Stack([1]).push(1)])\n"
    "assert [x.total() for x in xs] == [2, 3]",
    "alias": "a = Stack([1])\nb = a\nb.push(2)\nassert a.total() == 3",
    "several": "a, b = Stack([1]), Stack([5])\na.take([b])\nassert a.total() == 6 and not b",
    "in place": "a = Stack([1])\na += Stack([2])\na *= 2\nassert a.push(3).total() == 9",
    "names": "s = Stack([1, 2])\nassert hasattr(s, 'push') and type(s).__name__ == 'Stack'\n"
    "for op, x in [('push', 4), ('push', 5)]:\n    getattr(s, op)(x)\nassert s.total() == 12",
    "count": "a = Stack()\nb = Stack()\nb.limit = 1\nassert b.number - a.number == 1\n"
    "assert b.push(1).total() == 1",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
    "        self.assertEqual(Stack().push(1).total(), 1)\nT('test_it').test_it()",
    "takes another way": "s = Stack()\nfor i in range(3):\n    s.push(1)\n"
    "    while s.total() < 2:\n        s.push(1)\nassert s.total() == 4",
}


def task(test, solution=RIGHT):
    return {
        "id": "t", "prompt": "p", "kind": "asserts", "entry_point": "Stack",
        "tests": {"public": [test]}, "reference_solution": solution,
    }  # fmt: skip


def judged(test, program):
    return judge_program(task(test), program, split="public")


@pytest.mark.parametrize("form", FORMS)
def test_right_programs_pass_and_wrong_ones_do_not(form):
    """Of these, all but the first were refused or failed by every program."""
    assert judged(FORMS[form], RIGHT).solved
    verdict = judged(FORMS[form], WRONG)
    assert verdict.info["category"] in ("wrong_answer", "runtime_error")
    assert verdict.feedback


def test_another_right_program_passes():
    linked = RIGHT.replace(
        "return self.items.pop()", "*self.items, x = self.items\n        return x"
    )
    assert linked != RIGHT
    assert all(judged(test, linked).solved for test in (FORMS["helper"], FORMS["try"]))


def test_feedback_shows_the_test_and_what_was_raised():
    broken = RIGHT.replace("return sum(self.items)", "return sum(self.itmes)")
    verdict = judged(FORMS["for"], broken)
    assert verdict.info["category"] == "runtime_error"
    assert "AttributeError" in verdict.feedback
    assert "s.push(i)" in verdict.feedback


def test_an_object_that_equals_everything_is_no_answer():
    always = (
        "class Any:\n    def __eq__(self, other): return True\n"
        "    def __sub__(self, other): return 0\n    def __bool__(self): return True\n"
        "class Stack:\n    def __init__(self, *a): pass\n    def push(self, x): return self\n"
        "    def total(self): return Any()\n    def pop(self): return Any()\n"
        "    def __len__(self): return 1\n"
    )
    for form in ("for", "list", "helper", "alias"):
        verdict = judged(FORMS[form], always)
        assert not verdict.solved
        assert "plain data" in verdict.feedback


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ("s = Stack()\nassert s.push(1) is s", "are the same cannot be seen"),
        (
            "class Big(Stack):\n    pass\nassert Big([1]).total() == 1",
            "a subclass of the program's",
        ),
        ("s = Stack()\nb = s\nassert b == [1]", "compared with plain data"),
        ("s = Stack()\nb = s\nassert b.total() == 1", "AssertionError"),
    ],
)
def test_what_cannot_be_judged_is_refused(test, says):
    with pytest.raises(TaskError, match=says):
        judged(test, RIGHT)


def test_without_a_reference_it_is_refused_and_not_misjudged():
    """Objects compared, items set and the like failed every program without a word."""
    for form in ("objects", "attribute", "items", "in", "text", "iterator", "alias"):
        with pytest.raises(TaskError, match="need a reference_solution"):
            judge_program(
                {k: v for k, v in task(FORMS[form]).items() if k != "reference_solution"},
                RIGHT,
                split="public",
            )
