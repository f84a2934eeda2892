"""Domain: which values an input takes, as far as the model itself tells."""

from __future__ import annotations

from dataclasses import dataclass

from converters.arrays import Array


@dataclass(frozen=True)
class Domain:
    """Values an input takes. Fields that are None are not known."""

    limit: int | None = None
    """Integers are below it: rows of the embedding that they index."""
    centre: Array | None = None
    """Mean per feature (last axis), from a scaler inside the model."""
    spread: Array | None = None
    """Standard deviation per feature, beside ``centre``."""
    choices: Array | None = None
    """The categories a column was fitted on."""
    columns: tuple[Array | None, ...] = ()
    """Such categories for each feature (last axis); None for a feature without."""
    positive: bool = False
    """Numbers have to be above zero."""
    missing: bool = False
    """Numbers may be missing (NaN)."""


ANYTHING = Domain()
