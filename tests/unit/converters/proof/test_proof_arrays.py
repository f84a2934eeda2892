from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from converters import arrays
from schemas.errors import InvalidDocument

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
VALUES = hnp.arrays(
    st.sampled_from([np.dtype(d) for d in ("float32", "float64", "float16", "int64", "int8", "uint8", "bool", "<U5")]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


@given(st.dictionaries(NAMES, VALUES, max_size=3))
def test_what_is_saved_is_loaded_with_any_name_dtype_and_shape(tmp_path_factory, kept):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    arrays.save(path, kept)
    loaded = arrays.load(path)
    assert loaded.keys() == kept.keys()
    for name, array in kept.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert np.array_equal(loaded[name], array, equal_nan=array.dtype.kind == "f")


def test_objects_are_saved_as_unicode(tmp_path):
    arrays.save(tmp_path / "a.npz", {"file": np.array([["a"], ["bc"]], dtype=object), "x": np.array([b"y"])})
    loaded = arrays.load(tmp_path / "a.npz")
    assert loaded["file"].tolist() == [["a"], ["bc"]]
    assert loaded["x"].tolist() == ["y"]


def test_an_npz_with_pickled_objects_is_refused_and_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InvalidDocument, match="not a readable"):
        arrays.load(tmp_path / "a.npz")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MAX_NPZ_BYTES", 1 << 20)
    raw = io.BytesIO()
    np.lib.format.write_array(raw, np.zeros(1 << 20, np.uint8))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", raw.getvalue())
    with pytest.raises(InvalidDocument, match="the limit is 1 MiB"):
        arrays.load(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04"])
def test_a_file_that_is_no_npz_is_refused_with_its_name(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InvalidDocument, match=r"a\.npz is not a readable"):
        arrays.load(tmp_path / "a.npz")
