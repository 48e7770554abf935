"""The package's structure: imports run down, files and functions are short."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medtl"
# Lowest first; a part may import those of lower lines. A package is one part.
LAYERS = [
    {"errors"},
    {"files", "terminal"},
    {"plugins", "examples"},
    {"models", "losses"},
    {"data", "weights", "evaluation"},
    {"config"},
    {"training"},
    {"profiling"},
    {"experiment"},
    {"sweep"},
    {"cli"},
    {"__main__"},
]
# Answered before JAX is imported: flags, configs, manifests, figures.
WITHOUT_JAX = (
    "errors",
    "files",
    "examples",
    "plugins",
    "config.check",
    "cli",
    "data",
    "experiment.splits",
    "experiment.run_folder",
    "experiment.results",
    "evaluation",
    "models.architectures",
    "weights",
)


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions, with `from a import b` as "a.b"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts_graph() -> dict[str, set[str]]:
    """part of medtl (a module or package right below it) -> the other parts that it imports."""
    graph: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = module_of(path)
        if module == "medtl":
            continue
        part = module.split(".")[1]
        own = {name.split(".")[1] for name in imports_of(path) if name.startswith("medtl.")}
        graph.setdefault(part, set()).update(own - {part, "__version__"})
    return graph


GRAPH = parts_graph()


@pytest.mark.parametrize("part", sorted(GRAPH))
def test_imports_run_down(part):
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    assert part in rank, f"medtl/{part} is new: say in LAYERS above which layer it belongs to"
    assert {other for other in GRAPH[part] if rank.get(other, 0) >= rank[part]} == set()


def test_there_is_no_circle():
    TopologicalSorter(GRAPH).prepare()  # raises CycleError


def test_nothing_needs_tensorflow_and_torch_only_reads_weights():
    users: dict[str, set[str]] = {"tensorflow": set(), "torch": set(), "keras": set()}
    for path in PACKAGE.rglob("*.py"):
        for name in imports_of(path):
            users.get(name.partition(".")[0], set()).add(module_of(path))
    assert users["tensorflow"] == users["keras"] == set()
    assert all(module.startswith("medtl.weights.") for module in users["torch"])


def test_mistakes_are_found_without_jax_and_other_slow_imports():
    present = [
        f"medtl.{m}"
        for m in WITHOUT_JAX
        if (PACKAGE / m.replace(".", "/")).with_suffix(".py").exists() or (PACKAGE / m).is_dir()
    ]
    program = (
        f"import importlib, sys\nfor m in {present}: importlib.import_module(m)\n"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    slow = {
        "jax",
        "flax",
        "optax",
        "orbax",
        "torch",
        "tensorflow",
        "keras",
        "pandas",
        "sklearn",
        "grain",
        "tensorflow_datasets",
    }
    assert slow & set(done.stdout.split()) == set()


def sizes_of_functions(path: Path) -> dict[str, int]:
    """Return function -> lines, without the docstring's."""
    sizes = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            text = (first.end_lineno - first.lineno + 1) if is_docstring else 0
            sizes[f"{path.name}:{node.name}"] = node.end_lineno - node.lineno + 1 - text
    return sizes


def test_no_file_is_over_450_lines_and_no_function_over_60():
    files = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")
    }
    assert {path.name: n for path, n in files.items() if n > 450} == {}
    functions = {name: n for path in files for name, n in sizes_of_functions(path).items()}
    assert {name: n for name, n in functions.items() if n > 60} == {}


def test_the_top_of_the_package_has_at_most_16_entries():
    marks = {"__init__.py", "__main__.py", "py.typed", "__pycache__"}
    assert len({path.name for path in PACKAGE.iterdir()} - marks) <= 16
