"""The one place of the version: `pyproject.toml` and everything that shows it read it here.

`CITATION.cff` repeats it, since its readers run no code; a test compares them.
"""

__version__ = "0.1.0"
