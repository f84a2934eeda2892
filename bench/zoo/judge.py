"""Judge: whether an ONNX file that a peer wrote runs and agrees with the original, case by case and by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converters.arrays import Arrays

CHECKOUT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(CHECKOUT)]


def judge(reference: Path, model: Path) -> str:
    """Return '' when every output that the file shares with the original agrees in every case, else why not.

    ``reference`` is the folder that the pipeline's reference step wrote: inputs and the original's outputs at sizes of
    its own choice. Names count; an output that the peer leaves out is allowed, none in common is not.
    """
    from converters.comparison import compare
    from converters.onnx_runner import OnnxRunner
    from converters.reference_cases import Reference
    from schemas.errors import ModeliumError
    from schemas.precision import Precision
    from schemas.target import DEFAULT_TOLERANCES

    decoder = model.with_name("decoder_model.onnx")
    try:
        runner = OnnxRunner(model)
        second = OnnxRunner(decoder) if model.name == "encoder_model.onnx" and decoder.is_file() else None
    except ModeliumError as error:
        return f"its file does not load: {error.args[0]}"
    opened = Reference.open(reference)
    for case, feeds, expected in opened.cases():
        feeds |= _filled(feeds, {spec.name for spec in runner.inputs})
        absent = sorted(spec.name for spec in runner.inputs if spec.name not in feeds)
        if absent:
            return f"takes an input {absent[0]!r} that the original does not"
        try:
            given = runner.run(feeds)
            if second is not None:
                given = second.run(_decoded(feeds, given))
        except ModeliumError as error:
            return f"does not run at other sizes ({case.id}): {error.args[0]}"
        shared = [name for name in expected if name in given]
        if not shared:
            return f"gives none of the original's outputs by name, but {', '.join(given)[:80]}"
        for name in shared:
            found = compare(expected[name], given[name], DEFAULT_TOLERANCES[Precision.FP32], lossy=False)
            if not found.passed:
                return f"output {name!r} {found.why} ({case.id})"
    return ""


def _decoded(feeds: Arrays, encoded: Arrays) -> Arrays:
    """Return what a decoder in a file of its own takes, named as exporters name it."""
    import numpy as np

    ids = feeds["input_ids"]
    return {
        "input_ids": feeds["decoder_input_ids"],
        "decoder_attention_mask": feeds.get("decoder_attention_mask", np.ones_like(feeds["decoder_input_ids"])),
        "encoder_hidden_states": encoded["last_hidden_state"],
        "encoder_attention_mask": feeds.get("attention_mask", np.ones_like(ids)),
    }


def _filled(feeds: Arrays, wanted: set[str]) -> Arrays:
    """Return the inputs that a transformer fills in itself where they are not given, and that a peer asks for."""
    import numpy as np

    ids = feeds.get("input_ids")
    if ids is None or ids.ndim != 2:
        return {}
    usual = {
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.broadcast_to(np.arange(ids.shape[1], dtype=ids.dtype), ids.shape),
        "global_attention_mask": np.zeros_like(ids),
    }
    return {name: array for name, array in usual.items() if name in wanted and name not in feeds}


def main() -> None:
    """Answer ``{"reference": ..., "model": ...}`` lines until there are none."""
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"why": judge(Path(asked["reference"]), Path(asked["model"]))}), flush=True)


if __name__ == "__main__":
    main()
