"""The base of every config class: frozen, closed to unknown keys, documented under each field."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen and strict about keys; values are validated when built, defaults too. Infinities and
    NaN are refused: no setting means anything at them."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )
