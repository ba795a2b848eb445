"""Settings: `RunConfig` and how it is read. Importing this loads no torch."""

from sdpo.config.schema import RunConfig

__all__ = ["RunConfig"]
