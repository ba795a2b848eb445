"""When two parsed formulas are the same value; what math-verify's own comparison leaves open.

math-verify rounds floats and evaluated expressions to six decimals, so that 0 is as good as any
small number: here such a match counts only within a relative error. And of `41 = 42` it takes the
last side: here a chain whose sides are different numbers is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sdpo.envs.math_forms import decimals, plain, sides, split_unit

RELATIVE_ERROR = 2e-6
"""Allowed between numbers that math-verify takes for equal: six digits, as it rounds to."""
PERCENT = "%"
"""Where one side has it, both 50 and 0.5 are 50%."""
DIGITS = 30

Parse = Callable[[str], list[Any]]
Verify = Callable[[list[Any], list[Any]], bool]


def same(reference: str, answer: str, parse: Parse, verify: Verify) -> tuple[bool, list[Any]]:
    """(whether `answer` is right, what was read of it)."""
    wanted, unit = split_unit(plain(reference))
    given, own_unit = split_unit(plain(answer))
    read = parse(given)
    if not read:
        return False, read
    if unit is not None and own_unit is not None and unit != own_unit:
        if unit[1] != own_unit[1]:
            return False, read
        ratio = own_unit[0] / unit[0]
        read = parse(f"({given}) \\times \\frac{{{ratio.numerator}}}{{{ratio.denominator}}}")
    gold = parse(wanted)
    if not verify(gold, read):
        return False, read
    # math-verify also compares the texts, which may be all that it could read.
    if PERCENT not in wanted + given and _differ(gold[0], read[0]):
        return False, read
    return not _is_broken(sides(given), parse, verify), read


def _is_broken(chain: Sequence[str], parse: Parse, verify: Verify) -> bool:
    """Whether two sides of a chain are numbers and not the same."""
    numbers = []
    for side in chain:
        read = parse(side)
        if read and _number(read[0]) is not None:
            numbers.append((side, read))
    return any(
        not _agree(numbers[i], other, verify)
        for i in range(len(numbers))
        for other in numbers[i + 1 :]
    )


def _agree(one: tuple[str, list[Any]], other: tuple[str, list[Any]], verify: Verify) -> bool:
    if verify(one[1], other[1]) and not _differ(one[1][0], other[1][0]):
        return True
    places = [count for count in (decimals(one[0]), decimals(other[0])) if count is not None]
    left, right = _number(one[1][0]), _number(other[1][0])
    assert left is not None
    assert right is not None
    # `1/3 = 0.333`: one side rounds the other.
    return bool(places) and abs(left - right) <= 0.5001 * 10.0 ** -min(places)


def _differ(gold: Any, answer: Any) -> bool:
    """Whether two formulas that were taken for equal are numbers, or hold numbers, that only
    rounding made equal."""
    gold, answer = _value(gold), _value(answer)
    left, right = _number(gold), _number(answer)
    if left is not None and right is not None:
        return bool(abs(left - right) > RELATIVE_ERROR * max(abs(left), abs(right)))
    parts = [_parts(each) for each in (gold, answer)]
    if parts[0] is None or parts[1] is None or len(parts[0]) != len(parts[1]):
        return False
    return any(map(_differ, parts[0], parts[1]))


def _value(formula: Any) -> Any:
    """`x = 3` is about 3."""
    is_named = type(formula).__name__ == "Equality" and formula.lhs.is_Symbol
    return formula.rhs if is_named else formula


def _number(formula: Any) -> Any:
    """The value of a formula without variables, `DIGITS` digits of it; None for others."""
    if not getattr(formula, "is_number", False):
        return None
    value = formula.doit().evalf(DIGITS)
    if not value.is_number or not value.is_finite:
        return None
    # Precision 1 is sympy's way to say that nothing but zero was found in all its digits.
    return value * 0 if value.is_Float and value._prec == 1 else value


def _parts(formula: Any) -> list[Any] | None:
    """The members of a set (by size), tuple, matrix or interval; None for anything else."""
    name = type(formula).__name__
    if name == "FiniteSet":
        members = [(member, _number(member)) for member in formula.args]
        if any(number is None or not number.is_real for _, number in members):
            return None
        return [member for member, number in sorted(members, key=lambda pair: float(pair[1]))]
    if name in ("Tuple", "Interval"):
        return list(formula.args[:2] if name == "Interval" else formula.args)
    return list(formula) if hasattr(formula, "shape") and hasattr(formula, "rows") else None
