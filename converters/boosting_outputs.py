"""What a boosted model makes of its margins: probabilities and labels, values or scores, and the ONNX nodes for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from converters.arrays import Array
from converters.forest import GraphWriter

Link = Literal["identity", "sigmoid", "softmax", "exp", "log1p_exp", "signed_square", "step", "variance"]
Task = Literal["classification", "multilabel", "regression", "ranking"]

"""``variance``: of a mean and the logarithm of a standard deviation, the mean and the variance."""
_TWO = np.array(2, np.float32)


@dataclass(frozen=True)
class Outputs:
    """How margins become outputs. ``classes`` are int64 or unicode, empty where nothing is a class."""

    task: Task
    link: Link
    classes: Array
    scale: float = 1.0
    """Margins are multiplied by it before the link."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        if self.task in ("classification", "multilabel"):
            return ("label", "probabilities")
        return ("scores",) if self.task == "ranking" else ("prediction",)


def write_outputs(
    writer: GraphWriter, outputs: Outputs, margins: str, targets: int, *, raw: bool = False
) -> dict[str, str]:
    """Add the nodes that make ``outputs`` of ``margins`` (batch, targets), float32; return output name to tensor.

    ``raw`` leaves a classifier's margins what they are, where others calibrate its decision function.
    """
    if raw and outputs.task == "classification":
        given = write_outputs(writer, outputs, margins, targets)
        return {**given, "probabilities": margins}
    values = _linked(writer, outputs, margins)
    if outputs.task == "multilabel":
        half = writer.constant(np.array(0.5, np.float32))
        label = writer.node("Cast", [writer.node("Greater", [values, half])], to=7)
        return {"label": label, "probabilities": values}
    if outputs.task != "classification":
        return {outputs.names[0]: values}
    if targets == 1:
        one = writer.constant(np.array(1, np.float32))
        values = writer.node("Concat", [writer.node("Sub", [one, values]), values], axis=1)
    best = writer.node("ArgMax", [values], axis=1, keepdims=0)
    if np.array_equal(outputs.classes, np.arange(len(outputs.classes))):
        return {"label": best, "probabilities": values}
    return {"label": writer.node("Gather", [writer.constant(outputs.classes), best], axis=0), "probabilities": values}


def _linked(writer: GraphWriter, outputs: Outputs, margins: str) -> str:
    if outputs.scale != 1.0:
        margins = writer.node("Mul", [margins, writer.constant(np.array(outputs.scale, np.float32))])
    match outputs.link:
        case "sigmoid":
            return writer.node("Sigmoid", [margins])
        case "softmax":
            return writer.node("Softmax", [margins], axis=1)
        case "exp":
            return writer.node("Exp", [margins])
        case "log1p_exp":
            return writer.node("Softplus", [margins])
        case "signed_square":
            return writer.node("Mul", [margins, writer.node("Abs", [margins])])
        case "step":
            above = writer.node("Greater", [margins, writer.constant(np.array(0, np.float32))])
            return writer.node("Cast", [above], to=1)
        case "variance":
            mean, deviation = (writer.constant(np.array([column], np.int64)) for column in (0, 1))
            twice = writer.node("Mul", [writer.node("Gather", [margins, deviation], axis=1), writer.constant(_TWO)])
            return writer.node(
                "Concat", [writer.node("Gather", [margins, mean], axis=1), writer.node("Exp", [twice])], axis=1
            )
    return margins
