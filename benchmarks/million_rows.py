"""Time and memory of a report on a million rows of another tool's predictions.

    python benchmarks/million_rows.py [--rows 1000000]

Two arms on the same examples of two classes, two images a patient: read, analysed and written.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).parents[1]))

from medtl.evaluation import analysis, predictions
from medtl.evaluation.report import html


def write(path: Path, rows: int) -> None:
    """Write predictions of two arms, `rows` in all."""
    rng, n = np.random.default_rng(0), rows // 2
    logit = rng.normal(-1.5, 1.5, n)
    label = np.where(rng.random(n) < expit(logit), "ill", "well")
    with path.open("w") as file:
        file.write("arm,id,label,patient_id,prob_well,prob_ill\n")
        for arm, noise in (("transfer", 0.5), ("scratch", 1.2)):
            p = expit(logit + noise * rng.normal(size=n))
            file.writelines(
                f"{arm},image{i},{label[i]},p{i // 2},{1 - p[i]:.6f},{p[i]:.6f}\n" for i in range(n)
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.csv"
        write(path, rows)
        began = [time.perf_counter(), time.process_time()]
        frames, classes = predictions.read(path)
        read = time.perf_counter() - began[0]
        report = analysis.analyse(frames, classes)
        html.write(Path(folder), report, None)
        wall, processor = time.perf_counter() - began[0], time.process_time() - began[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{rows:,} rows: {wall:.0f} s, of which reading {read:.0f} s; processor {processor:.0f} s; "
        f"peak memory {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
