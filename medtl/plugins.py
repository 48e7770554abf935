"""Plug-in strings: "sgd(momentum=0.9)", "package.losses:focal(gamma=2.0)", "focal.py:focal".

A bare name is looked up in a default module, `module:name` is imported, and `file.py:name` is
loaded from the file; there is no registry. Options are Python literals: nothing else in the text is
evaluated. Imports no JAX by itself.
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
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
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
    """A plug-in string that was parsed but not looked up.

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
    """Parse `name`, `name(options)`, `module:name(options)` or `file.py:name(options)`.

    Args:
      text: the config's value.
      key: the config's key, for errors.

    Raises:
      UserError: the text has another form, or an option is not a literal.

    >>> parse("losses.py:focal(gamma=2.0)", key="config.example")
    Spec(module='losses.py', name='focal', args=(), kwargs={'gamma': 2.0})
    """
    match = _CALL.fullmatch(text.strip())
    if not match:
        raise UserError(
            f"{key}: {text!r} is not a name with options; write it like 'name', "
            "'name(option=1.0)' or 'file.py:name'"
        )
    module, name, call = match["module"] or "", match["name"], match["call"] or "()"
    try:
        node = ast.parse(f"f{call}", mode="eval").body
    except SyntaxError:
        node = None
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise UserError(
            f"{key}: the options of {text!r} cannot be read; write them like "
            "'name(option=1.0, other=True)'"
        )
    kwargs: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise UserError(f"{key}: {text!r} has a '**' in its options; name each of them")
        if keyword.arg in kwargs:
            raise UserError(f"{key}: {text!r} gives the option {keyword.arg!r} twice")
        kwargs[keyword.arg] = _literal(keyword.value, text, key)
    return Spec(module.strip(), name, tuple(_literal(arg, text, key) for arg in node.args), kwargs)


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A callable that a config names, with the options that the config gives it.

    Attributes:
      text: the plug-in string.
      key: the config's key, for errors.
      function: the function or class.
      args: positional options.
      kwargs: named options.
    """

    text: str
    key: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the function or class, without module and options."""
        return getattr(self.function, "__name__", self.text)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with `args`, then the config's options.

        Raises:
          UserError: the function raises; names the file and the line.
        """
        with self.blame():
            return self.function(*args, *self.args, **{**kwargs, **self.kwargs})

    def blame(self) -> AbstractContextManager[None]:
        """Return the context in which an exception of the user's code names its file and line."""
        return blame(_source(self.function), key=f"{self.key} {self.text!r}")


def resolve(text: str, default_module: str, *, key: str) -> Plugin:
    """Find the callable that a config names.

    Args:
      text: the plug-in string.
      default_module: the module in which a bare name is looked up, e.g. "optax"; empty: none is.
      key: the config's key, for errors.

    Raises:
      UserError: no such module, file, or function (names the nearest), an option that it does not
        have, or the module fails.

    >>> plugin = resolve("hypot(4.0)", "math", key="config.example")
    >>> plugin(3.0)
    5.0
    """
    spec = parse(text, key=key)
    if not (spec.module or default_module):
        raise UserError(
            f"{key}: {text!r} names no file; write it like 'file.py:{spec.name}' or "
            f"'package.module:{spec.name}'"
        )
    module = _module(spec.module or default_module, key)
    function = _attribute(module, spec.name, text, key)
    _check_options(function, spec, text, key)
    return Plugin(text, key, function, spec.args, spec.kwargs)


def accepted(function: Callable[..., Any], names: Iterable[str]) -> frozenset[str]:
    """Return which of these arguments a function has and its plug-in string does not give.

    >>> sorted(accepted(parse, ("key", "class_counts")))
    ['key']
    """
    given = function.kwargs if isinstance(function, Plugin) else {}
    called = function.function if isinstance(function, Plugin) else function
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # some builtins have none
        return frozenset()
    return frozenset(name for name in names if name in parameters and name not in given)


def source_files(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the sha256 of each file behind plug-in strings that name a file or a module.

    Args:
      texts: config key -> plug-in string; bare names and empty strings are left out.

    Returns:
      The file or module as the config writes it -> sha256; with "module:name" in addition where
      another file defines the function. What has no Python file is left out; files that a
      plug-in's file imports are not followed.
    """
    digests = {}
    for key, text in texts.items():
        spec = parse(text, key=key) if text else None
        if spec is None or not spec.module:
            continue
        if path := _file_of(spec.module):
            digests[spec.module] = hashlib.sha256(path.read_bytes()).hexdigest()
        # The module may only re-export the function.
        defined = Path(_source(resolve(text, "", key=key).function))
        if defined.is_file() and (path is None or defined.resolve() != path.resolve()):
            digests[f"{spec.module}:{spec.name}"] = hashlib.sha256(defined.read_bytes()).hexdigest()
    return digests


def _file_of(module: str) -> Path | None:
    if _is_file(module):
        path = Path(module)
        return path if path.is_file() else None
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    origin = found.origin if found else None
    return Path(origin) if origin and origin.endswith(".py") and Path(origin).is_file() else None


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsourcefile(inspect.unwrap(function)) or ""
    except TypeError:  # a built-in has none
        return ""


def _is_file(module: str) -> bool:
    return module.endswith(".py") or "/" in module or os.sep in module


def load_file(path: str | os.PathLike, *, key: str) -> ModuleType:
    """Run a Python file and return it as a module; the same content is run once in a process.

    Raises:
      UserError: there is no such file (names the nearest beside it), or it raises (names the line).
    """
    path = Path(path)
    if path.suffix != ".py" and (path.is_file() or not path.exists()):
        raise UserError(f"{key}: {path} is not a Python file; its name must end in '.py'")
    if not path.is_file():
        near = _hint(str(path), map(str, path.parent.glob("*.py")))
        raise UserError(f"{key}: there is no file {path}{near}")
    absolute = path.resolve()
    digest = hashlib.sha256(str(absolute).encode() + absolute.read_bytes()).hexdigest()
    name = f"{path.stem}_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, absolute)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # never None for ".py"
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        with blame(path, key=key):
            spec.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def blame(path: str | os.PathLike, *, key: str) -> Iterator[None]:
    """Turn an exception from a user's file into one line that names the file and the line in it.

    Raises:
      UserError: the file raised.
    """
    try:
        yield
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(f"{key}: {path} ends the program (exit code {error.code})") from None
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
    """Return the error's message on one line; ml_collections nests errors over several lines."""
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
            f"{key}: in {text!r}, {ast.unparse(node)!r} is not a literal; options are numbers, "
            "strings in quotes, True, False or None"
        ) from None


def _module(name: str, key: str) -> ModuleType:
    if _is_file(name):
        return load_file(name, key=key)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise UserError(
                f"{key}: there is no module {name!r} on the Python path; a file is named like "
                "'file.py:name'"
            ) from None
        raise UserError(
            f"{key}: the module {name!r} imports {missing!r}, which is not installed"
        ) from None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{key}: the module {name!r} fails, {frame.filename}, line {frame.lineno}: "
            f"{type(error).__name__}: {_one_line(error)}"
        ) from None


def _attribute(module: ModuleType, dotted: str, text: str, key: str) -> Callable[..., Any]:
    value: Any = module
    for part in dotted.split("."):
        if not hasattr(value, part):
            hint = _hint(part, _offered(value))
            raise UserError(f"{key}: {module.__name__} has no {dotted!r}{hint}")
        value = getattr(value, part)
    if not callable(value):
        raise UserError(f"{key}: {text!r} names a {type(value).__name__}; it must be a function")
    return value


def _offered(value: Any) -> list[str]:
    """Return the names that a config can give; what a module imports from elsewhere is left out."""
    exported = getattr(value, "__all__", None)
    names = exported or [name for name in dir(value) if not name.startswith("_")]
    with warnings.catch_warnings():  # a deprecated name warns when it is looked up
        warnings.simplefilter("ignore")
        functions = {name: getattr(value, name, None) for name in names}
    functions = {name: f for name, f in functions.items() if callable(f) and not _is_error(f)}
    package = _package(value)
    defined = [name for name, f in functions.items() if _package(f) == package]
    return list(functions) if exported or not defined else defined


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _package(value: Any) -> str:
    """Return the top-level package of a module, or of the one that defines a function or class."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return str(name).partition(".")[0]


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
