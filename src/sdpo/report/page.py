"""Data to one HTML file that needs nothing else: styles, scripts, Plotly and the run's data inside.

Data and Plotly are gzip in base64: a third of their size, and no byte of model output can end a
script element. The page's own content policy forbids every connection; scripts put text in with
textContent only. The page that follows a run (watch.py) is the same one without data, and may ask
the server that it came from.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import html
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo.errors import ConfigError, SdpoError
from sdpo.files import atomic_write
from sdpo.metrics.writer import run_folders
from sdpo.report.data import load_report
from sdpo.report.packed import gzip_json

ASSETS = Path(__file__).parent / "assets"
_STYLES = ("base.css", "report.css")
_SCRIPTS = (
    "util.js",
    "series.js",
    "panels.js",
    "credit.js",
    "charts.js",
    "panelgrid.js",
    "verdicts.js",
    "attempt.js",
    "rollouts.js",
    "credits.js",
    "cost.js",
    "settings.js",
    "discovery.js",
    "overview.js",
    "report.js",
)


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or of several compared, and return its path (default:
    report.html in the first).

    Raises `ConfigError` when a directory is not a run and `SdpoError` when the file cannot be
    written.
    """
    if not run_dirs:
        raise ConfigError("report needs at least one run directory")
    data = load_report([run for path in run_dirs for run in run_folders(path)])
    target = out or run_dirs[0] / "report.html"
    page = _render(data)
    try:
        with atomic_write(target) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SdpoError(f"cannot write {target}: {error.strerror}; choose another --out") from error
    return target


def live_page(names: Sequence[str], token: str) -> str:
    """The page without data, which asks its own server for them; `token` marks its scripts."""
    return _page(names, data="", live="true", connect="connect-src 'self'; ", token=token)


def _render(data: Mapping[str, Any]) -> str:
    parts = [*data["runs"], *data["discoveries"]]
    payload = base64.b64encode(gzip_json(data)).decode()
    return _page(
        [part["name"] for part in parts], data=payload, live="", connect="", token=nonce(payload)
    )


def _page(names: Sequence[str], *, data: str, live: str, connect: str, token: str) -> str:
    names = list(dict.fromkeys(names))
    return fill(
        "report.html",
        {
            "title": html.escape(names[0] if len(names) == 1 else f"{len(names)} runs compared"),
            "subtitle": html.escape("" if len(names) == 1 else ", ".join(names)),
            "nonce": token,
            "connect": connect,
            "live": live,
            "css": read_assets(_STYLES),
            "js": read_assets(_SCRIPTS),
            "data": data,
            "plotly": _plotly(),
        },
    )


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with every `{{ name }}` replaced; values are inserted as they are and not
    searched again."""
    text = (ASSETS / template).read_text(encoding="utf-8")
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: values[match[1]], text)


def read_assets(names: Sequence[str]) -> str:
    """The named files one after the other."""
    return "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in names)


def nonce(data: str) -> str:
    """Marks the page's own scripts. Taken from the content, so that equal runs give equal files."""
    return hashlib.sha256(data.encode()).hexdigest()[:32]


def pack(data: bytes) -> str:
    """gzip in base64; without a timestamp, so that equal data are equal text."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


@functools.cache
def _plotly() -> str:
    return pack(plotly_script())


def plotly_script() -> bytes:
    """The chart library from Plotly's Python package, found without importing it."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ConfigError("the report needs the package plotly; pip install plotly")
    return (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_bytes()
