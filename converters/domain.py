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
    rows: Array | None = None
    """Whole rows that a model remembers, of which samples are near: far from them it knows nothing."""
    choices: Array | None = None
    """The categories a column was fitted on."""
    columns: tuple[Array | None, ...] = ()
    """Such categories for each feature (last axis); None for a feature without."""
    last: int | None = None
    """The last integer of every row is this one and no other is, as models want that read the end of the text."""
    positive: bool = False
    """Numbers have to be above zero."""
    missing: bool = False
    """Numbers may be missing (NaN)."""
    value: Array | None = None
    """The one value that is known to run: a shape, an axis or an index, which no random number may replace."""


ANYTHING = Domain()
