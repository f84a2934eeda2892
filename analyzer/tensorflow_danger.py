"""TensorFlow operators that reach files or Python, wherever they stand: in a SavedModel or in a TFLite file."""

from __future__ import annotations

from collections.abc import Mapping

from analyzer.draft import Draft, listing
from schemas.errors import NeedsInput, Quarantined


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILES = _words(
    "ReadFile WriteFile MatchingFiles DeleteFile CopyFile SaveDataset SaveDatasetV2 LoadDataset LoadDatasetV2 "
    "ImmutableConst WholeFileReader WholeFileReaderV2 FixedLengthRecordReader FixedLengthRecordReaderV2 TextLineReader "
    "TextLineReaderV2 TFRecordReader TFRecordReaderV2 TFRecordDataset TFRecordDatasetV2 TextLineDataset "
    "FixedLengthRecordDataset FixedLengthRecordDatasetV2 CSVDataset SqlDataset FileSystemSetConfiguration "
    "RegisterDataset DatasetFromGraph WriteSummary WriteGraphSummary CreateSummaryFileWriter "
    "CreateSummaryDbWriter LMDBReader LMDBDataset"
)
"""They read or write files whose names a model chooses; no served model needs one."""
PYTHON = _words("PyFunc PyFuncStateless EagerPyFunc NumpyFunction")
"""They call Python that is registered in the process that made the model, and nowhere else."""
REMOTE = _words("RpcCall RpcServer RpcClient RpcServerStart RpcServerRegister RpcCheckStatus _Send _Recv")


def judge(draft: Draft, operators: Mapping[str, int]) -> None:
    """Refuse a model that reaches files or other processes as dangerous, and ask about one that calls Python."""
    files = sorted(FILES.intersection(operators)) + sorted(REMOTE.intersection(operators))
    if files:
        draft.refuse(
            Quarantined(
                f"Running this model reads or writes files or talks to other processes: it calls {listing(files)}.",
                hint="Nothing in it was run. Get the model from a source you trust, exported without these operators.",
            )
        )
    python = sorted(PYTHON.intersection(operators))
    if python:
        draft.refuse(
            NeedsInput(
                f"This model calls Python that is not in it ({listing(python)}). What did it call?",
                hint="No setting allows it: write that part with TensorFlow's own operators (tf.py_function and "
                "tf.numpy_function call back into the process that made the model) and export it again.",
            )
        )
