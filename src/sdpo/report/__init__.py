"""A run directory to one self-contained HTML file or a page that follows it, and token credit for
terminals and pages."""

from sdpo.report.credit import credit_page, credit_text
from sdpo.report.page import write_report
from sdpo.report.watch import watch as watch_runs

__all__ = ["credit_page", "credit_text", "watch_runs", "write_report"]
