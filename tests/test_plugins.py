import hashlib
import sys

import pytest

from medtl import plugins
from medtl.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adam", plugins.Spec("", "adam", (), {})),
        ("adam()", plugins.Spec("", "adam", (), {})),
        (
            "sgd(momentum=0.9, nesterov=True)",
            plugins.Spec("", "sgd", (), {"momentum": 0.9, "nesterov": True}),
        ),
        (
            "linear_schedule(0.0, 1.0, 1000)",
            plugins.Spec("", "linear_schedule", (0.0, 1.0, 1000), {}),
        ),
        (
            "contrib.muon(ns_coeffs=(3, -4, 2))",
            plugins.Spec("", "contrib.muon", (), {"ns_coeffs": (3, -4, 2)}),
        ),
        (
            "my_package.losses:focal(gamma=2.0)",
            plugins.Spec("my_package.losses", "focal", (), {"gamma": 2.0}),
        ),
        (
            " path/to/file.py:focal( gamma=-2 ) ",
            plugins.Spec("path/to/file.py", "focal", (), {"gamma": -2}),
        ),
        (
            "f(text='a:b(c)', none=None)",
            plugins.Spec("", "f", (), {"text": "a:b(c)", "none": None}),
        ),
        (r"C:\own\losses.py:focal", plugins.Spec(r"C:\own\losses.py", "focal", (), {})),
    ],
)
def test_a_call_is_read(text, expected):
    assert plugins.parse(text, key="k") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a name with options"),
        ("two words", "is not a name with options"),
        ("sgd(0.9", "is not a name with options"),
        ("sgd(momentum=)", "the options of 'sgd(momentum=)' cannot be read"),
        ("sgd(1)(2)", "cannot be read"),
        ("sgd(1)+sgd(2)", "cannot be read"),
        ("sgd(momentum=high)", "'high' is not a literal"),
        ("sgd(momentum=__import__('os').getpid())", "is not a literal"),
        ("sgd(**{'momentum': 1})", "has a '**'"),
        ("sgd(*(1, 2))", "is not a literal"),
        ("sgd(a=1, a=2)", "gives the option 'a' twice"),
    ],
)
def test_what_is_no_call_is_refused_with_its_key(text, message):
    with pytest.raises(UserError) as error:
        plugins.parse(text, key="config.stages.target.optimizer")
    assert message in str(error.value)
    assert str(error.value).startswith("config.stages.target.optimizer: ")
    assert "\n" not in str(error.value)


def test_a_bare_name_is_looked_up_in_the_default_module():
    plugin = plugins.resolve("comb(5, 2)", "math", key="k")
    assert plugin() == 10
    assert (plugin.name, plugin.args) == ("comb", (5, 2))


def test_where_there_is_no_default_module_a_file_must_be_named():
    with pytest.raises(UserError, match=r"k: 'mmd' names no file; write it like 'file\.py:mmd'"):
        plugins.resolve("mmd", "", key="k")


def test_a_dotted_name_is_followed():
    assert plugins.resolve("path.join('a', 'b')", "os", key="k")() == "a/b"


def test_a_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "own_losses.py").write_text(
        "def focal(outputs, batch, *, gamma=1.0):\n    return gamma\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins.resolve("own_losses:focal(gamma=2.0)", "math", key="k")(None, None) == 2.0


def test_a_file_is_loaded_relative_to_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    # A dataclass with postponed annotations looks its module up in sys.modules.
    (tmp_path / "sub" / "mine.py").write_text(
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass focal:\n    gamma: float = 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    plugin = plugins.resolve("sub/mine.py:focal(gamma=3.0)", "math", key="k")
    assert plugin().gamma == 3.0
    # The same content is one module, so that a class is one class.
    assert plugins.resolve("sub/mine.py:focal", "math", key="k").function is plugin.function
    with (tmp_path / "sub" / "mine.py").open("a") as file:
        file.write("    alpha: int = 0\n")
    changed = plugins.resolve("sub/mine.py:focal(alpha=1)", "math", key="k")
    assert changed().alpha == 1


def test_a_function_with_open_keywords_takes_any_option():
    plugin = plugins.resolve("textwrap:wrap(width=3, other=True)", "math", key="k")
    assert plugin.kwargs == {"width": 3, "other": True}


def test_a_plugin_that_raises_is_named_with_file_and_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def f(x):\n    y = 1\n    raise ValueError('no')\n")
    plugin = plugins.resolve("mine.py:f", "math", key="config.k")
    with pytest.raises(UserError) as error:
        plugin(1)
    assert (
        str(error.value)
        == "config.k 'mine.py:f': " + str(tmp_path / "mine.py") + ", line 3: ValueError: no"
    )


def test_the_files_behind_plugin_strings_are_hashed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text("f = abs\n")
    (tmp_path / "own_module.py").write_text("f = abs\n")
    texts = {
        "a": "mine.py:f",
        "b": "own_module:f",
        "c": "sgd(momentum=0.9)",
        "d": "",
        "e": "math:fabs",
    }
    digests = plugins.source_files(texts)
    assert digests.keys() == {"mine.py", "own_module"}  # a module in C has no file
    assert digests["mine.py"] == hashlib.sha256(b"f = abs\n").hexdigest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("squrt(2)", "k: math has no 'squrt'; did you mean 'sqrt'?"),
        ("pi", "k: 'pi' names a float; it must be a function"),
        (
            "no_such_package.losses:focal",
            "k: there is no module 'no_such_package.losses' on the Python path",
        ),
        ("os.no_such:focal", "k: there is no module 'os.no_such'"),
        (
            "textwrap:dedent(txet=3)",
            "k: 'textwrap:dedent(txet=3)': dedent has no option 'txet'; did you mean 'text'?",
        ),
        ("missing.py:focal", "k: there is no file missing.py"),
        ("sub/missing:focal", "k: sub/missing is not a Python file; its name must end in '.py'"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        plugins.resolve(text, "math", key="k")
    assert str(error.value).startswith(message)


def test_names_that_a_file_only_imports_are_not_offered(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from collections.abc import Sequence\nfrom medtl.errors import UserError\n"
        "class Broken(ValueError): ...\ndef focal(x): ...\ndef huber(x): ...\n"
    )
    with pytest.raises(UserError, match="has no 'squared'; it can be focal, huber$"):
        plugins.resolve(f"{file}:squared", "", key="k")
    file.write_text("from math import sqrt, hypot\n")  # defines none of its own
    with pytest.raises(UserError, match="has no 'focal'; it can be hypot, sqrt$"):
        plugins.resolve(f"{file}:focal", "", key="k")
    file.write_text("__all__ = ['sqrt']\nfrom math import sqrt, hypot\ndef own(): ...\n")
    with pytest.raises(UserError, match="has no 'focal'; it can be sqrt$"):
        plugins.resolve(f"{file}:focal", "", key="k")


def test_a_missing_file_names_the_nearest_beside_it(tmp_path):
    (tmp_path / "covid_ct.py").touch()
    with pytest.raises(
        UserError, match=r"there is no file .*covid\.py; did you mean '.*covid_ct\.py'\?"
    ):
        plugins.load_file(tmp_path / "covid.py", key="k")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import math\nmath.sqrt(-1)\n", "line 2: ValueError"),
        ("x = 1\ndef f(:\n", "line 2: SyntaxError: "),
        (
            "\n\nimport no_such_package_at_all\n",
            "line 3: ModuleNotFoundError: No module named 'no_such_package_at_all'",
        ),
        ("raise KeyError('a\\nb')\n", "line 1: KeyError: a b"),
        ("raise RuntimeError('long ' * 100)\n", "..."),
    ],
)
def test_a_file_that_raises_gets_one_line_with_its_line(tmp_path, source, message):
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(UserError) as error:
        plugins.load_file(tmp_path / "bad.py", key="k")
    assert message in str(error.value)
    assert str(error.value).startswith(f"k: {tmp_path / 'bad.py'}, line ")
    assert "\n" not in str(error.value)


def test_a_module_that_lacks_a_dependency_says_which(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError,
        match="the module 'needs_more' imports 'no_such_dependency', which is not installed",
    ):
        plugins.resolve("needs_more:f", "math", key="k")
    assert "needs_more" not in sys.modules
