"""What a person's Python imports and calls, told from its syntax tree; it is never run here."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from analyzer.pickle_scan import printable
from schemas.descriptor import SecurityFinding, Severity

MAX_SOURCE_BYTES = 4 << 20


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_USUAL = frozenset(
    _words(
        "__future__ abc argparse array bisect collections contextlib copy dataclasses datetime decimal einops enum "
        "fractions functools heapq itertools json logging math numbers numpy operator random re scipy sklearn "
        "statistics string struct textwrap time timm torch torchaudio torchvision transformers types typing "
        "typing_extensions uuid warnings weakref safetensors accelerate diffusers packaging flash_attn xformers "
        "sentencepiece tokenizers huggingface_hub peft"
    )
)
_DANGEROUS_IMPORTS = frozenset(
    _words(
        "subprocess socket ssl ctypes cffi pty tty runpy multiprocessing asyncio http urllib urllib2 urllib3 requests "
        "httpx aiohttp ftplib smtplib telnetlib paramiko xmlrpc socketserver webbrowser code codeop pdb bdb pip "
        "ensurepip venv marshal imp antigravity signal fcntl posix nt _posixsubprocess atexit pexpect sh commands "
        "pyautogui pynput winreg msvcrt faulthandler"
    )
)
_WATCHED_IMPORTS = frozenset(
    _words(
        "os sys io pathlib shutil tempfile glob fileinput importlib inspect pickle cPickle _pickle dill cloudpickle "
        "joblib shelve builtins gc dis threading concurrent sqlite3 pkgutil zipimport platform pwd grp linecache mmap "
        "codecs yaml"
    )
)
"""Not wrong by being imported; what is called on them is judged."""
_HARMLESS_CALLS = ("os.path.", "os.environ.get", "os.getenv", "os.cpu_count", "os.fspath", "os.sep", "sys.version",
                   "sys.maxsize", "sys.stdout", "sys.stderr", "sys.modules.get", "sys.float_info", "inspect.signature",
                   "inspect.isclass", "inspect.isfunction", "inspect.getfullargspec", "importlib.util.find_spec",
                   "importlib.metadata.version", "pathlib.Path", "pathlib.PurePath", "platform.system", "gc.collect",
                   "io.BytesIO", "io.StringIO", "threading.Lock", "threading.RLock", "threading.local",
                   "codecs.encode", "codecs.decode", "sys.getsizeof", "sys.getrecursionlimit", "platform.machine",
                   "platform.python_version", "inspect.getmembers", "inspect.Parameter")  # fmt: skip
_DANGEROUS_CALLS = _words(
    "os.system os.popen os.exec os.spawn os.posix_spawn os.fork os.kill os.remove os.unlink os.rmdir os.rename "
    "os.startfile os.setuid os.setgid os.chmod os.chown os.symlink os.link os.putenv os.dup os.pipe shutil.rmtree "
    "shutil.move shutil.chown importlib.import_module importlib.__import__ importlib.reload importlib.machinery "
    "importlib.util.spec_from importlib.util.module_from pickle.loads pickle.Unpickler cPickle.loads "
    "_pickle.loads dill.loads cloudpickle.loads sys.settrace sys.setprofile sys._getframe sys.meta_path "
    "sys.path_hooks builtins.eval builtins.exec builtins.compile builtins.__import__ gc.get_objects "
    "gc.get_referrers codecs.register yaml.load yaml.unsafe_load torch.hub torch.ops.load_library "
    "torch.classes.load_library torch.utils.cpp_extension torch.distributed.rpc numpy.ctypeslib numpy.f2py "
    "types.FunctionType types.CodeType threading.settrace zipimport."
)
_WATCHED_CALLS = _words(
    "os. sys. io. shutil. tempfile. glob. fileinput. importlib. inspect. pickle. cPickle. _pickle. dill. "
    "cloudpickle. joblib. shelve. builtins. gc. dis. threading. concurrent. sqlite3. pkgutil. mmap. codecs. "
    "platform. pwd. grp. linecache. torch.load torch.jit.load torch.save torch.utils.data.DataLoader "
    "torch.multiprocessing numpy.load numpy.save numpy.fromfile numpy.memmap"
)
_DANGEROUS_NAMES = frozenset({"eval", "exec", "compile", "__import__", "__builtins__", "breakpoint", "__loader__"})
_DANGEROUS_ATTRIBUTES = frozenset(
    _words(
        "__builtins__ __globals__ __subclasses__ __code__ __mro__ __bases__ __base__ __closure__ __import__ "
        "__loader__ __reduce__ __reduce_ex__ __getattribute__ f_globals f_locals f_back gi_frame tb_frame cr_frame"
    )
)
_HELD = frozenset(_words("os sys subprocess builtins importlib ctypes socket shutil pickle marshal"))
_WATCHED_NAMES = {"open": "builtins.open", "input": "builtins.input", "globals": "builtins.globals",
                  "vars": "builtins.vars", "locals": "builtins.locals"}  # fmt: skip


def findings_of(source: bytes, where: str, *, allowed: frozenset[str] = frozenset()) -> list[SecurityFinding]:
    """Judge Python ``source``: ``info`` for what it imports, ``danger`` for processes, network and dynamic code.

    ``allowed`` lifts what is merely unknown, by its dotted name.
    """
    place = printable(where)[:450]
    if len(source) > MAX_SOURCE_BYTES:
        return [_finding("user-code-unreadable", Severity.UNKNOWN, "This Python file is too long to be read.", place)]
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [_finding("user-code-unreadable", Severity.UNKNOWN, "This file is not valid Python 3.", place)]
    names: dict[str, str] = {}
    found: list[SecurityFinding] = []
    for imported, line in _imports(tree, names):
        root = imported.split(".")[0]
        spot = f"{place} line {line}"
        everything = root in _WATCHED_IMPORTS and imported.endswith(".*")
        if root in _DANGEROUS_IMPORTS or imported.startswith(_DANGEROUS_CALLS) or everything:
            found.append(
                _finding(
                    "user-code-import",
                    Severity.DANGER,
                    f"This code imports {imported}, which reaches processes, the network or code at run time.",
                    spot,
                    imported,
                )
            )
        else:
            usual = root in _USUAL or root in _WATCHED_IMPORTS or not root
            note = f"This code imports {imported or 'a file beside it'}" + ("." if usual else ", a library of its own.")
            found.append(_finding("user-code-import", Severity.INFO, note, spot, imported))
    for dotted, line in _uses(tree, names):
        severity = _judge(dotted)
        if severity is Severity.INFO or (severity is Severity.UNKNOWN and dotted in allowed):
            continue
        what = (
            "which runs commands or code at run time"
            if severity is Severity.DANGER
            else "which reaches files or objects"
        )
        found.append(
            _finding("user-code-call", severity, f"This code uses {dotted}, {what}.", f"{place} line {line}", dotted)
        )
    return found


def _finding(code: str, severity: Severity, message: str, where: str, subject: str = "") -> SecurityFinding:
    return SecurityFinding(
        code=code, severity=severity, message=printable(message)[:1000], where=where, subject=printable(subject)[:300]
    )


def _imports(tree: ast.Module, names: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Yield what is imported; fills ``names``: local name to dotted path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                root = item.name.split(".")[0]
                names[item.asname or root] = item.name if item.asname else root
                yield item.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            module = "" if node.level else (node.module or "")
            for item in node.names:
                names[item.asname or item.name] = f"{module}.{item.name}" if module else item.name
                yield f"{module}.{item.name}" if module else "", node.lineno


def _uses(tree: ast.Module, names: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Yield every dotted path the code mentions, resolved through its imports and plain assignments of them."""
    inner: set[int] = set()
    bound = _bound(tree)
    changed = True
    while changed:  # x = os; y = x.system
        changed = False
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                path = _path(node.value, names)
                target = node.targets[0].id
                if path is not None and path.split(".")[0] in _ROOTS and names.get(target) is None:
                    names[target] = path
                    changed = True
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr in _DANGEROUS_ATTRIBUTES:
                yield node.attr, node.lineno
            if id(node) in inner:
                continue
            value = node.value
            while isinstance(value, ast.Attribute):
                inner.add(id(value))
                value = value.value
            inner.add(id(value))
            path = _path(node, names)
            if path is not None:
                yield path, node.lineno
        elif isinstance(node, ast.Name) and id(node) not in inner and isinstance(node.ctx, ast.Load):
            if node.id in _DANGEROUS_NAMES and node.id not in names:
                yield f"builtins.{node.id}" if not node.id.startswith("__b") else node.id, node.lineno
            elif node.id in _WATCHED_NAMES and node.id not in names and node.id not in bound:
                yield _WATCHED_NAMES[node.id], node.lineno
            elif node.id in names:
                yield names[node.id], node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            yield from _getattr(node, names)


def _bound(tree: ast.Module) -> set[str]:
    """Return every name the file gives a meaning of its own: ``input`` is a parameter of many forward methods."""
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
    return bound


def _getattr(node: ast.Call, names: dict[str, str]) -> Iterator[tuple[str, int]]:
    if len(node.args) < 2:
        return
    owner, attribute = _path(node.args[0], names), node.args[1]
    if isinstance(attribute, ast.Constant) and isinstance(attribute.value, str):
        if attribute.value in _DANGEROUS_ATTRIBUTES | _DANGEROUS_NAMES:
            yield attribute.value, node.lineno
        if owner is not None:
            yield f"{owner}.{attribute.value}", node.lineno
    elif owner is not None and owner.split(".")[0] in _ROOTS:
        yield f"getattr({owner})", node.lineno


_ROOTS = _DANGEROUS_IMPORTS | _WATCHED_IMPORTS | _DANGEROUS_NAMES


def _path(node: ast.expr, names: dict[str, str]) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    root = names.get(node.id)
    if root is None and node.id in _DANGEROUS_NAMES:
        root = node.id
    return None if root is None else ".".join([root, *reversed(parts)])


def _judge(dotted: str) -> Severity:
    # A module that another one happens to hold is that module: torch.os is os.
    parts = dotted.split(".")
    held = [at for at, part in enumerate(parts) if at and part in _HELD]
    if held:
        dotted = ".".join(parts[held[-1] :])
    if dotted.startswith("getattr(") or dotted.split(".")[0] in _DANGEROUS_NAMES | _DANGEROUS_ATTRIBUTES:
        return Severity.DANGER
    if dotted.startswith(_DANGEROUS_CALLS) or dotted.split(".")[0] in _DANGEROUS_IMPORTS:
        return Severity.DANGER
    if dotted in _WATCHED_IMPORTS or dotted.startswith(_HARMLESS_CALLS):
        return Severity.INFO
    if dotted.startswith(_WATCHED_CALLS):
        return Severity.UNKNOWN
    return Severity.INFO
