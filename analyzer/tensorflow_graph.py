"""TensorFlow's saved_model.pb, walked as wire format: signatures, nodes and functions, variables. Nothing is parsed by
a protobuf library, so nothing of its size is held in memory but what is named here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from analyzer.onnx_wire import BYTES, VARINT, NotWire, WireField, fields

MAX_FIELDS = 20_000_000
"""Fields that are visited; a graph of a hundred thousand nodes has a few millions."""
MAX_TEXT_BYTES = 1 << 16
MAX_AXES = 64
_VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
_FUNC_ATTRIBUTES = frozenset({b"f", b"then_branch", b"else_branch", b"body", b"cond", b"branches"})


@dataclass
class Node:
    """One node: its operator, the nodes it takes from, the functions it calls."""

    op: str
    inputs: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    dtype: int = 0
    shape: tuple[int, ...] | None = None
    """Both of variables only."""


@dataclass(frozen=True)
class TensorInfo:
    """A signature's tensor; ``shape`` is None where not even the number of axes is known, -1 an open axis."""

    node: str
    dtype: int
    shape: tuple[int, ...] | None


@dataclass
class Signature:
    """A served function by its SignatureDef."""

    inputs: dict[str, TensorInfo] = field(default_factory=dict)
    outputs: dict[str, TensorInfo] = field(default_factory=dict)


@dataclass
class MetaGraph:
    """What one MetaGraphDef says."""

    tags: list[str] = field(default_factory=list)
    version: str = ""
    nodes: dict[str, Node] = field(default_factory=dict)
    functions: dict[str, list[Node]] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)
    variables: list[tuple[str, int, tuple[int, ...]]] = field(default_factory=list)
    """Name, dtype and shape of each variable, those of optimisers among them."""

    def every_operator(self) -> dict[str, int]:
        """Return operator to count over the whole file, also what only training or saving runs."""
        counts: dict[str, int] = {}
        for nodes in (self.nodes.values(), *self.functions.values()):
            for node in nodes:
                counts[node.op] = counts.get(node.op, 0) + 1
        return counts

    def served_nodes(self, signature: Signature) -> list[Node]:
        """Return the nodes of the outer graph that the signature's outputs need, its variables among them."""
        pending = [info.node for info in signature.outputs.values()]
        seen: dict[str, Node] = {}
        while pending:
            name = pending.pop().lstrip("^").partition(":")[0]
            node = self.nodes.get(name)
            if node is not None and name not in seen:
                seen[name] = node
                pending += node.inputs
        return list(seen.values())

    def served_operators(self, signature: Signature) -> dict[str, int]:
        """Return operator to count of what the signature's outputs need, through the functions it calls."""
        counts: dict[str, int] = {}
        calls: list[str] = []
        for node in self.served_nodes(signature):
            counts[node.op] = counts.get(node.op, 0) + 1
            calls += node.calls
        called: set[str] = set()
        while calls:
            name = calls.pop()
            if name in called or name not in self.functions:
                continue
            called.add(name)
            for node in self.functions[name]:
                counts[node.op] = counts.get(node.op, 0) + 1
                calls += node.calls
        return counts


class GraphReader:
    """Reads one saved_model.pb. Raises NotWire where the bytes are no protobuf message, or more than any model's."""

    def __init__(self, handle: IO[bytes], size_bytes: int) -> None:
        self._handle, self._size, self._seen = handle, size_bytes, 0

    def meta_graphs(self) -> list[MetaGraph]:
        """Return every meta graph of the file; most have one, with the tag ``serve``."""
        found = []
        for item in self._fields(0, self._size):
            if item.number == 2 and item.wire == BYTES:
                found.append(self._meta_graph(item))
        return found

    def _fields(self, start: int, end: int) -> Iterator[WireField]:
        for item in fields(self._handle, start, end):
            self._seen += 1
            if self._seen > MAX_FIELDS or item.start + item.length > end:
                raise NotWire
            yield item

    def _inside(self, item: WireField) -> Iterator[WireField]:
        return self._fields(item.start, item.start + item.length)

    def _bytes(self, item: WireField) -> bytes:
        self._handle.seek(item.start)
        return self._handle.read(min(item.length, MAX_TEXT_BYTES))

    def _text(self, item: WireField) -> str:
        return self._bytes(item).decode("utf-8", "replace")

    def _int(self, item: WireField) -> int:
        """Return a varint as the int64 it stands for."""
        data, value = self._bytes(item), 0
        for position, byte in enumerate(data[:10]):
            value |= (byte & 0x7F) << (7 * position)
        value &= (1 << 64) - 1
        return value - (1 << 64) if value >= 1 << 63 else value

    def _meta_graph(self, outer: WireField) -> MetaGraph:
        graph = MetaGraph()
        for item in self._inside(outer):
            if item.wire != BYTES:
                continue
            if item.number == 1:
                for part in self._inside(item):
                    if part.wire == BYTES and part.number == 4:
                        graph.tags.append(self._text(part))
                    elif part.wire == BYTES and part.number == 5:
                        graph.version = self._text(part)
            elif item.number == 2:
                self._graph(item, graph)
            elif item.number == 5:
                name, value = self._entry(item)
                if value is not None:
                    graph.signatures[name] = self._signature(value)
            elif item.number == 7:
                self._objects(item, graph)
        return graph

    def _entry(self, item: WireField) -> tuple[str, WireField | None]:
        """Return key and value of a map's entry."""
        name, value = "", None
        for part in self._inside(item):
            if part.number == 1 and part.wire == BYTES:
                name = self._text(part)
            elif part.number == 2 and part.wire == BYTES:
                value = part
        return name, value

    def _graph(self, outer: WireField, graph: MetaGraph) -> None:
        for item in self._inside(outer):
            if item.wire != BYTES:
                continue
            if item.number == 1:
                name, node = self._node(item)
                graph.nodes[name] = node
            elif item.number == 2:
                for part in self._inside(item):
                    if part.number == 1 and part.wire == BYTES:
                        name, nodes = self._function(part)
                        graph.functions[name] = nodes

    def _function(self, outer: WireField) -> tuple[str, list[Node]]:
        name, nodes = "", []
        for item in self._inside(outer):
            if item.number == 1 and item.wire == BYTES:
                for part in self._inside(item):
                    if part.number == 1 and part.wire == BYTES:
                        name = self._text(part)
            elif item.number == 3 and item.wire == BYTES:
                nodes.append(self._node(item)[1])
        return name, nodes

    def _node(self, outer: WireField) -> tuple[str, Node]:
        name, node = "", Node("")
        for item in self._inside(outer):
            if item.wire != BYTES:
                continue
            if item.number == 1:
                name = self._text(item)
            elif item.number == 2:
                node.op = self._text(item)
            elif item.number == 3:
                node.inputs.append(self._text(item))
            elif item.number == 5:
                self._attribute(item, node)
        return name, node

    def _attribute(self, entry: WireField, node: Node) -> None:
        key = b""
        for part in self._inside(entry):
            if part.wire != BYTES:
                continue
            if part.number == 1:
                key = self._bytes(part)
            elif part.number == 2 and key in (b"shape", b"dtype") and node.op in _VARIABLES:
                for value in self._inside(part):
                    if value.number == 6 and value.wire == VARINT:
                        node.dtype = self._int(value)
                    elif value.number == 7 and value.wire == BYTES:
                        node.shape = self._shape(value)
            elif part.number == 2 and key in _FUNC_ATTRIBUTES:
                for value in self._inside(part):
                    if value.wire != BYTES:
                        continue
                    if value.number == 10:
                        node.calls += self._function_names([value])
                    elif value.number == 1:
                        node.calls += self._function_names(
                            [each for each in self._inside(value) if each.number == 9 and each.wire == BYTES]
                        )

    def _function_names(self, lists: list[WireField]) -> list[str]:
        return [
            self._text(part) for item in lists for part in self._inside(item) if part.number == 1 and part.wire == BYTES
        ]

    def _signature(self, outer: WireField) -> Signature:
        signature = Signature()
        for item in self._inside(outer):
            if item.wire == BYTES and item.number in (1, 2):
                name, value = self._entry(item)
                if value is not None:
                    (signature.inputs if item.number == 1 else signature.outputs)[name] = self._tensor(value)
        return signature

    def _tensor(self, outer: WireField) -> TensorInfo:
        node, dtype, shape = "", 0, None
        for item in self._inside(outer):
            if item.number == 1 and item.wire == BYTES:
                node = self._text(item)
            elif item.number == 2 and item.wire == VARINT:
                dtype = self._int(item)
            elif item.number == 3 and item.wire == BYTES:
                shape = self._shape(item)
        return TensorInfo(node, dtype, shape)

    def _shape(self, outer: WireField) -> tuple[int, ...] | None:
        sizes: list[int] = []
        for item in self._inside(outer):
            if item.number == 3 and item.wire == VARINT and self._int(item):
                return None
            if item.number == 2 and item.wire == BYTES:
                # Protobuf leaves zero out.
                size = 0
                for part in self._inside(item):
                    if part.number == 1 and part.wire == VARINT:
                        size = self._int(part)
                sizes.append(size)
                if len(sizes) > MAX_AXES:
                    raise NotWire
        return tuple(sizes)

    def _objects(self, outer: WireField, graph: MetaGraph) -> None:
        """Read the variables among the saved objects."""
        for item in self._inside(outer):
            if item.number != 1 or item.wire != BYTES:
                continue
            for part in self._inside(item):
                if part.number != 7 or part.wire != BYTES:
                    continue
                name, dtype = "", 0
                shape: tuple[int, ...] = ()
                for fact in self._inside(part):
                    if fact.number == 1 and fact.wire == VARINT:
                        dtype = self._int(fact)
                    elif fact.number == 2 and fact.wire == BYTES:
                        shape = self._shape(fact) or ()
                    elif fact.number == 6 and fact.wire == BYTES:
                        name = self._text(fact)
                graph.variables.append((name, dtype, shape))
