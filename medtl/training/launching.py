"""Several processes: they find each other at the start, and end together.

Who they are comes from flags, or from the environment that SLURM or Open MPI give each process.
Imports JAX only where there are several.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from medtl.errors import UserError

AUTO, ALONE = "auto", "none"
LOST = "another process of this run has ended; start the same command again in all of them"
_HEARTBEAT = 30  # seconds without a sign of life after which a machine is taken for dead
_REPORT = 24 * 3600  # seconds that the others wait while the first process writes the report
# The number of processes that the launcher started, where each of them has a number of its own.
_LAUNCHERS = {
    "SLURM_PROCID": "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
}


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a process joins the others.

    Attributes:
      coordinator: HOST:PORT of the first process; "auto": JAX asks the cluster.
      process_id: the number of this process; None: from the cluster.
      process_count: the number of processes; None: from the cluster.
    """

    coordinator: str
    process_id: int | None = None
    process_count: int | None = None


def launch_of(
    coordinator: str,
    process_id: str,
    process_count: str,
    environment: Mapping[str, str] = os.environ,
) -> Launch | None:
    """Return how this process joins others; None where it is alone.

    Args:
      coordinator: HOST:PORT, "auto", "none", or empty: from the environment.
      process_id: a number from 0 on, or empty.
      process_count: a number, or empty.
      environment: what SLURM and Open MPI set.

    Raises:
      UserError: the flags do not fit each other.

    >>> launch_of("", "", "", {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"})
    Launch(coordinator='auto', process_id=None, process_count=None)
    >>> launch_of("node0:1234", "1", "4").process_id
    1
    """
    if coordinator in ("", AUTO, ALONE):
        if process_id or process_count:
            raise UserError("--process_id and --process_count need --coordinator=HOST:PORT")
        started = any(
            rank in environment and environment.get(size, "1") not in ("", "0", "1")
            for rank, size in _LAUNCHERS.items()
        )
        is_alone = coordinator == ALONE or (not coordinator and not started)
        return None if is_alone else Launch(AUTO)
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise UserError(
            f"--coordinator={coordinator}: it must be HOST:PORT of the first process, such as "
            f"node0:1234, or {AUTO}, or {ALONE}"
        )
    if not (process_id.isdecimal() and process_count.isdecimal()):
        raise UserError(
            "--coordinator=HOST:PORT needs --process_id=0, 1, ... and --process_count=N, the "
            "number of processes"
        )
    launch = Launch(coordinator, int(process_id), int(process_count))
    if int(process_id) >= int(process_count):
        raise UserError(
            f"--process_id={process_id}: of {process_count} processes the last is "
            f"{int(process_count) - 1}"
        )
    return launch if int(process_count) > 1 else None


@contextlib.contextmanager
def joined(launch: Launch | None) -> Iterator[None]:
    """Connect to the other processes; in the block all but the first print errors alone.

    Args:
      launch: from `launch_of`; None: do nothing.

    Raises:
      UserError: there is no cluster to ask, or the first process is not reached.
    """
    if launch is None:
        yield
        return
    import jax

    _hide_aborts()
    # Its handler of SIGTERM would take the place of `stopping`.
    jax.config.update("jax_enable_preemption_service", False)
    is_auto = launch.coordinator == AUTO
    try:
        jax.distributed.initialize(
            None if is_auto else launch.coordinator,
            launch.process_count,
            launch.process_id,
            # With flags a process sees all devices of its machine, also under a scheduler.
            cluster_detection_method=None if is_auto else "deactivate",
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_REPORT,
        )
    except (ValueError, RuntimeError) as error:
        advice = "give HOST:PORT" if is_auto else "is the first process running there?"
        text = " ".join(str(error).split())[:200]
        raise UserError(f"--coordinator={launch.coordinator}: {text}; {advice}") from None
    with _silent() if jax.process_index() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop the standard output, that of C++ too."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def is_joined() -> bool:
    """Return whether this process has joined others; imports nothing."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def leave(code: int, *, together: bool) -> int:
    """End this process's part in the run; return its exit code.

    Args:
      code: the exit code.
      together: whether all processes end now, so that they can wait for each other. Otherwise this
        one ends at once, and the others notice.
    """
    if not is_joined():
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    if not together:
        os._exit(code)
    sys.modules["jax"].distributed.shutdown()
    return code


def is_loss(error: BaseException | None) -> bool:
    """Return whether an error means that another process, or the network, has failed."""
    words = ("Gloo", "NCCL", "closed by peer", "UNAVAILABLE", "oordination", "DEADLINE_EXCEEDED")
    while is_joined() and error is not None:
        # The class is compared by name, so that JAX is not imported.
        is_jax = type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError")
        if is_jax and any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def _hide_aborts() -> None:
    """Send the standard error through `standard_error.py`, which outlives an abort."""
    script = Path(__file__).with_name("standard_error.py")
    writer = subprocess.Popen(
        [sys.executable, "-I", "-S", str(script), LOST],
        stdin=subprocess.PIPE,
        stdout=2,
        start_new_session=True,  # Ctrl-C is not for it
    )
    assert writer.stdin is not None
    os.dup2(writer.stdin.fileno(), 2)
    writer.stdin.close()
    writer.returncode = 0  # it ends after this process, which therefore does not wait for it
