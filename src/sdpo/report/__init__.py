"""A run directory to one self-contained HTML file or a page that follows it, and token credit for
terminals and pages. Called like a function (`sdpo.report("runs/x")`) it writes the file."""

import os
import sys
from pathlib import Path
from types import ModuleType

from sdpo.report.credit import credit_page, credit_text
from sdpo.report.page import write_report
from sdpo.report.watch import watch as watch_runs

__all__ = ["credit_page", "credit_text", "watch_runs", "write_report"]


class _Callable(ModuleType):
    """This module, whose name inside `sdpo` is that of the public function."""

    def __call__(
        self, *runs: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
    ) -> Path:
        """Write the report of one run, or of several compared, and return the file (default:
        report.html in the first). A run is its folder, a `sdpo.Run`, or what `sdpo.train`
        returned. Raises `SdpoError`.

        Example:
            sdpo.report("runs/a", "runs/b", out="comparison.html")
        """
        return write_report([Path(run) for run in runs], None if out is None else Path(out))


sys.modules[__name__].__class__ = _Callable
