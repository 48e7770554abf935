"""Code that a run folder names: it runs only if the user has run it before, or accepts it.

A config holds plug-in strings such as "losses.py:focal" or "package.module:name". From the user's
command line or config file that is the feature; in the `config.json` or checkpoint of a received
folder it would run a stranger's code. Training accepts the strings of its own config. Imports no
JAX, and nothing that it judges.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from medtl import plugins
from medtl.errors import UserError


def check(texts: Mapping[str, str], folder: str | os.PathLike, *, accept: bool = False) -> None:
    """Refuse plug-in strings from a folder whose code the user has not accepted.

    Bare names, which medtl and Optax define, need no acceptance.

    Args:
      texts: config key -> plug-in string, as the folder has them.
      folder: for errors.
      accept: accept them now.

    Raises:
      UserError: names the first string and its key.
    """
    if accept:
        remember(texts)
        return
    accepted = _accepted()
    for key, text in texts.items():
        if (digest := _digest(text, key)) and digest not in accepted:
            raise UserError(
                f"{folder} asks to run {text!r} ({key}), which you have not run before, or which "
                "has changed since; if you trust that code, add --accept_code"
            )


def remember(texts: Mapping[str, str]) -> None:
    """Accept plug-in strings, with the present content of the files that they name."""
    digests = {_digest(text, key) for key, text in texts.items()} - {""} - _accepted()
    if not digests:
        return
    try:
        _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(_file(), "a", encoding="ascii") as file:
            file.writelines(f"{digest}\n" for digest in sorted(digests))
    except OSError:
        pass  # without a home the user is asked again


def _digest(text: str, key: str) -> str:
    """Return a digest of the string and of the file it names; "" for a bare name."""
    spec = plugins.parse(text, key=key) if text else None
    if spec is None or not (spec.module or "." in spec.name):
        return ""
    digest = hashlib.sha256(text.encode())
    if Path(spec.module).is_file():
        digest.update(Path(spec.module).read_bytes())
    return digest.hexdigest()


def _accepted() -> set[str]:
    try:
        return set(_file().read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return set()


def _file() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "medtl" / "accepted_code"
