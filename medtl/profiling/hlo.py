"""What the operations of a compiled program are: read from its HLO text, told in the words of the model.

The text says of most operations under which names JAX traced them; from these come the layer and the direction. Where it
says nothing, and only one layer is possible, an operation has that; else a kind alone.
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
_WRAPPED = re.compile(r"\w+\((.*)\)")
# What a fusion is there for, the first of these that is in it.
_MAIN = (
    "convolution",
    "dot",
    "custom-call",
    "select-and-scatter",
    "scatter",
    "reduce-window",
    "sort",
    "gather",
    "reduce",
)
_PRODUCT = re.compile(
    r"convolution|dot|.*([cC]onv|gemm|matmul)"
)  # opcodes, and targets of custom calls
_OPERAND = re.compile(r"%([\w.-]+)")
_DEEPEST = 4  # layers in a path
_CONTROL = (
    "while",
    "body",
    "cond",
    "branch",
    "scan",
    "checkpoint",
    "closed_call",
    "eval_jaxpr",
    "shard_map",
    "",
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """What is known of an operation.

    Attributes:
      kind: its opcode, such as "convolution", or "reduce fusion" by what is in it; the target of a custom call.
      where: the layer, such as "layer1_0/conv2"; outside of layers the innermost names of its trace; empty where unknown.
      direction: "forward", "backward", "backward by weights", "backward by input", "recomputed", or "".
    """

    kind: str
    where: str = ""
    direction: str = ""


class _Instruction(NamedTuple):
    name: str
    opcode: str
    shape: tuple[int, ...]
    rest: str

    def find(self, pattern: re.Pattern[str]) -> str:
        found = pattern.search(self.rest)
        return found[1] if found else ""

    @property
    def operands(self) -> list[str]:
        return _OPERAND.findall(self.rest.partition(")")[0])

    @property
    def is_product(self) -> bool:
        return bool(_PRODUCT.fullmatch(self.opcode) or _PRODUCT.match(self.find(_TARGET)))


def name_of(event: str) -> str:
    """The name of an operation, of whose text a device may show the beginning: "%fusion.1 = f32[8] fusion(...)"."""
    return event.partition(" = ")[0].removeprefix("%")


def operations(text: str, parameters: Mapping[Path, tuple[int, ...]]) -> dict[str, Operation]:
    """HLO name -> what it is, of every operation of a program.

    Args:
      text: of the compiled program.
      parameters: path -> shape of each of the model's, e.g. ("backbone", "layer1_0", "conv2", "kernel"); their modules are
        the layers that are looked for.
    """
    return _Program(text, parameters).operations()


class _Program:
    def __init__(self, text: str, parameters: Mapping[Path, tuple[int, ...]]):
        self._inside: dict[str, list[_Instruction]] = collections.defaultdict(list)
        computation = ""
        for line in text.splitlines():
            if opened := _COMPUTATION.match(line):
                computation = opened["name"]
            elif found := _INSTRUCTION.match(line):
                dims = _SHAPE.search(found["shape"])  # of a tuple the first
                shape = tuple(int(n) for n in dims[1].split(",") if n) if dims else ()
                self._inside[computation].append(
                    _Instruction(found["name"], found["opcode"], shape, found["rest"])
                )
        self._instructions = {i.name: i for found in self._inside.values() for i in found}
        self._kernels = {
            path[1:-1]: shape for path, shape in parameters.items() if path[-1] == "kernel"
        }
        self._modules = {part for path in parameters for part in path[:-1]}

    def operations(self) -> dict[str, Operation]:
        known = {name: self._describe(i) for name, i in self._instructions.items()}
        read_in: dict[str, set[str]] = collections.defaultdict(set)
        for name, instruction in self._instructions.items():
            for operand in instruction.operands:
                read_in[operand].add(known[name].where)
        for name, operation in known.items():
            main = self._main(self._instructions[name])
            if operation.where or not main.is_product:
                continue
            # Of a gradient by weights that XLA wrote anew, the name may be left to the transposition that follows.
            layers = {"/".join(path) for path in self._like(main.shape)}
            layers = layers & read_in[name] or layers
            if len(layers) == 1:
                known[name] = Operation(operation.kind, layers.pop(), "backward by weights")
        return known

    def _describe(self, instruction: _Instruction) -> Operation:
        main = self._main(instruction)
        kind = main.find(_TARGET) or main.opcode
        if main is not instruction:
            kind += " fusion"
        # A product's fusion may end in the layer that follows.
        order = (main, instruction) if main.is_product else (instruction, main)
        body = reversed(self._inside.get(instruction.find(_CALLS), []))
        op_name = next((name for i in (*order, *body) if (name := i.find(_OP_NAME))), "")
        names = [
            _unwrapped(part) for part in op_name.partition(";")[0].split("/")[1:]
        ]  # the first is the program
        layer = tuple(name for name in names[:-1] if name in self._modules)
        direction = _direction(op_name)
        if direction == "backward" and main.is_product and _is_of(layer, self._kernels):
            direction += " by weights" if _is_of(layer, self._like(main.shape)) else " by input"
        where = layer or tuple(name for name in names if name not in _CONTROL)[-2:]
        if len(where) > _DEEPEST:  # an all-reduce of many layers' gradients
            where = (where[0], "...", where[-1])
        return Operation(kind, "/".join(where), direction)

    def _main(self, instruction: _Instruction) -> _Instruction:
        """What a fusion is there for, or the instruction itself."""
        body = self._inside.get(instruction.find(_CALLS), ())
        return next(
            (inner for opcode in _MAIN for inner in body if inner.opcode == opcode), instruction
        )

    def _like(self, shape: Sequence[int]) -> list[Path]:
        """The layers whose kernel has a shape, but for the order of the axes and axes of length 1."""
        return [path for path, kernel in self._kernels.items() if _axes(kernel) == _axes(shape)]


def _is_of(layer: Path, paths: Iterable[Path]) -> bool:
    """Whether a layer, whose path may lack its beginning, is among the paths."""
    return bool(layer) and any(path[-len(layer) :] == layer for path in paths)


def _axes(shape: Sequence[int]) -> list[int]:
    return sorted(n for n in shape if n > 1)


def _direction(op_name: str) -> str:
    if "rematted_computation" in op_name:
        return "recomputed"
    return "backward" if "transpose(jvp" in op_name else "forward" if "jvp(" in op_name else ""


def _unwrapped(part: str) -> str:
    """A name without the transformations around it: "vmap(jit(_uniform))" is "_uniform"."""
    while wrapped := _WRAPPED.fullmatch(part):
        part = wrapped[1]
    return part
