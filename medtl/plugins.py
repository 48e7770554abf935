"""What a config names by a call: "sgd(momentum=0.9)", "my_package.losses:focal(gamma=2.0)", "losses.py:focal(gamma=2.0)".

An import path is the registry: a bare name is looked up in a default module, `module:name` is imported, and `file.py:name` is
loaded from the file. Arguments are Python literals; nothing else in the text is evaluated. Imports no JAX by itself.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from medtl.errors import UserError, nearest

_CALL = re.compile(
    r"(?:(?P<module>[^()]+?):)?(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?P<call>\(.*\))?",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A call that was read but not looked up.

    Attributes:
      module: an importable module, a path that ends in ".py", or "" for a bare name.
      name: the function's name, which may be dotted.
      args: positional arguments.
      kwargs: keyword arguments.
    """

    module: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def parse(text: str, *, key: str) -> Spec:
    """Reads `name`, `name(arguments)`, `module:name(arguments)` or `file.py:name(arguments)`.

    Args:
      text: the config's value.
      key: the config's key, for errors.

    Raises:
      UserError: it is no such call, or an argument is not a literal.
    """
    match = _CALL.fullmatch(text.strip())
    if not match:
        raise UserError(
            f"{key}: {text!r} is not a name with options; write it like 'name', 'name(option=1.0)' or 'file.py:name'"
        )
    module, name, call = match["module"] or "", match["name"], match["call"] or "()"
    try:
        node = ast.parse(f"f{call}", mode="eval").body
    except SyntaxError:
        node = None
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise UserError(
            f"{key}: the options of {text!r} cannot be read; write them like 'name(option=1.0, other=True)'"
        )
    kwargs: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise UserError(f"{key}: {text!r} has a '**' in its options; name each of them")
        if keyword.arg in kwargs:
            raise UserError(f"{key}: {text!r} gives the option {keyword.arg!r} twice")
        kwargs[keyword.arg] = _literal(keyword.value, text, key)
    return Spec(module.strip(), name, tuple(_literal(arg, text, key) for arg in node.args), kwargs)


def resolve(
    text: str, default_module: str, *, key: str
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The function that the config names, and the arguments it gives; the caller adds its own and calls it.

    Args:
      text: as `parse` reads it.
      default_module: where a bare name is looked up, e.g. "optax".
      key: the config's key, for errors.

    Raises:
      UserError: no such module, file, or function (names the nearest), an option that it does not have, or the module fails.
    """
    spec = parse(text, key=key)
    module = _module(spec.module or default_module, key)
    function = _attribute(module, spec.name, text, key)
    _check_options(function, spec, text, key)
    return function, spec.args, spec.kwargs


def load_file(path: str | os.PathLike, *, key: str) -> ModuleType:
    """Runs a Python file and returns it as a module.

    Raises:
      UserError: there is no such file (names the nearest beside it), or it raises (names the line).
    """
    path = Path(path)
    if not path.is_file():
        if path.suffix != ".py" and not path.exists():
            raise UserError(f"{key}: {path} is not a Python file; its name must end in '.py'")
        raise UserError(
            f"{key}: there is no file {path}{_hint(str(path), map(str, path.parent.glob('*.py')))}"
        )
    if path.suffix != ".py":
        raise UserError(f"{key}: {path} is not a Python file; its name must end in '.py'")
    absolute = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(absolute).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, absolute)
    module = importlib.util.module_from_spec(found)  # type: ignore[arg-type]  # never None for a name in ".py"
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    with blame(path, key=key):
        found.loader.exec_module(module)  # type: ignore[union-attr]
    return module


@contextmanager
def blame(path: str | os.PathLike, *, key: str) -> Iterator[None]:
    """Turns what a user's file raises into one line that names the file and the line in it.

    Raises:
      UserError: the file raised.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        resolved = str(Path(path).resolve())
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == resolved
        ]
        if isinstance(error, SyntaxError) and error.filename == resolved:
            lines.append(error.lineno)
        where = f", line {lines[-1]}" if lines else ""
        raise UserError(
            f"{key}: {path}{where}: {type(error).__name__}: {_one_line(error)}"
        ) from None


def _one_line(error: Exception) -> str:
    """What the error says; ml_collections wraps one error in another and spreads it over lines."""
    inner: Any = error
    while inner.args and isinstance(inner.args[0], Exception):
        inner = inner.args[0]
    text = (
        inner.msg
        if isinstance(inner, SyntaxError)
        else inner.args[0]
        if isinstance(inner, KeyError) and inner.args
        else inner
    )
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def _hint(name: str, choices: Iterable[str]) -> str:
    hint = nearest(name, choices)
    return hint if len(hint) < 200 else ""  # a library's hundred names are no help


def _literal(node: ast.expr, text: str, key: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise UserError(
            f"{key}: in {text!r}, {ast.unparse(node)!r} is not a literal; options are numbers, strings in quotes, True, False or None"
        ) from None


def _module(name: str, key: str) -> ModuleType:
    if name.endswith(".py") or "/" in name or os.sep in name:
        return load_file(name, key=key)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise UserError(
                f"{key}: there is no module {name!r} on the Python path; a file is named like 'file.py:name'"
            ) from None
        raise UserError(
            f"{key}: the module {name!r} imports {missing!r}, which is not installed"
        ) from None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{key}: the module {name!r} fails, {frame.filename}, line {frame.lineno}: {type(error).__name__}: {_one_line(error)}"
        ) from None


def _attribute(module: ModuleType, dotted: str, text: str, key: str) -> Callable[..., Any]:
    found: Any = module
    for part in dotted.split("."):
        if not hasattr(found, part):
            choices = [
                name
                for name in dir(found)
                if not name.startswith("_") and callable(getattr(found, name, None))
            ]
            raise UserError(f"{key}: {module.__name__} has no {dotted!r}{_hint(part, choices)}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{key}: {text!r} names a {type(found).__name__}; it must be a function")
    return found


def _check_options(function: Callable[..., Any], spec: Spec, text: str, key: str) -> None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    named = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for option in spec.kwargs:
        if option not in named:
            raise UserError(
                f"{key}: {text!r}: {spec.name} has no option {option!r}{nearest(option, named)}"
            )
