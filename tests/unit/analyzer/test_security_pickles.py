"""Hostile pickles as bytes: they are written by hand, disassembled, and never loaded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from analyzer.pickle_allowlist import Judgement, allowed, judge
from analyzer.pickle_scan import globals_of
from analyzer.security import scan
from analyzer.traced_values import Global
from schemas.descriptor import SecurityFinding, Severity

D, U = Severity.DANGER, Severity.UNKNOWN


def text(value: str) -> bytes:
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def call(module: str, name: str, args: bytes = b"(" + text("id") + b"t") -> bytes:
    return stack_global(module, name) + args + b"R"


def p4(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def scanned(
    tmp_path: Path, data: bytes, name: str = "model.bin", **options: tuple[str, ...]
) -> tuple[SecurityFinding, ...]:
    path = tmp_path / name
    path.write_bytes(data)
    return scan(path, **options)  # type: ignore[arg-type]


def worst(found: tuple[SecurityFinding, ...]) -> Severity | None:
    return found[0].severity if found else None


_DANGEROUS = """
    os:system posix:system nt:system subprocess:Popen sys:exit builtins:eval builtins:exec builtins:compile
    builtins:getattr builtins:__import__ builtins:open builtins:map builtins:type builtins:__getattribute__
    builtins:object.__getattribute__ importlib:import_module importlib.machinery:SourceFileLoader runpy:run_path
    pty:spawn socket:create_connection shutil:rmtree ctypes:CDLL torch.hub:load
    torch.utils.cpp_extension:load_inline torch.utils.model_zoo:load_url torch:load torch.serialization:load
    torch.jit:load torch.ops:load_library torch.fx.graph_module:reduce_graph_module torch.utils.collect_env:run
    torch._inductor.codecache:compile_file torch.utils.bottleneck.__main__:run_autograd_prof
    torch.distributed.rpc:remote torch.utils.data.datapipes.utils.decoder:basichandlers
    torch._dynamo.guards:GuardBuilder.get cProfile:run cProfile:runctx profile:Profile.run pydoc:locate
    pydoc:pipepager timeit:timeit code:InteractiveInterpreter.runcode pdb:run bdb:Bdb.run doctest:debug_script
    trace:Trace.run idlelib.autocomplete:AutoComplete.get_entity idlelib.pyshell:ModifiedInterpreter.runcommand
    asyncio.unix_events:_UnixSubprocessTransport._start asyncio:create_subprocess_shell webbrowser:open pip:main
    pip._internal.cli.main:main ensurepip:_run_pip venv:create lib2to3.pgen2.grammar:Grammar.loads
    numpy.testing._private.utils:runstring numpy.testing:measure numpy.f2py.crackfortran:getlincoef
    numpy.f2py:compile numpy.distutils.exec_command:exec_command numpy:load numpy.lib.npyio:load numpy:vectorize
    numpy.core:_ufunc_reconstruct numpy._core:_ufunc_reconstruct _pickle:loads pickle:loads marshal:loads dill:loads
    joblib:load joblib.numpy_pickle:load joblib.memory:Memory pandas:read_pickle pandas:eval
    pandas.io.pickle:read_pickle types:FunctionType types:CodeType operator:attrgetter operator:methodcaller
    _operator:attrgetter functools:reduce itertools:starmap linecache:getlines urllib.request:urlopen
    http.client:HTTPSConnection ssl:get_server_certificate smtplib:SMTP ftplib:FTP
    multiprocessing.util:spawnv_passfds multiprocessing:Process logging.config:_resolve logging.config:dictConfig
    zipimport:zipimporter _posixsubprocess:fork_exec signal:raise_signal gc:get_objects sqlite3:connect
    site:execsitecustomize test.support.script_helper:assert_python_ok distutils.spawn:spawn
    distutils.file_util:write_file uuid:_get_command_stdout _aix_support:_read_cmd_output _osx_support:_read_output
    shelve:open io:FileIO _io:FileIO collections:namedtuple sklearn.utils:os.system torch:hub.load torch:os.system
    collections:OrderedDict.__class__ sklearn.base:BaseEstimator.__init__.__globals__ numpy:ndarray.__reduce__
    codecs:sys.modules dataclasses:sys.modules joblib.externals.loky.process_executor:Popen
    sklearn.datasets:fetch_openml
"""
DANGEROUS_GLOBALS = [
    *(tuple(pair.split(":")) for pair in _DANGEROUS.split()),
    ("\u043es", "system"),  # a Cyrillic o
    ("os\u200b", "system"),
    ("\uff4fs", "system"),  # a full-width o
]
_ONLY_UNKNOWN = {"_get_command_stdout", "_read_cmd_output", "_read_output"}


@pytest.mark.parametrize(("module", "name"), DANGEROUS_GLOBALS)
def test_a_dangerous_global_is_danger_in_every_spelling(tmp_path: Path, module: str, name: str) -> None:
    least = {D, U} if name in _ONLY_UNKNOWN else {D}
    bodies = {
        "stack global": p4(call(module, name)),
        "global": b"\x80\x04c" + f"{module}\n{name}\n".encode() + b"(" + text("id") + b"tR.",
        "protocol 0": b"c" + f"{module}\n{name}\n".encode() + b"(S'id'\ntR.",
        "newobj": p4(stack_global(module, name) + b")\x81"),
        "obj": p4(b"(" + stack_global(module, name) + text("id") + b"o"),
        "no call": p4(stack_global(module, name)),
        "popped": p4(stack_global(module, name) + b"0N"),
        "truncated after reduce": b"\x80\x04" + call(module, name),
        "junk after reduce": b"\x80\x04" + call(module, name) + b"\xff\xff\xff",
        "as a dict value": p4(b"}" + text("a") + call(module, name) + b"s"),
    }
    if module.isascii():
        bodies["inst"] = b"(S'id'\ni" + f"{module}\n{name}\n".encode() + b"."
    for kind, data in bodies.items():
        assert worst(scanned(tmp_path, data)) in least, kind


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("sklearn_evil", "Thing"),
        ("sklearn", "evil"),
        ("sklearn.ensemble._forest", "evil_function"),
        ("torch_evil", "x"),
        ("sklearn.ensemble", "_forest.RandomForestClassifier"),
        ("torch", "_utils._rebuild_tensor_v2"),
        ("numpyy", "ndarray"),
        ("collections", "ordereddict"),
        ("Collections", "OrderedDict"),
        ("collections", "OrderedDict "),
        (" collections", "OrderedDict"),
        ("__main__", "Net"),
        ("mymodel", "Net"),
        ("functools", "partialmethod"),
        ("operator", "itemgetter"),
        ("__torch__", "Net"),
        ("torch.storage", "_load_from_bytes"),
        ("sklearn.utils", "parallel_backend"),
        ("", ""),
        ("collections.", "OrderedDict"),
        ("re", "_compile"),
        ("xgboost.sklearn", "xgb_model_doc"),
        ("xgboost.callback", "TrainingCallback"),
        ("lightgbm.basic", "Dataset"),
        ("catboost.core", "Pool"),
    ],
)
def test_a_global_that_only_looks_allowed_is_not_clean(tmp_path: Path, module: str, name: str) -> None:
    found = scanned(tmp_path, p4(call(module, name)))
    assert worst(found) in (U, D)
    assert found[0].code == "pickle-global"


def test_an_unknown_global_is_named_and_can_be_allowed_by_the_operator(tmp_path: Path) -> None:
    data = p4(call("mymodel", "Net"))
    (finding,) = scanned(tmp_path, data)
    assert (finding.severity, finding.subject) == (U, "mymodel.Net")
    (lifted,) = scanned(tmp_path, data, allowed_globals=("mymodel.Net",))
    assert lifted.severity is Severity.INFO


def test_no_setting_allows_a_dangerous_global(tmp_path: Path) -> None:
    assert worst(scanned(tmp_path, p4(call("os", "system")), allowed_globals=("os.system", "posix.system"))) is D


def test_python_2_names_are_judged_as_what_they_are_mapped_to(tmp_path: Path) -> None:
    assert worst(scanned(tmp_path, b"c__builtin__\neval\n(S'1'\ntR.")) is D
    assert worst(scanned(tmp_path, b"ccommands\ngetoutput\n(S'1'\ntR.")) is D
    assert worst(scanned(tmp_path, b"cexceptions\nos\n.")) is D
    assert scanned(tmp_path, b"\x80\x02c__builtin__\nset\n]\x85R.") == ()
    assert worst(scanned(tmp_path, b"\x80\x04c__builtin__\nset\n]\x85R.")) is D


MEMO_TRICKS = {
    "memoize and get": text("os") + b"\x94" + text("system") + b"\x94" + b"0" + b"0" + b"h\x00h\x01\x93",
    "put and get as text": text("os") + b"p7\n0" + text("system") + b"p8\n0g7\ng8\n\x93",
    "long binput": text("os")
    + b"r\x01\x02\x00\x000"
    + text("system")
    + b"j\x01\x02\x00\x00"
    + b"q\x05"
    + b"0j\x01\x02\x00\x00"
    + text("system")
    + b"\x93",
    "dup": text("os") + b"2" + b"0" + text("system") + b"\x93",
    "overwritten memo": text("collections")
    + b"q\x00"
    + b"0"
    + text("os")
    + b"q\x00"
    + b"0h\x00"
    + text("system")
    + b"\x93",
    "string opcodes": b"S'os'\nS'system'\n\x93",
    "escaped string": b"S'\\x6fs'\nS'sys\\x74em'\n\x93",
    "short string": b"U\x02osU\x06system\x93",
    "long string": b"T\x02\x00\x00\x00osT\x06\x00\x00\x00system\x93",
    "unicode line": b"V\\u006fs\nVsystem\n\x93",
    "binunicode8": b"\x8d\x02" + b"\0" * 7 + b"os\x8d\x06" + b"\0" * 7 + b"system\x93",
    "through a tuple and pop mark": b"(K\x01K\x021" + text("os") + text("system") + b"\x93",
    "mark and pop": b"(0" + text("os") + text("system") + b"\x93",
}


@pytest.mark.parametrize("trick", MEMO_TRICKS)
def test_a_name_fetched_from_the_memo_is_seen(tmp_path: Path, trick: str) -> None:
    found = scanned(tmp_path, p4(MEMO_TRICKS[trick] + b"(" + text("id") + b"tR"))
    assert worst(found) is D
    assert {f.subject for f in found} >= {"os.system"}


@pytest.mark.parametrize(
    "body",
    [
        stack_global("builtins", "str") + text("os") + b"\x85R" + text("system") + b"\x93",  # a name that is a result
        stack_global("_codecs", "encode") + text("bf") + text("rot13") + b"\x86R" + text("system") + b"\x93",
        b"C\x02os" + text("system") + b"\x93",
        b"U\x02\xff\xfe" + text("x") + b"\x93",
        b"Nq\x00" + text("x") + b"\x93",
        b"K\x01Q" + text("x") + b"\x93",
        b"\x82\x01)R",  # the extension registry
        b"\x83\x01\x00)R",
        b"\x84\x01\x00\x00\x00)R",
        stack_global("collections", "OrderedDict") + b")R)R",  # calls a result
        b"K\x01Q)R",
        text("a") + b")R",
        stack_global("sklearn.linear_model._base", "LinearRegression")
        + b"}"
        + text("predict")
        + b"Nsb",  # patches a class
        stack_global("collections", "OrderedDict") + text("a") + b"Ns",
        stack_global("collections", "OrderedDict") + b"(K\x01e",
        stack_global("collections", "OrderedDict") + b"K\x01a",
    ],
)
def test_what_cannot_be_told_from_the_bytes_is_danger(tmp_path: Path, body: bytes) -> None:
    assert worst(scanned(tmp_path, p4(body))) is D


def test_frames_that_lie_are_danger_and_hide_nothing(tmp_path: Path) -> None:
    inside = b"\x95" + struct.pack("<Q", 3) + call("os", "system")
    assert worst(scanned(tmp_path, p4(inside))) is D
    nested = b"\x95" + struct.pack("<Q", 50) + b"\x95" + struct.pack("<Q", 2) + b"N0N"
    assert worst(scanned(tmp_path, p4(nested))) is D
    huge = b"\x95" + struct.pack("<Q", 1 << 60) + call("os", "system")
    assert worst(scanned(tmp_path, p4(huge))) is D


def test_protocols_may_change_in_the_middle(tmp_path: Path) -> None:
    assert worst(scanned(tmp_path, b"\x80\x02]\x80\x04" + call("os", "system") + b"\x80\x00.")) is D
    assert worst(scanned(tmp_path, call("os", "system") + b".")) is D


def test_pickles_behind_a_harmless_one_are_seen(tmp_path: Path) -> None:
    assert worst(scanned(tmp_path, b"\x80\x02N." + p4(call("os", "system")))) is D
    assert worst(scanned(tmp_path, b"\x80\x02N.cos\nsystem\n(S'id'\ntR.")) is D
    assert worst(scanned(tmp_path, b"\x80\x02N.\x01\x02\x03 what is this")) is U
    assert scanned(tmp_path, b"\x80\x02N.\0\0\0\0") == ()


def legacy_torch(body: bytes, keys: bytes = b"\x80\x02].") -> bytes:
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return magic + b"\x80\x02" + body + b"." + keys


def test_a_legacy_torch_file_is_followed_to_its_storages(tmp_path: Path) -> None:
    assert worst(scanned(tmp_path, legacy_torch(b"cos\nsystem\nX\x02\0\0\0id\x85R"))) is D
    assert worst(scanned(tmp_path, legacy_torch(b"}", b"\x80\x02" + b"cos\nsystem\nX\x02\0\0\0id\x85R."))) is D
    assert scanned(tmp_path, legacy_torch(b"}") + b"\x01\x02raw storage bytes cos\nsystem\n.") == ()


@pytest.mark.parametrize(
    "pack",
    [
        zlib.compress,
        gzip.compress,
        bz2.compress,
        lzma.compress,
        lambda d: lzma.compress(d, lzma.FORMAT_ALONE),
        lambda d: zlib.compress(zlib.compress(d)),
        lambda d: gzip.compress(b"") + gzip.compress(d),
        lambda d: gzip.compress(d)[:-6],
        lambda d: zlib.compress(d)[:-4] + b"\0\0\0\0",
        lambda d: gzip.compress(d[:9]) + gzip.compress(d[9:]),
    ],
)
@pytest.mark.parametrize("name", ["model.joblib", "model.onnx", "weights.safetensors", "picture.png", "noname"])
def test_a_packed_pickle_under_any_name_is_seen(tmp_path: Path, pack, name: str) -> None:  # type: ignore[no-untyped-def]
    assert worst(scanned(tmp_path, pack(p4(call("os", "system"))), name)) is D


def test_a_pickle_inside_a_constant_is_seen(tmp_path: Path) -> None:
    inner = p4(call("os", "system"))
    loads = stack_global("torch.storage", "_load_from_bytes")
    constants = {
        "bytes": b"C" + bytes([len(inner)]) + inner,
        "binbytes": b"B" + struct.pack("<I", len(inner)) + inner,
        "bytearray": b"\x96" + struct.pack("<Q", len(inner)) + inner,
        "string": b"U" + bytes([len(inner)]) + inner,
        "latin-1": b"X" + struct.pack("<I", len(inner.decode("latin-1").encode())) + inner.decode("latin-1").encode(),
        "packed": b"B" + struct.pack("<I", len(gzip.compress(inner))) + gzip.compress(inner),
        "protocol 0": b"C\x17" + b"cos\nsystem\n(S'id..'\ntR.",
    }
    for kind, constant in constants.items():
        assert "os.system" in {f.subject for f in scanned(tmp_path, p4(loads + constant + b"\x85R"))}, kind


def joblib_wrapper(shape: bytes, dtype: str, state: bytes | None = None, *, padding: bool = True) -> bytes:
    """A protocol 2 array wrapper up to the BUILD after which joblib reads the array's bytes."""
    flags = state or b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    numpy_dtype = b"cnumpy\ndtype\nU" + bytes([len(dtype)]) + dtype.encode() + b"K\x00K\x01\x87R" + flags + b"b"
    entries = b"(X\x05\0\0\0shape" + shape + b"X\x05\0\0\0dtype" + numpy_dtype
    if padding:
        entries += b"X\x1b\0\0\0numpy_array_alignment_bytesK\x10"
    return b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}" + entries + b"ub"


def joblib_file(wrapper: bytes, data: bytes, after: bytes = b".") -> bytes:
    return b"\x80\x02" + wrapper + b"\x04\xff\xff\xff\xff" + data + after


def test_array_bytes_of_joblib_are_stepped_over_and_what_follows_is_seen(tmp_path: Path) -> None:
    wrapper = joblib_wrapper(b"K\x02K\x03\x86", "f8")
    looks_bad = b"cos\nsystem\n(S'id'\ntR.".ljust(48, b"\0")
    assert scanned(tmp_path, joblib_file(wrapper, looks_bad)) == ()
    attack = b"0cos\nsystem\nU\x02id\x85R."
    assert worst(scanned(tmp_path, joblib_file(wrapper, looks_bad, attack))) is D
    assert worst(scanned(tmp_path, joblib_file(wrapper, b"\0" * 47))) is U


OBJECT_FLAGS = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft"
LYING_FLAGS = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x01t"


def test_an_object_array_of_joblib_is_a_pickle_of_its_own(tmp_path: Path) -> None:
    wrapper = joblib_wrapper(b"K\x01\x85", "O8", OBJECT_FLAGS)
    assert worst(scanned(tmp_path, b"\x80\x02" + wrapper + p4(call("os", "system")) + b".")) is D
    assert scanned(tmp_path, b"\x80\x02" + wrapper + p4(b"N") + b".") == ()


@pytest.mark.parametrize(
    "wrapper",
    [
        joblib_wrapper(b"K\x01\x85", "f8", LYING_FLAGS),
        joblib_wrapper(b"K\x01\x85", "f8", b"(K\x03U\x01<NNNK\x64J\xff\xff\xff\xffK\x00t"),
        joblib_wrapper(b"J\xff\xff\xff\xff\x85", "f8"),
        joblib_wrapper(b"\x8a\x05\0\0\0\0\x01\x8a\x05\0\0\0\0\x01\x86", "f8"),  # 2**32 squared wraps to nothing
        joblib_wrapper(b"U\x012\x85", "f8"),
        joblib_wrapper(b"G\0\0\0\0\0\0\0\0\x85", "f8"),
        joblib_wrapper(b"]K\x01a", "f8"),
        joblib_wrapper(b"K\x01\x85", "f8,O"),
        joblib_wrapper(b"K\x01\x85", "f7"),
        joblib_wrapper(b"K\x01\x85", "V8", b"(K\x03U\x01|NNNK\x08K\x01K\x01t"),
    ],
)
def test_an_array_whose_size_is_unclear_is_not_clean(tmp_path: Path, wrapper: bytes) -> None:
    assert worst(scanned(tmp_path, joblib_file(wrapper, b"\0" * 8))) in (U, D)


def test_an_array_wrapper_is_danger_where_joblib_does_not_read(tmp_path: Path) -> None:
    wrapper = joblib_wrapper(b"K\x40\x85", "u1")
    hidden = joblib_file(wrapper, b"0cos\nsystem\nU\x02id\x85R.".ljust(64, b"\0"))
    assert worst(scanned(tmp_path, b"\x80\x02" + joblib_wrapper(b"K\x01\x85", "O8", OBJECT_FLAGS) + hidden + b".")) is D
    assert worst(scanned(tmp_path, legacy_torch(wrapper + b"\x01\xff" + b"\0" * 64))) is D
    padded_with_code = b"\x80\x02" + wrapper + b"0cos\nsystem\nU\x02id\x85R.".ljust(49 + 64, b"\0") + b"."
    assert worst(scanned(tmp_path, padded_with_code)) is D


def test_a_broken_pickle_is_unknown_and_says_where(tmp_path: Path) -> None:
    (finding,) = scanned(tmp_path, pickle.dumps(list(range(1000)))[:-40])
    assert (finding.code, finding.severity) == ("pickle-broken", U)
    assert "at byte" in finding.where


def test_text_is_no_pickle(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "labels.txt").write_text("cat\ndog\nhorse\n")
    (folder / "vocab.txt").write_text("(\ni\nam\nc\n")
    (folder / "README.md").write_text("import os; os.system('x')\n")
    assert scan(folder) == ()


def test_globals_are_told_in_order_with_protocol_and_end() -> None:
    told = globals_of(p4(call("os", "system") + b"0" + call("collections", "OrderedDict")) + b"rest")
    assert told.dotted == ("os.system", "collections.OrderedDict")
    assert (told.protocol, told.complete, told.errors) == (4, True, ())
    cut = globals_of(io.BytesIO(p4(call("os", "system"))[:-1]))
    assert (cut.complete, cut.dotted) == (False, ("os.system",))
    assert cut.errors


# What hypothesis checks: whatever the bytes, an unpickler never asks for more than the scan reports.

_FRAGMENTS = [
    *(bytes([c]) for c in b"().012NR]}abdelostu\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94Q"),
    text("os"),
    text("system"),
    text("collections"),
    text("OrderedDict"),
    text("evil"),
    text("hub.load"),
    b"K\x01",
    b"K\x00",
    b"M\x01\x00",
    b"h\x00",
    b"h\x01",
    b"g0\n",
    b"q\x00",
    b"q\x01",
    b"p0\n",
    b"p1\n",
    b"j\x00\x00\x00\x00",
    b"r\x01\x00\x00\x00",
    b"ccollections\nOrderedDict\n",
    b"cevil\nthing\n",
    b"cos\nsystem\n",
    b"ievil\nthing\n",
    b"icollections\nOrderedDict\n",
    b"c__builtin__\nset\n",
    b"cnumpy\ndtype\n",
    b"\x80\x02",
    b"\x80\x04",
    b"\x80\x05",
    b"\x80\x00",
    b"\x82\x01",
    b"U\x02os",
    b"S'evil'\n",
    b"Vevil\n",
    b"I0\n",
    b"I01\n",
    b"F1.5\n",
    b"L3L\n",
    b"P1\n",
    b"C\x02ab",
    b"B\x02\0\0\0ab",
    b"\x95\x05\0\0\0\0\0\0\0",
    b"\x95\x00\0\0\0\0\0\0\0",
    b"\x8a\x01\x05",
    b"G\0\0\0\0\0\0\0\0",
    b"J\x01\0\0\0",
    b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n",
    b"X\x02\0\0\0os",
    b"\x8d\x01\0\0\0\0\0\0\0x",
    b"\x96\x01\0\0\0\0\0\0\0x",
]


class _Stub:
    """Stands for every global an unpickler asks for: it can be made and called, and does nothing."""

    def __init__(self, *args: object, **named: object) -> None: ...
    def __call__(self, *args: object, **named: object) -> _Stub:
        return self

    def extend(self, items: object) -> None: ...
    def append(self, item: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...


def _asked(data: bytes, base: type) -> set[tuple[str, str]]:
    """Run a real unpickler whose every global is the inert stub above; nothing is imported, nothing else is called."""
    asked: set[tuple[str, str]] = set()

    class Recorder(base):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> type[_Stub]:
            asked.add((module, name))
            return type("Stub", (_Stub,), {})

        def persistent_load(self, pid: object) -> object:
            return _Stub()

        def get_extension(self, code: int) -> None:
            raise pickle.UnpicklingError  # nothing is registered; that the opcode is danger has its own test

    with suppress(Exception):  # hostile bytes may make an unpickler raise anything
        Recorder(io.BytesIO(data)).load()
    return asked


def _not_allowed(asked: set[tuple[str, str]]) -> set[tuple[str, str]]:
    # At protocol 2 and below names are mapped; what both readings allow is allowed.
    return {
        pair
        for pair in asked
        if all(judge(Global(*pair, offset=0, protocol=p)) is not Judgement.ALLOWED for p in (2, 4))
    }


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(_FRAGMENTS), max_size=24), st.sampled_from([b"", b"\x80\x02", b"\x80\x04"]), st.booleans()
)
@example([text("evil"), b"\x94", b"\x93"], b"\x80\x04", True)
def test_no_unpickler_asks_for_more_than_the_scan_reports(
    tmp_path: Path, fragments: list[bytes], head: bytes, ends: bool
) -> None:
    data = head + b"".join(fragments) + (b"." if ends else b"")
    asked = _asked(data, pickle._Unpickler) | _asked(data, pickle.Unpickler)  # type: ignore[attr-defined]
    if _not_allowed(asked):
        assert worst(scanned(tmp_path, data)) in (U, D)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_change_of_a_few_bytes_hides_a_global(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(
        p4(
            b"\x95"
            + struct.pack("<Q", 40)
            + b"}\x94("
            + text("a")
            + b"\x94"
            + call("collections", "OrderedDict")
            + text("b")
            + call("evil", "thing")
            + b"u"
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    asked = _asked(bytes(whole), pickle._Unpickler) | _asked(bytes(whole), pickle.Unpickler)  # type: ignore[attr-defined]
    if _not_allowed(asked):
        assert worst(scanned(tmp_path, bytes(whole))) in (U, D)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.from_regex(r"[a-z_]{1,8}(\.[a-z_]{1,8}){0,3}", fullmatch=True), st.from_regex(r"[A-Za-z_]{1,10}", fullmatch=True)
)
def test_no_pickle_with_a_global_outside_the_list_is_clean(tmp_path: Path, module: str, name: str) -> None:
    if (module, name) not in allowed():
        assert worst(scanned(tmp_path, p4(stack_global(module, name)))) in (U, D)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=40),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=20,
    ),
    st.integers(0, 5),
)
def test_plain_data_of_any_protocol_is_clean(tmp_path: Path, value: object, protocol: int) -> None:
    assert scanned(tmp_path, pickle.dumps(value, protocol)) == ()


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_end_in_findings_and_never_in_an_error(tmp_path: Path, data: bytes) -> None:
    scanned(tmp_path, data)
