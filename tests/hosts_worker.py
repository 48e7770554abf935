"""One of several processes that train the same arm in several ways; started by test_hosts.py.

python hosts_worker.py FOLDER PROCESS_ID PORT MODE:DEVICES ...
"""

import sys
from pathlib import Path

import jax
import numpy as np
from tiny_run import tiny

from medtl.experiment.arm import Arm
from medtl.experiment.experiment import open_experiment
from medtl.training import checkpoint, hosts
from medtl.training.parallel import Parallel

SMALL = """
from flax import linen as nn

from medtl.models.layers import BatchNorm


class Small(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train, use_batch_stats=None, mask=None):
        use_batch_stats = train if use_batch_stats is None else use_batch_stats
        x = nn.Conv(8, (3, 3), (4, 4), use_bias=False, name="conv")(x)
        return nn.relu(BatchNorm(axis_name=self.axis_name, name="norm")(x, use_batch_stats, mask))
"""


def config(folder: Path, mode: str, *, resident: bool):
    """Return a joint run whose batches the devices do not divide."""
    (folder / "small.py").write_text(SMALL)
    return tiny(
        model__name=f"{folder}/small.py:Small",
        model__last_layer="",
        arms=("transfer",),
        arm__transfer__source_stage=False,
        parallel=mode,
        stages__target__batch_size=12,
        stages__target__source_batch_size=14,
        stages__target__ema=0.9,
        stages__target__clip_norm=1.0,
        stages__target__epochs=3,
        evaluation__batch_size=11,
        data__resident="always" if resident else "never",
    )


def trained(folder: Path, mode: str, devices: int) -> dict[str, np.ndarray]:
    """Train with the first devices of each process; return all arrays and probabilities."""
    chosen = [d for d in jax.devices() if sum(_is_before(e, d) for e in jax.devices()) < devices]
    create, config_ = Parallel.create, config(folder, mode, resident=devices == 2)
    Parallel.create = lambda name: create(name, tuple(chosen))
    try:
        run = folder / f"{mode}_{devices}"
        experiment, by_seed = open_experiment(config_, run, training=True)
        arm = Arm(experiment, by_seed[0][0], 0, "transfer")
        outcome = arm.outcome()
    finally:
        Parallel.create = create
    arrays = {f"probability/{p.split}": p.probability for p in outcome.predictions}
    with checkpoint.Store(arm.folder / "target") as store:
        arrays |= store.arrays(store.last_step)
        val = store.record(store.last_step)["best"]
    return arrays | {"best": np.array([val["score"], val["step"]])}


def _is_before(one, other) -> bool:
    return one.process_index == other.process_index and one.id < other.id


def main() -> None:
    folder, process_id, port, *ways = sys.argv[1:]
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(f"localhost:{port}", 2, int(process_id))
    for way in ways:
        mode, devices = way.split(":")
        arrays = trained(Path(folder), mode, int(devices))
        if hosts.is_first():
            np.savez(Path(folder) / f"{mode}_{devices}.npz", **arrays)
        assert hosts.agreed(["a" * 3000, 0.1, process_id]) == ["a" * 3000, 0.1, "0"]
        assert hosts.largest(float(process_id)) == 1
        assert not hosts.everywhere(process_id == "0")
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
