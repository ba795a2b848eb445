"""How a final answer is written, before the algebra reads it: numbers, chains of equations, units,
words.

Pure text, so that the trainer's process may use it too.
"""

from __future__ import annotations

import re
from fractions import Fraction

_SCIENTIFIC = re.compile(r"(?<![\w.\\^_])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d+)(?![\w.])")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;:! ]|~|\{,\}|\s)\s*(?=\d{3}(?!\d))")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\\[,;:! ]|~|\{,\}|\s)\s*\d{3})+(?!\d)")
_FULL_STOP = re.compile(r"(?<=[\d})\]])\s*\.\s*$")
_IMAGINARY = re.compile(r"\\sqrt\s*(?:\{\s*-\s*1\s*\}|-1)")
_WORD = re.compile(r"[A-Za-z]{4,}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")
_OPTION = re.compile(r"^\s*\(?[A-E]\)\s*\S")
_FUNCTIONS = frozenset(("sqrt", "frac", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"))

_TEXT_UNIT = re.compile(
    r"\s*(?:\\[,;: !]|~)?\s*\\(?:text|mathrm|textrm|mbox|rm)\s*\{\s*([^{}]*?)\s*\}\s*"
    r"(\^\s*\{?\s*-?\d\s*\}?)?\s*$"
)
_BARE_UNIT = re.compile(r"^(.*?\d\.?)\s+([A-Za-z][A-Za-z/^0-9 ]*)$")


def _table() -> dict[str, tuple[Fraction, str, int]]:
    """Unit to (its size in the base unit, what it measures, power)."""
    named = {
        "length": {
            "m meter meters metre metres": "1", "cm centimeter centimeters": "1/100",
            "mm millimeter millimeters": "1/1000", "km kilometer kilometers": "1000",
            "in inch inches": "127/5000", "ft foot feet": "381/1250", "yd yard yards": "1143/1250",
            "mile miles mi": "201168/125",
        },
        "mass": {
            "kg kilogram kilograms": "1000", "g gram grams": "1", "mg milligram milligrams":
            "1/1000",
        },
        "time": {
            "s sec second seconds": "1", "ms millisecond milliseconds": "1/1000",
            "min minute minutes": "60", "h hr hrs hour hours": "3600", "day days": "86400",
            "week weeks": "604800",
        },
        "money": {"dollar dollars": "1", "cent cents": "1/100"},
    }  # fmt: skip
    found = {
        name: (Fraction(size), what, 1)
        for what, sizes in named.items()
        for names, size in sizes.items()
        for name in names.split()
    }
    liter = Fraction(1, 1000)
    for name in ("L", "liter", "liters", "litre", "litres"):
        found[name] = (liter, "length", 3)
    for name in ("mL", "ml", "milliliter", "milliliters"):
        found[name] = (liter / 1000, "length", 3)
    return found


UNITS = _table()
Unit = tuple[Fraction, tuple[tuple[str, int], ...]]
"""A unit's size in base units, and the power of each thing it measures."""


def plain(text: str) -> str:
    """`text` with numbers written as the algebra reads them: `1.5e3`, `1\\,000\\,000`, `42.`."""
    text = _FULL_STOP.sub("", text.strip())
    text = _GROUPED.sub(lambda match: _THOUSANDS.sub("", match[0]), text)
    text = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    return _IMAGINARY.sub("i", text)


def sides(text: str) -> list[str]:
    """The sides of a chain `a = b = c`; empty where `text` is not one chain of equations."""
    if re.search(r"[<>!:]=|=[<>]|\\(?:leq?|geq?|neq?|text|mathrm|quad|land|lor|begin)\b|==", text):
        return []
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        if character in "{([":
            depth += 1
        elif character in "})]":
            depth -= 1
        elif depth == 0 and character in ",;":
            return []
        elif depth == 0 and character == "=":
            parts.append(text[start:place])
            start = place + 1
    parts.append(text[start:])
    return [part.strip() for part in parts] if len(parts) > 1 else []


def decimals(text: str) -> int | None:
    """Digits after the point of a decimal number; None for anything else and for whole numbers."""
    match = re.fullmatch(r"[-+]?\d*\.(\d+)", text.strip())
    return len(match[1]) if match else None


def split_unit(text: str) -> tuple[str, Unit | None]:
    """(`text` without the unit it ends in, that unit); the unit is None where none is known.

    A unit stands in `\\text{}` or the like; without, it must have two letters or a fraction, since
    `3 m` may be a product.
    """
    match = _TEXT_UNIT.search(text)
    if match and match.start() > 0:
        unit = _unit(match[1] + (match[2] or ""))
        return (text[: match.start()], unit) if unit else (text, None)
    match = _BARE_UNIT.match(text)
    if match and len(match[2]) > 1:
        unit = _unit(match[2])
        if unit:
            return match[1], unit
    return text, None


def _unit(text: str) -> Unit | None:
    size = Fraction(1)
    powers: dict[str, int] = {}
    above, *below = text.split("/")
    for part, sign in ((above, 1), *((part, -1) for part in below)):
        for token in re.findall(r"[^\s*.]+", part.replace("\\cdot", " ")):
            match = re.fullmatch(r"([A-Za-z]+)(?:\^\{?(-?\d)\}?)?", token.replace(" ", ""))
            if not match or match[1] not in UNITS:
                return None
            one, what, own = UNITS[match[1]]
            power = sign * int(match[2] or 1)
            size *= one**power
            powers[what] = powers.get(what, 0) + own * power
    known = tuple(sorted((what, power) for what, power in powers.items() if power))
    return (size, known) if known else None


def doubt_about(reference: str) -> str | None:
    """Why a reference may not be one value; None for ordinary mathematics."""
    if _OPTION.match(reference):
        return "it begins with the letter of an option"
    outside = _COMMAND.sub(" ", _TEXT.sub(" ", split_unit(reference)[0]))
    words = [word for word in _WORD.findall(outside) if word.lower() not in _FUNCTIONS]
    if words:
        return f"it has words ({words[0]}), so that only the same text is right"
    rest = re.sub(r"[\\{}()\[\]$.,;\s]", "", outside)
    if not rest and re.search(r"[A-Za-z]", reference):
        return "it is words, so that only the same text is right"
    return None


def is_zero(reference: str) -> bool:
    """Whether a reference is written as a zero."""
    return re.fullmatch(r"[-+]?0*\.?0*", plain(split_unit(reference)[0]).strip()) is not None
