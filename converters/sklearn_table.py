"""Table: what goes into a step of scikit-learn, as one matrix, and the kernels of its rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.boosting_sklearn import Container
from converters.sklearn_extra import joined_inputs


class Table:
    """The table that goes in, and nodes whose numbers are of its float."""

    def __init__(self, operator: Any, writer: Container) -> None:
        """Join the operator's inputs."""
        self.writer = writer
        self.name, self.kind = joined_inputs(operator, writer)

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its one output."""
        return self.writer.node(kind, inputs, **attributes)

    def numbers(self, values: Any) -> str:
        """Return a constant of the table's float."""
        return self.writer.constant(np.asarray(values, dtype=self.kind))

    def product(self, table: str, matrix: Any) -> str:
        """Return ``table`` times a constant matrix."""
        return self("MatMul", table, self.numbers(matrix))

    def shifted(self, by: Any) -> str:
        """Return the table with one number a column taken off."""
        return self("Sub", self.name, self.numbers(np.atleast_2d(by)))


def kernel_of(table: Table, kernel: Any, basis: Any, *, gamma: Any, degree: Any, coef0: Any) -> str:
    """Return scikit-learn's ``pairwise_kernels`` of the rows and ``basis``. Raises RuntimeError for one not written."""
    basis = np.asarray(basis, dtype=np.float64)
    gamma = 1 / basis.shape[1] if gamma is None else gamma
    if kernel == "rbf":
        return table("Exp", table("Mul", squares(table, basis), table.numbers(-gamma)))
    if kernel not in ("linear", "poly", "polynomial", "sigmoid"):
        raise RuntimeError(f"The kernel {kernel!r} is not converted.")
    product = table.product(table.name, basis.T)
    if kernel == "linear":
        return product
    first = 1 if coef0 is None else coef0
    scaled = table("Add", table("Mul", product, table.numbers(gamma)), table.numbers(first))
    if kernel == "sigmoid":
        return table("Tanh", scaled)
    return table("Pow", scaled, table.numbers(3 if degree is None else degree))


def squares(table: Table, centres: Any) -> str:
    """Return the squared distances of each row from each centre, [rows, centres]."""
    axes = table.writer.constant(np.array([1], np.int64)), table.writer.constant(np.array([2], np.int64))
    apart = table("Sub", table("Unsqueeze", table.name, axes[0]), table.numbers(centres[None]))
    return table("ReduceSum", table("Mul", apart, apart), axes[1], keepdims=0)
