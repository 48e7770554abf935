"""What the operations of a compiled program compute, by the names of the model's layers.

The program's HLO text says for most operations under which names JAX traced them; these give the
layer and the direction. An operation without names gets a layer if only one is possible.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Path = tuple[str, ...]

_COMPUTATION = re.compile(r"(?:ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.+?) (?P<opcode>[a-z][\w-]*)\((?P<rest>.*)"
)
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CALLS = re.compile(r"calls=%?([\w.-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_OPERAND = re.compile(r"%([\w.-]+)")
_WRAPPED = re.compile(r"\w+\((.*)\)")
# Matrix products and convolutions: opcodes, and targets of custom calls.
_PRODUCT = re.compile(r"convolution|dot|.*([cC]onv|gemm|matmul)")
# A fusion is named after the first of these opcodes that it contains.
_MAIN = (
    *("convolution", "dot", "custom-call", "select-and-scatter", "scatter"),
    *("reduce-window", "sort", "gather", "reduce"),
)
_MAX_DEPTH = 4  # layers in a path
# Names in a trace that are neither layers nor operations.
_CONTROL = (
    *("while", "body", "cond", "branch", "scan", "checkpoint"),
    *("closed_call", "eval_jaxpr", "shard_map", ""),
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """The origin of one operation.

    Attributes:
      kind: its opcode, such as "convolution"; a fusion's with the main opcode in it, such as
        "reduce fusion"; the target of a custom call.
      layer: such as "layer1_0/conv2"; outside of layers the innermost names of the trace; empty if
        nothing is known.
      direction: "forward", "backward", "backward by weights", "backward by input", "recomputed",
        or "".
    """

    kind: str
    layer: str = ""
    direction: str = ""


class _Instruction(NamedTuple):
    name: str
    opcode: str
    shape: tuple[int, ...]
    rest: str

    def find(self, pattern: re.Pattern[str]) -> str:
        match = pattern.search(self.rest)
        return match[1] if match else ""

    @property
    def operands(self) -> list[str]:
        return _OPERAND.findall(self.rest.partition(")")[0])

    @property
    def is_product(self) -> bool:
        return bool(_PRODUCT.fullmatch(self.opcode) or _PRODUCT.match(self.find(_TARGET)))


def name_of(event: str) -> str:
    """Return the HLO name in an event's name, which may be the beginning of the operation's text.

    >>> name_of("%fusion.1 = f32[8] fusion(...)")
    'fusion.1'
    """
    return event.partition(" = ")[0].removeprefix("%")


def operations(text: str, parameters: Mapping[Path, tuple[int, ...]]) -> dict[str, Operation]:
    """Return HLO name -> origin, for every operation of a program.

    Args:
      text: the HLO text of the compiled program.
      parameters: path -> shape of the model's parameters, e.g. ("encoders", "image", "layer1_0",
        "conv2", "kernel"); their modules are the layers.
    """
    return _Program(text, parameters).operations()


class _Program:
    def __init__(self, text: str, parameters: Mapping[Path, tuple[int, ...]]):
        self._bodies: dict[str, list[_Instruction]] = collections.defaultdict(list)
        computation = ""
        for line in text.splitlines():
            if opening := _COMPUTATION.match(line):
                computation = opening["name"]
            elif match := _INSTRUCTION.match(line):
                dims = _SHAPE.search(match["shape"])  # of a tuple the first
                shape = tuple(int(n) for n in dims[1].split(",") if n) if dims else ()
                self._bodies[computation].append(
                    _Instruction(match["name"], match["opcode"], shape, match["rest"])
                )
        self._instructions = {i.name: i for body in self._bodies.values() for i in body}
        self._kernels = {
            path[:-1]: shape for path, shape in parameters.items() if path[-1] == "kernel"
        }
        self._modules = {part for path in parameters for part in path[:-1]}

    def operations(self) -> dict[str, Operation]:
        result = {name: self._describe(i) for name, i in self._instructions.items()}
        readers: dict[str, set[str]] = collections.defaultdict(set)  # layers that read a result
        for name, instruction in self._instructions.items():
            for operand in instruction.operands:
                readers[operand].add(result[name].layer)
        for name, operation in result.items():
            main = self._main(self._instructions[name])
            if operation.layer or not main.is_product:
                continue
            # XLA may rewrite a gradient by weights and leave its name to the transpose after it.
            layers = {_shown(path) for path in self._kernels_like(main.shape)}
            layers = layers & readers[name] or layers
            if len(layers) == 1:
                result[name] = Operation(operation.kind, layers.pop(), "backward by weights")
        return result

    def _describe(self, instruction: _Instruction) -> Operation:
        main = self._main(instruction)
        kind = main.find(_TARGET) or main.opcode
        if main is not instruction:
            kind += " fusion"
        # A product's fusion may end in the layer that follows.
        order = (main, instruction) if main.is_product else (instruction, main)
        body = reversed(self._bodies.get(instruction.find(_CALLS), []))
        op_name = next((name for i in (*order, *body) if (name := i.find(_OP_NAME))), "")
        # The first name is the program's.
        names = [_unwrapped(part) for part in op_name.partition(";")[0].split("/")[1:]]
        layer = tuple(name for name in names[:-1] if name in self._modules)
        direction = _direction(op_name)
        if direction == "backward" and main.is_product and _is_among(layer, self._kernels):
            by_weights = _is_among(layer, self._kernels_like(main.shape))
            direction += " by weights" if by_weights else " by input"
        outside = tuple(name for name in names if name not in _CONTROL)[-2:]
        return Operation(kind, _shown(layer or outside), direction)

    def _main(self, instruction: _Instruction) -> _Instruction:
        """Return the instruction that a fusion is named after, or the instruction itself."""
        body = self._bodies.get(instruction.find(_CALLS), ())
        return next(
            (inner for opcode in _MAIN for inner in body if inner.opcode == opcode), instruction
        )

    def _kernels_like(self, shape: Sequence[int]) -> list[Path]:
        """Return the layers whose kernel has the shape, up to axis order and axes of length 1."""
        return [path for path, kernel in self._kernels.items() if _axes(kernel) == _axes(shape)]


def _shown(path: Path) -> str:
    """Return a layer's name: without the image encoder's prefix, the middle of long paths cut."""
    if path[:2] == ("encoders", "image"):
        path = path[2:] or path
    if len(path) > _MAX_DEPTH:  # an all-reduce of many layers' gradients
        path = (path[0], "...", path[-1])
    return "/".join(path)


def _is_among(layer: Path, paths: Iterable[Path]) -> bool:
    """Return whether a layer, whose path may lack its beginning, is among the paths."""
    return bool(layer) and any(path[-len(layer) :] == layer for path in paths)


def _axes(shape: Sequence[int]) -> list[int]:
    return sorted(n for n in shape if n > 1)


def _direction(op_name: str) -> str:
    if "rematted_computation" in op_name:
        return "recomputed"
    return "backward" if "transpose(jvp" in op_name else "forward" if "jvp(" in op_name else ""


def _unwrapped(part: str) -> str:
    """Return a name without the transformations around it: "vmap(jit(_uniform))" -> "_uniform"."""
    while wrapped := _WRAPPED.fullmatch(part):
        part = wrapped[1]
    return part
