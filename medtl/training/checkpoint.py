"""Checkpoints of a training stage: saved, resumed and handed on. No other file knows Orbax.

A checkpoint holds the training state as host arrays under the names of its tree, and a JSON record.
Orbax has been seen to restore a part of a tree without an error; so names, shapes and dtypes are
recorded beside the arrays and compared here, with a checksum of each array and of the record: a
flipped bit is an error, not another model. Refuses a checkpoint of another model by name. The
content does not depend on the number of devices and processes. All processes save and restore
together, in one folder that all of them see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers as policies

from medtl import files
from medtl.errors import UserError
from medtl.training import hosts, launching

State = Any
# Names in checkpoints of version 0.1, as regular expressions, and today's.
_FORMER_NAMES = (
    (r"(^|/)backbone/", r"\1encoders/image/"),
    (r"^given/lambda_$", "values/objective.lambda_"),
    (r"^given/", "values/"),
)


@dataclasses.dataclass
class Store:
    """The checkpoints of one training stage: the last, and the best where they are scored.

    | moment | what is on disk |
    |---|---|
    | after `save` returns | the former checkpoints; the new one is written in the background |
    | after `wait` returns | the new one, the best by score, and nothing else |
    | a process that is killed while saving | the former checkpoints, complete |
    | a process that is killed while deleting | perhaps a part of an old one, which is ignored |
    | a damaged file | `UserError` names the checkpoint; without it the one before is used |

    Attributes:
      folder: the training stage's; checkpoints are in `checkpoints/STEP`.
      shared: arrays by name that every checkpoint of the stage has and none holds: a frozen
        backbone, of which the record keeps the checksums. Those of a checkpoint that was saved
        with them are needed to read its arrays.
    """

    folder: Path
    shared: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_quiet_orbax)
        if getattr(sys.unraisablehook, "func", None) is not _quiet_threads:
            sys.unraisablehook = functools.partial(_quiet_threads, sys.unraisablehook)
        # The rank is a pair, which sorts as the number does that Orbax declares.
        rank: Any = _rank
        kept = [
            policies.LatestN(n=1),
            policies.BestN(n=1, get_metric_fn=rank, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            # Without it Orbax writes no metrics, and a resumed run would delete the best.
            best_fn=rank,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        with self._damage("*"):
            self._manager = ocp.CheckpointManager(
                self.folder.absolute() / "checkpoints", options=options
            )

    @property
    def last_step(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    @functools.cached_property
    def _best(self) -> dict[str, Any] | None:
        """Score and step of the best checkpoint so far; read once, then kept by `save`."""
        if self.last_step is None:
            return None
        record, steps = self.record(self.last_step), self.steps()
        best = record.get("best")
        if best is not None and best["step"] not in steps:
            print(f"{self.folder}: the best checkpoint, {best['step']}, is gone; the next is used")
        elif "best" in record:  # older versions did not record it
            return best
        return max(self._ranked(), key=_rank, default=None)

    def improves(self, score: float | None) -> bool:
        """Return whether this score is better than all before it."""
        is_defined = score is not None and math.isfinite(score)
        return is_defined and (self._best is None or score > self._best["score"])

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: State, record: Mapping[str, Any], *, score: float | None = None
    ) -> None:
        """Copy the state to the host and write it in the background.

        Args:
          step: the number of optimizer steps done.
          state: any pytree of arrays.
          record: JSON: the origin of the checkpoint, see `experiment.provenance.record`.
          score: the higher the better; None, or NaN where it is undefined: the state is not ranked.
            The last state is handed on where none is.
        """
        arrays = {
            name: hosts.fetched(leaf)
            for name, leaf in named(state).items()
            if name not in self.shared
        }
        spec = {name: [list(a.shape), str(a.dtype)] for name, a in arrays.items()}
        ranked = None
        if score is not None and math.isfinite(score):
            ranked = {"score": score, "step": step}
            if self.improves(score):
                self._best = ranked
        content = {
            **record,
            "step": step,
            "tree": spec,
            "checksums": {name: checksum(a) for name, a in arrays.items()},
            "shared": self._shared_checksums,
            "ranked": ranked,
            "best": self._best,
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays),
                record=ocp.args.JsonSave({**content, "digest": files.digest(content)}),
            ),
            metrics=ranked,
            force=True,
        )

    @functools.cached_property
    def _shared_checksums(self) -> dict[str, int]:
        return {name: checksum(array) for name, array in self.shared.items()}

    def record(self, step: int) -> dict[str, Any]:
        """Return the JSON record of a checkpoint.

        Raises:
          UserError: it is damaged.
        """
        with self._damage(step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
            )
            record = dict(restored["record"])
            digest = record.pop("digest", None)
            # Older versions wrote neither: a record with one of them alone is a damaged one.
            has_digest = digest is not None or "checksums" in record
            if has_digest and digest != files.digest(record):
                raise ValueError("its record has changed since it was written")
        return record

    @contextlib.contextmanager
    def _damage(self, step: int | str) -> Iterator[None]:
        """Turn what Orbax raises for files it cannot read into one error with a way out."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # JSON, missing keys and files, compressed data, ...
            if launching.is_loss(error) or files.fault(error):
                raise
            reason = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
            raise UserError(
                f"checkpoint {self.folder}/checkpoints/{step} is damaged ({reason}); delete that "
                "folder, and the same command goes on from the checkpoint before it"
            ) from error

    def restore(self, step: int, like: State) -> State:
        """Return the state saved at `step`, as host arrays in the structure of `like`.

        Raises:
          UserError: where names, shapes or dtypes differ from `like`, naming the first five.
        """
        arrays = self.arrays(step)
        wanted = named(like)
        for name in wanted.keys() - arrays.keys():
            former = name.replace("/inner_state/", "/")  # weight decay in version 0.1
            if former in arrays and former not in wanted:
                arrays[name] = arrays.pop(former)
        differences = [f"{n} is not in it" for n in wanted if n not in arrays]
        differences += [f"{n} is not in the model" for n in arrays if n not in wanted]
        for name in wanted.keys() & arrays.keys():
            have, want = arrays[name], wanted[name]
            if have.shape != np.shape(want) or have.dtype != want.dtype:
                differences.append(
                    f"{name} is {have.dtype}{list(have.shape)}, "
                    f"not {want.dtype}{list(np.shape(want))}"
                )
        if differences:
            raise UserError(
                f"checkpoint {self.folder}/checkpoints/{step} is of another model "
                f"({len(differences)} differences): {'; '.join(differences[:5])}"
            )
        leaves = [arrays[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Return every array of a checkpoint by name, checked against its record.

        Raises:
          UserError: it is damaged.
        """
        record = self.record(step)
        with self._damage(step):
            # Without it Orbax asks each stored array for its spec, and tensorstore 0.1.86 loses ten
            # objects at each; what is read does not go into these.
            like = {n: np.empty(shape, dtype) for n, (shape, dtype) in record["tree"].items()}
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
            )
            arrays = {name: np.asarray(a) for name, a in restored["state"].items()}
            present = {name: [list(a.shape), str(a.dtype)] for name, a in arrays.items()}
            names = record["tree"].keys() | present.keys()
            wrong = [n for n in names if record["tree"].get(n) != present.get(n)]
            checksums = record.get("checksums", {})  # older versions have none
            wrong += [n for n in checksums if n in arrays and checksum(arrays[n]) != checksums[n]]
            if wrong:
                raise ValueError(
                    f"{len(wrong)} arrays have changed: {', '.join(sorted(wrong)[:3])}"
                )
        shared = record.get("shared", {})  # older versions have none
        if wrong := [n for n, crc in shared.items() if self._shared_checksums.get(n) != crc]:
            raise UserError(
                f"checkpoint {self.folder}/checkpoints/{step} holds no frozen backbone, and "
                f"{len(wrong)} arrays of the one at hand differ from that of the training: "
                f"{', '.join(sorted(wrong)[:3])}"
            )
        arrays |= {name: self.shared[name] for name in shared}
        if any(name.startswith("params/encoders/") for name in arrays):
            return arrays
        return {_renamed(name): a for name, a in arrays.items()}

    @property
    def is_ranked(self) -> bool:
        """Whether a checkpoint has a score."""
        return self._best is not None

    def chosen_step(self) -> int:
        """Return the step of the best checkpoint, the earliest of equals; else the last step."""
        if self.last_step is None:
            raise UserError(f"no checkpoint in {self.folder}; train first")
        return self.last_step if self._best is None else self._best["step"]

    def _ranked(self) -> Iterator[dict[str, Any]]:
        for step in self.steps():
            with contextlib.suppress(UserError):
                ranked = self.record(step)["ranked"]
                # Version 0.1 kept an undefined score as the lowest number.
                if ranked and ranked["score"] > -sys.float_info.max:
                    yield ranked

    def prune(self) -> None:
        """Delete checkpoints that are neither the last nor the best; a killed deletion leaves one.

        Nobody else writes into the folder.
        """
        kept = {self.last_step, *([self._best["step"]] if self._best else [])}
        for step in self.steps():
            if step not in kept:
                self._manager.delete(step)

    def wait(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def handed_on(stage: Path) -> Path:
    """Return the folder with the checkpoint that a training stage hands on.

    It is a folder of its own where weights were merged or averaged after the last step.
    """
    merged = stage / "handed_on"
    return merged if (merged / "checkpoints").is_dir() else stage


def nested(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Return the arrays under `prefix/` as nested dicts."""
    parts = {
        n.removeprefix(f"{prefix}/"): a for n, a in arrays.items() if n.startswith(f"{prefix}/")
    }
    return traverse_util.unflatten_dict(parts, sep="/")


def named(tree: State) -> dict[str, Any]:
    """Return leaves by name, `params/encoders/image/conv1/kernel`, in the order of the tree."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _name(path: tuple[Any, ...]) -> str:
    parts: list[str] = []
    for entry in path:
        value = getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", None)))
        parts.extend(value if isinstance(value, tuple) else [str(value)])
    return "/".join(parts)


def _renamed(name: str) -> str:
    for former, new in _FORMER_NAMES:
        name = re.sub(former, new, name)
    return name


def checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of an array's values."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _rank(metrics: Mapping[str, Any]) -> tuple[float, int]:
    return metrics["score"], -metrics["step"]


def _quiet_orbax(entry: logging.LogRecord) -> bool:
    """Keep errors of Orbax, but no traceback: what its threads raise, `save` or `wait` raises."""
    is_error = entry.levelno >= logging.ERROR and not entry.exc_info
    return is_error or "orbax" not in entry.pathname + entry.getMessage()


def _quiet_threads(hook: Any, report: Any) -> None:
    """Leave out what tensorstore's threads report once a failed save has closed their loop."""
    if str(report.exc_value) != "Event loop is closed":
        hook(report)
