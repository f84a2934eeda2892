"""The allowlist of pickle globals: exact names, grouped with reasons; whatever is not on it is not clean."""

from __future__ import annotations

import json

# The tables that every unpickler applies to names of protocols below 3; private by name, part of the format by use.
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from enum import Enum
from functools import cache
from pathlib import Path

from analyzer.traced_values import Global

FROZEN = Path(__file__).with_name("allowed_globals.json")
"""Names taken from the libraries themselves; tests/unit/analyzer/freeze_allowed_globals.py writes it."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class Judgement(Enum):
    """What the lists say about one global."""

    ALLOWED = "allowed"
    UNKNOWN = "unknown"
    DANGER = "danger"


_UFUNCS = (
    "log log1p log2 log10 exp exp2 expm1 sqrt cbrt square absolute abs fabs sign sin cos tan arcsin arccos arctan sinh "
    "cosh tanh arcsinh arccosh arctanh reciprocal negative floor ceil rint trunc add subtract multiply divide power "
    "maximum minimum isnan isfinite logical_not"
)
"""Pure functions that people hand to FunctionTransformer."""

ALLOWED: dict[str, dict[str, str]] = {
    # Plain data. Of builtins only types that build values; getattr, type and the rest of builtins are not here.
    "builtins and collections: values": {
        "builtins": "object set frozenset list dict tuple bytes bytearray str int float bool complex slice range",
        "collections": "OrderedDict defaultdict Counter deque",
        "copyreg": "_reconstructor __newobj__",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "uuid": "UUID",
        "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "types": "SimpleNamespace",
        # Protocol 2 writes bytes as a latin-1 string with this; a codec name finds modules of `encodings` alone.
        "_codecs": "encode",
    },
    # Tensors: the functions take storages, shapes and strides, and build a tensor.
    "torch: tensors": {
        "torch": "Size Tensor device dtype Generator FloatStorage DoubleStorage HalfStorage BFloat16Storage "
        "LongStorage IntStorage ShortStorage CharStorage ByteStorage BoolStorage ComplexFloatStorage "
        "ComplexDoubleStorage QInt8Storage QUInt8Storage QInt32Storage QUInt4x2Storage QUInt2x4Storage "
        "UntypedStorage TypedStorage FloatTensor DoubleTensor HalfTensor BFloat16Tensor LongTensor IntTensor "
        "ShortTensor CharTensor ByteTensor BoolTensor float32 float64 float16 bfloat16 int64 int32 int16 int8 "
        "uint8 uint16 uint32 uint64 bool complex64 complex128 complex32 float8_e4m3fn float8_e5m2 "
        "float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 quint8 qint8 qint32 quint4x2 "
        "quint2x4 float double half long int short per_tensor_affine per_tensor_symmetric per_channel_affine "
        "per_channel_symmetric per_channel_affine_float_qparams strided sparse_coo sparse_csr sparse_csc "
        "sparse_bsr sparse_bsc contiguous_format channels_last channels_last_3d preserve_format",
        "torch.storage": "UntypedStorage TypedStorage _UntypedStorage _TypedStorage",
        "torch._utils": "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter "
        "_rebuild_parameter_with_state _rebuild_qtensor _rebuild_sparse_tensor _rebuild_sparse_csr_tensor "
        "_rebuild_nested_tensor _rebuild_meta_tensor_no_storage _rebuild_device_tensor_from_numpy "
        "_rebuild_device_tensor_from_cpu_tensor",
        "torch.serialization": "_get_layout",
        "torch.nn.parameter": "Parameter Buffer",
        "torch._tensor": "Tensor",
        "torch._C": "Generator",
        # Written by torch.jit into its debug pickles and constants: they build typed lists.
        "torch.jit._pickle": "build_intlist build_tensorlist build_doublelist build_boollist build_tensor_from_id "
        "restore_type_tag",
    },
    # Arrays: numpy moved core to _core in 2.0, files of both are about.
    "numpy: arrays": {
        "numpy": "ndarray dtype bool_ bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 intc uintc intp uintp "
        "longlong ulonglong float16 float32 float64 longdouble float128 complex64 complex128 clongdouble complex256 "
        "str_ bytes_ void object_ datetime64 timedelta64 int_ float_ complex_ unicode_ string_ matrix recarray record "
        "mean median std var sum min max amin amax round clip nan_to_num ravel " + _UFUNCS,
        **{
            f"numpy.{core}.{module}": names
            for core in ("core", "_core")
            for module, names in {
                "multiarray": "_reconstruct scalar",
                "numeric": "_frombuffer",
                "records": "recarray record",
            }.items()
        },
        **{f"numpy.{core}._multiarray_umath": _UFUNCS for core in ("core", "_core")},
        "numpy.dtypes": "BoolDType Int8DType Int16DType Int32DType Int64DType UInt8DType UInt16DType UInt32DType "
        "UInt64DType Float16DType Float32DType Float64DType Complex64DType Complex128DType ObjectDType StrDType "
        "BytesDType VoidDType DateTime64DType TimeDelta64DType",
        "numpy.matrixlib.defmatrix": "matrix",
        "numpy.ma": "MaskedArray",
        "numpy.ma.core": "MaskedArray _mareconstruct MaskedConstant",
        "numpy.rec": "recarray record",
        "numpy.random._pickle": "__randomstate_ctor __generator_ctor __bit_generator_ctor",
        "numpy.random._mt19937": "MT19937",
        "numpy.random._pcg64": "PCG64 PCG64DXSM",
        "numpy.random._philox": "Philox",
        "numpy.random._sfc64": "SFC64",
        "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
        "numpy.random.mtrand": "RandomState",
        "numpy.random._generator": "Generator",
    },
    # The wrapper stands for an array whose bytes follow; the machine steps over them.
    "joblib: array wrapper": {"joblib.numpy_pickle": "NumpyArrayWrapper"},
    # Their __setstate__ hands bytes to the library's own parser of models and sets attributes; none imports or calls
    # what the state names. Parsing hostile bytes natively is what the sandbox is for, as for their own file formats.
    "boosting: estimators and boosters": {
        "xgboost.sklearn": "XGBClassifier XGBRegressor XGBRanker XGBRFClassifier XGBRFRegressor XGBModel",
        "xgboost.core": "Booster",
        "lightgbm.sklearn": "LGBMClassifier LGBMRegressor LGBMRanker LGBMModel",
        "lightgbm.basic": "Booster",
        "catboost.core": "CatBoost CatBoostClassifier CatBoostRegressor CatBoostRanker",
    },
    # A partial calls no more than what it is given, which has to be on this list itself and could be called at once.
    "scikit-learn: what searches and imputers are made of": {
        "functools": "partial",
        "sklearn.utils.validation": "check_array",
        "sklearn.compose._column_transformer": "make_column_selector",
        "sklearn.impute._iterative": "_ImputerTriplet",
    },
    "scipy: matrices and trees": {
        **{
            f"scipy.sparse._{kind}": f"{kind}_matrix {kind}_array"
            for kind in ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")
        },
        **{f"scipy.sparse.{kind}": f"{kind}_matrix" for kind in ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")},
        **{
            f"scipy.special.{module}": "expit logit log1p expm1 boxcox inv_boxcox xlogy erf erfinv ndtr ndtri"
            for module in ("_ufuncs", "_special_ufuncs")
        },
        "scipy.interpolate._interpolate": "interp1d",
        "scipy.interpolate.interpolate": "interp1d",
        "scipy.interpolate._bsplines": "BSpline",
        "scipy.spatial._ckdtree": "cKDTree",
        "scipy.spatial._kdtree": "KDTree",
    },
}
"""Reason to module to names."""

_DANGEROUS_ROOTS = frozenset(
    _words(
        "os posix nt posixpath ntpath subprocess sys socket _socket ssl shutil ctypes _ctypes importlib "
        "_frozen_importlib _frozen_importlib_external imp runpy pty tty code codeop pdb bdb cmd pydoc _pydoc cProfile "
        "profile _lsprof timeit trace webbrowser antigravity pip setuptools pkg_resources ensurepip venv distutils "
        "site asyncio multiprocessing _posixsubprocess concurrent threading _thread signal _signal faulthandler gc "
        "inspect dis marshal pickle _pickle cPickle pickletools dill cloudpickle shelve dbm xmlrpc http urllib "
        "urllib2 urllib3 requests httpx aiohttp ftplib smtplib telnetlib poplib imaplib nntplib smtpd socketserver "
        "wsgiref cgi cgitb tempfile fileinput glob _pyio builtins __builtin__ operator _operator atexit zipimport "
        "zipapp pkgutil doctest unittest test turtle tkinter idlelib lib2to3 linecache tracemalloc mmap resource "
        "fcntl termios pwd grp commands popen2 platform getpass curses readline rlcompleter sqlite3 py_compile "
        "compileall nose pytest _pytest IPython jupyter paramiko fabric invoke sh pexpect plumbum psutil docker boto3 "
        "yaml jsonpickle pandas.io torch.hub"
    )
)
"""Modules whose functions run commands, load code or reach files and the network; refused whole."""
_DANGEROUS_MODULES = _words(
    "numpy.testing numpy.f2py numpy.distutils numpy.lib numpy.ctypeslib numpy.compat numpy.ma.testutils "
    "numpy.load scipy.weave scipy.io scipy._lib._testutils joblib.memory joblib.parallel joblib.externals "
    "joblib.func_inspect joblib.numpy_pickle_compat joblib.pool joblib.executor joblib.logger joblib.disk "
    "torch.hub torch.utils torch.distributed torch.multiprocessing torch._inductor torch._dynamo "
    "torch.serialization torch.jit torch.package torch.ops torch._ops torch.classes torch._classes torch.fx "
    "torch.export torch.testing torch.library torch.onnx torch._C._jit torch.contrib torch.profiler "
    "torch.autograd.profiler torch.collect_env torch.backends torch._appdirs torch._sources "
    "torch._weights_only_unpickler torch._lazy logging.config logging.handlers sklearn.externals "
    "sklearn.utils._testing sklearn.datasets sklearn.utils.fixes sklearn._build_utils tensorflow.python "
    "keras.utils keras.models keras.saving transformers.utils transformers.dynamic_module_utils pandas.eval "
    "pandas.core.computation pandas.io pandas.read_pickle numexpr sympy.core.sympify sympy.parsing django.core "
    "django.utils.module_loading jinja2 mako lxml ptyprocess"
)
_DANGEROUS_NAMES: dict[str, str] = {
    "types": "FunctionType LambdaType CodeType MethodType ModuleType BuiltinFunctionType CellType "
    "DynamicClassAttribute new_class resolve_bases coroutine",
    "functools": "reduce partialmethod singledispatch",
    "itertools": "starmap",
    "copyreg": "add_extension pickle constructor",
    "_codecs": "lookup register",
    "codecs": "open lookup register",
    "torch": "load save compile hub ops classes import_ir_module _import_dotted_name",
    "numpy": "load save fromfile memmap loadtxt genfromtxt savetxt fromregex DataSource vectorize frompyfunc "
    "apply_along_axis apply_over_axes piecewise fromfunction fromiter",
    "numpy.core": "_ufunc_reconstruct _DType_reconstruct",
    "numpy._core": "_ufunc_reconstruct _DType_reconstruct",
    "joblib": "load dump Memory Parallel delayed wrap_non_picklable_objects",
    "joblib.numpy_pickle": "load dump load_temporary_memmap NumpyUnpickler _unpickle NDArrayWrapper ZNDArrayWrapper",
    "pandas": "read_pickle eval read_csv read_sql",
    "re": "Scanner",
    "collections": "namedtuple",
    "dataclasses": "make_dataclass",
    "typing": "get_type_hints ForwardRef",
    "enum": "EnumMeta",
    "string": "Formatter",
    "io": "FileIO open open_code OpenWrapper",
    "_io": "FileIO open open_code",
    "torch.storage": "load",
}
_MERELY_UNKNOWN = {
    "operator": "itemgetter",
    "_operator": "itemgetter",
    "builtins": "len sum min max abs sorted round print enumerate zip reversed iter Ellipsis NotImplemented",
}
"""Harmless names of modules that are refused whole: a person may allow them."""
_DANGEROUS_PARTS = frozenset(
    _words(
        "os sys subprocess posix nt builtins __builtins__ importlib ctypes socket shutil pty runpy system popen eval "
        "exec execfile compile __import__ getattr setattr delattr globals locals vars open input breakpoint exit quit "
        "load loads run_module run_path run_code runcode runcall runctx runeval runstring exec_command check_output "
        "check_call Popen spawn spawnl spawnv fork execv execve import_module load_module exec_module attrgetter "
        "methodcaller load_library load_inline _load_state_dict hub pickle _pickle marshal"
    )
)
"""Names that stay dangerous whatever module re-exports them."""

_ERRORS = ("Error", "Exception", "Warning")
_TORCHSCRIPT = "__torch__"


@cache
def allowed() -> frozenset[tuple[str, str]]:
    """Return every allowed (module, name)."""
    pairs = {(module, name) for group in ALLOWED.values() for module, names in group.items() for name in names.split()}
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    pairs |= {
        (module, name) for group in frozen["groups"].values() for module, names in group.items() for name in names
    }
    return frozenset(pairs)


def unmapped(asked: Global) -> tuple[str, str]:
    """Return the module and name an unpickler would really look up: below protocol 3 Python 2's names are mapped."""
    module, name = asked.module, asked.name
    if asked.protocol < 3:
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[(module, name)]
        elif module in IMPORT_MAPPING:
            module = IMPORT_MAPPING[module]
    return module, name


def judge(asked: Global, *, torchscript: bool = False) -> Judgement:
    """Judge one global by its exact name; a name with dots is a walk through attributes and never allowed."""
    module, name = unmapped(asked)
    if (module, name) in allowed():
        return Judgement.ALLOWED
    if torchscript and "." not in name and (module == _TORCHSCRIPT or module.startswith(_TORCHSCRIPT + ".")):
        return Judgement.ALLOWED
    if _dangerous(module, name) or _dangerous(asked.module, asked.name):
        return Judgement.DANGER
    return Judgement.UNKNOWN


def _dangerous(module: str, name: str) -> bool:
    parts = name.split(".")
    path = [*module.split("."), *parts]
    if not all(part.isascii() for part in path):
        return True  # no library names things so; letters that look alike do
    if path[0] in _DANGEROUS_ROOTS:
        harmless = name in _MERELY_UNKNOWN.get(module, "").split()
        return not (harmless or (module == "builtins" and "." not in name and name.endswith(_ERRORS)))
    if any(part.startswith("__") and part.endswith("__") for part in parts):
        return True  # __class__, __globals__, __reduce__ and the like lead everywhere
    if any(part in _DANGEROUS_PARTS for part in parts):
        return True
    dotted = ".".join(path)
    if any(dotted == entry or dotted.startswith(entry + ".") for entry in _DANGEROUS_MODULES):
        return True
    return parts[0] in _DANGEROUS_NAMES.get(module, "").split()
