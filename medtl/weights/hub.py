"""Files of the Hugging Face Hub, hf://org/repo/file[@revision], through its cache."""

from __future__ import annotations

import importlib.util
import re

from medtl.errors import UserError

_ADDRESS = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)/(?P<file>[^@]+?)(?:@(?P<revision>[^@]+))?")


def is_address(path: str) -> bool:
    """Return whether `path` is not a local one."""
    return "://" in path


def check(address: str) -> re.Match[str]:
    """Check the form of an address, without a network.

    Raises:
      UserError: it is not hf://org/repo/file[@revision], or huggingface_hub is missing.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(
            f"config.weights.path: {address!r} is not of the form hf://org/repo/file[@revision]"
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f"config.weights.path: reading {address} needs huggingface_hub: pip install medtl[hub]"
        )
    return match


def fetch(address: str) -> str:
    """Download the file unless the cache has it, and return its local path.

    Raises:
      UserError: there is no such file, or neither a network nor a copy in the cache.
    """
    match = check(address)
    from huggingface_hub import errors, hf_hub_download

    try:
        return hf_hub_download(match["repo"], match["file"], revision=match["revision"])
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"config.weights.path: {address} is not in the cache, and the Hub cannot be reached; "
            "download the file elsewhere and give its local path"
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
    except Exception as error:  # the library lets the errors of its HTTP client through
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"config.weights.path: {address} cannot be downloaded ({reason})"
        ) from error
