"""The examples of docs/extending.md, written out as a user would have them."""

import re
import shlex
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()


def examples():
    """Return section title -> (file name, content, overrides)."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        code = re.search(r"```python\n# (\S+)\n(.*?)```", section, re.DOTALL)
        shell = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
        flags = shlex.split(shell[1].replace("\\\n", " "))
        found[section.split("\n", 1)[0]] = (code[1], code[2], flags)
    return found


def write_files(folder):
    """Write every file of the page into a folder."""
    for name, content, _ in examples().values():
        (folder / name).write_text(content)


def nonblank(content):
    return [line for line in content.splitlines() if line.strip()]
