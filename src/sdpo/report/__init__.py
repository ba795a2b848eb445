"""A run directory to one self-contained HTML file, and token credit for terminals and pages."""

from sdpo.report.credit import credit_page, credit_text
from sdpo.report.page import write_report

__all__ = ["credit_page", "credit_text", "write_report"]
