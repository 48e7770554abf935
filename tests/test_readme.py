"""What the README and the documentation show is what works."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from medtl import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
EVERY_PAGE = pytest.mark.parametrize("name", NAMES)
PLACEHOLDERS = ("--config=...", "--config.FIELD=VALUE")
# Flags are read before the mode is looked at, so this command stops after reading them.
NO_MODE = "--mode=none"


def blocks(name, language):
    text = (ROOT / name).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(name):
    """Every command line of the page's shell blocks, as words."""
    lines = [line for b in blocks(name, "bash") for line in b.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def flags_are_read(flags, capsys):
    assert cli.run([*flags, NO_MODE]) == 2
    return capsys.readouterr().err.startswith(f"medtl: error: {NO_MODE}: ")


@EVERY_PAGE
def test_every_override_shown_is_a_field(name, capsys):
    text = (ROOT / name).read_text()
    overrides = set(re.findall(r"--config\.[\w.]+=(?:\"[^\"]*\"|[^\s`,;)\]]*)", text))
    for override in sorted(overrides - {*PLACEHOLDERS}):
        field, value = override.removesuffix(".").split("=", 1)
        value = value.strip('"').removesuffix("...") or "x"
        assert flags_are_read([f"{field}={value}"], capsys), override


@EVERY_PAGE
def test_every_command_shown_resolves(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(name):
        program, *arguments = words
        if program == "python" and arguments[0].endswith(".py"):
            assert Path(arguments[0]).is_file(), words
        if arguments[:1] != ["launch.py"]:
            continue
        flags = [a for a in arguments[1:] if not a.startswith("--mode=")]
        modes = {a.removeprefix("--mode=") for a in arguments if a.startswith("--mode=")}
        assert modes <= {*cli.MODES}, words
        config = next((a for a in flags if a.startswith("--config=")), "")
        if config.startswith("--config=my_"):  # the reader's own file
            flags.remove(config)
        assert flags_are_read(flags, capsys), words


def test_the_config_file_of_the_page_is_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [source] = [b for b in blocks("docs/config.md", "python") if "get_config" in b]
    Path("my_hospital.py").write_text(source)
    assert cli.load_config_file("my_hospital.py").stages.target.freeze == "layer2"


@EVERY_PAGE
def test_every_name_imported_exists(name):
    for source in blocks(name, "python"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("medtl"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    assert hasattr(module, alias.name) or importlib.import_module(submodule)


@EVERY_PAGE
def test_every_link_leads_to_a_file(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_two_commands_of_the_readme_are_those_of_the_checks():
    readme, checks = ((ROOT / path).read_text() for path in ("README.md", ".ci/run"))
    for command in ('python -m pip install -e ".[test]"', "python -m pytest"):
        assert command in readme
        assert command in checks


def test_lines_of_markdown_end_at_column_100_but_for_tables():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("[!_]*/*.md")]
    long = [
        f"{page.relative_to(ROOT)}:{i}"
        for page in pages
        for i, line in enumerate(page.read_text().splitlines(), 1)
        if len(line) > 100 and not line.startswith("|")  # a row of a table is one line
    ]
    assert long == []
