"""Weights of the Hugging Face Hub, hf://org/repo[/file][@revision], through its cache.

An address without a file takes the repository's weight file, and with it the small files that
state the input's normalization.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medtl.errors import UserError, nearest
from medtl.weights import siblings

_ADDRESS = re.compile(
    r"hf://(?P<repo>[^/@]+/[^/@]+)(?:/(?P<file>[^@]+?))?(?:@(?P<revision>[^@]+))?"
)
FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "model.weights.h5",
    "tf_model.h5",
    "model.keras",
)
"""The names of weight files, the first that a repository has is taken."""
_SECONDS = 1.5  # until a server that does not answer counts as absent


def is_address(path: str) -> bool:
    """Return whether `path` is not a local one."""
    return "://" in path


def check(address: str) -> re.Match[str]:
    """Check the form of an address, without a network.

    Raises:
      UserError: it is not hf://org/repo[/file][@revision], or huggingface_hub is missing.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(
            f"config.weights.path: {address!r} is not of the form hf://org/repo/file[@revision] or "
            "hf://org/repo[@revision]"
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"config.weights.path: reading {address} needs huggingface_hub: pip install medtl[hub]"
        )
    return match


def fetch(address: str) -> str:
    """Download the file unless the cache has it, and return its local path.

    Files that state the normalization come with it where the repository has them. Without a
    network, the cache alone is read.

    Raises:
      UserError: there is no such file, or neither a network nor a copy in the cache.
    """
    match = check(address)
    from huggingface_hub import errors

    is_online = _is_online()
    try:
        name = match["file"] or _choose(_names(match, is_online), address)
        local = _download(match, name, is_online)
        if name.endswith(".index.json"):
            for part in siblings.parts(local):
                _download(match, part, is_online)
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"config.weights.path: {address} is not in the cache, and the Hub cannot be reached; "
            f"where there is a network, run `hf download {match['repo']}` and copy "
            "~/.cache/huggingface, or give the local path of the downloaded file"
        ) from error
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.EntryNotFoundError,
    ) as error:
        kinds = {
            errors.RepositoryNotFoundError: "repository",
            errors.RevisionNotFoundError: "revision",
        }
        kind = next((name for cls, name in kinds.items() if isinstance(error, cls)), "file")
        raise UserError(
            f"config.weights.path: the Hub has no such {kind}, or you have no access: {address}"
        ) from error
    except UserError:
        raise
    except Exception as error:  # the library lets the errors of its HTTP client through
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"config.weights.path: {address} cannot be downloaded ({reason})"
        ) from error
    for name in siblings.FILES:
        try:
            _download(match, name, is_online)
        except Exception:
            continue
    return local


def pinned(address: str, local: str) -> str:
    """Return the address with the commit of its local copy, so that it stays the same file.

    >>> pinned("hf://lab/net@main", f"/cache/models--lab--net/snapshots/{'a' * 40}/w.safetensors")
    'hf://lab/net/w.safetensors@aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
    """
    found = re.search(r"/snapshots/([0-9a-f]{40})/(.+)$", local)
    match = _ADDRESS.fullmatch(address)
    if found is None or match is None:
        return address
    return f"hf://{match['repo']}/{found[2]}@{found[1]}"


def push(path: str | Path, repo: str, *, card: str = "", private: bool = True) -> str:
    """Upload a weight file that `medtl.experiment.inference.export` wrote, with a model card.

    Args:
      path: the `.safetensors` file; its `_loader.py` beside it goes along.
      repo: "org/name"; it is made where it is absent.
      card: the text of README.md; empty: the repository's card stays as it is.
      private: whether a new repository is private.

    Returns:
      The address for `config.weights.path`, with the commit.

    Raises:
      UserError: the file is missing, or the Hub refuses the upload.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(f"push: there is no .safetensors file {path}")
    check(f"hf://{repo}")
    from huggingface_hub import CommitOperationAdd, HfApi

    loader = path.with_name(f"{path.stem}_loader.py")
    sent: list[tuple[str, Any]] = [("model.safetensors", str(path))]
    sent += [("model_loader.py", str(loader))] if loader.is_file() else []
    sent += [("README.md", card.encode())] if card else []
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(
            repo,
            operations=[CommitOperationAdd(name, content) for name, content in sent],
            commit_message="Upload a medtl model",
        )
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"push: {repo} does not take the model ({reason})") from error
    return f"hf://{repo}/model.safetensors@{commit.oid}"


def _download(match: re.Match[str], name: str, is_online: bool) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(
        match["repo"], name, revision=match["revision"], local_files_only=not is_online
    )


def _names(match: re.Match[str], is_online: bool) -> Sequence[str]:
    """Return the names of a repository's files, or of those in the cache."""
    from huggingface_hub import HfApi, errors, snapshot_download

    if is_online:
        return HfApi().list_repo_files(match["repo"], revision=match["revision"])
    try:
        folder = snapshot_download(match["repo"], revision=match["revision"], local_files_only=True)
    except errors.LocalEntryNotFoundError:
        raise
    return [str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()]


def _choose(names: Sequence[str], address: str) -> str:
    """Return the weight file among the names of a repository's files."""
    for name in FILES:
        if name in names:
            return name
    weights = [n for n in names if n.endswith((".safetensors", ".bin", ".pth", ".h5", ".npz"))]
    if len(weights) == 1:
        return weights[0]
    held = f"it has {', '.join(weights[:5])}" if weights else "it has no weight file"
    raise UserError(
        f"config.weights.path: {address} has none of {', '.join(FILES)}; {held}. Give the file: "
        f"{address.partition('@')[0]}/FILE{nearest(FILES[0], weights)}"
    )


def _is_online() -> bool:
    """Return whether the Hub answers, without the minutes of the library's own attempts."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    proxies = urllib.request.getproxies()
    if (url.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(host):
        return True  # the proxy answers, or the library says that it does not
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError:
        return False
    return True
