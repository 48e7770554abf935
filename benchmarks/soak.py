"""Kill runs, stop runs, fill disks: does every command end as if nothing had happened?

    python benchmarks/soak.py --kills=200 --terms=100 --disks=50 --json=benchmarks/results/soak.json
    python benchmarks/soak.py --kills=200 --terms=100 --disks=50 --seconds=3600

Disks come first, then terms, then kills. After --seconds no further trial begins; the result says
which counts were not reached.

Each trial starts a tiny command in a process of its own and disturbs it:

- kill: SIGKILL after a random time or when a random file appears, one to three times; then the same
  command runs to its end.
- term: SIGTERM at a random time; the exit code must be 143 and at most one step may be lost.
- disk: the run folder is on a file system of a random size that is too small; the command must end
  with exit code 1 and one line within 10 s of the failure, and finish after room was made. Needs
  the right to mount a tmpfs; without it the part is skipped, and says so.

The results must equal those of an undisturbed run: predictions.csv and every array of every
checkpoint bit for bit, metrics and logs apart from times; and no file may be left over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

LAUNCH = Path(__file__).parents[1] / "launch.py"
CONFIG = """
from medtl.config import dataset, default, grid, stage


def get_config():
    c = default()
    c.name = "soak"
    c.data.image_size = 16
    c.data.cache_dir = {cache!r}
    c.data.source = dataset("phantom(size=90, scanner='a', split=(0.6, 0.2, 0.2))")
    c.data.target = dataset("phantom(size=90, scanner='b', split=(0.4, 0.3, 0.3), seed=1)")
    c.model.last_layer = "layer1"
    c.stages.source = stage(epochs=2, batch_size=16, learning_rate=1e-3)
    c.stages.target = stage(epochs=4, batch_size=16, learning_rate=1e-3)
    c.seeds = (0,)
    c.evaluation.times = 2
    c.evaluation.resamples = 200
    c.evaluation.mistakes = "none"
    c.checkpoint.every_steps = 3
    c.parallel = "none"
    c.sweep.grid = grid({{"objective.lambda_": (0.1, 1.0)}})
    return c
"""
MODES = {
    "train": (),
    "folds": ("--config.evaluation.folds=3", "--config.arms=target_only,scratch"),
    "sweep": ("--mode=sweep", "--config.arms=transfer"),
    "evaluate": ("--mode=evaluate",),
    "report": ("--mode=report",),
}
ON_A_RUN = ("evaluate", "report")  # modes that need a finished run
TIMES = re.compile(r"digest|seconds|time|_at$|date|created|rate|waiting|command|versions|machine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--disks", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no trial after this time")
    parser.add_argument("--modes", default=",".join(MODES), help="train always runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    until = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as name:
        modes = [mode for mode in MODES if mode in ("train", *options.modes.split(","))]
        soak = Soak(Path(name), rng, modes)
        stopped = [mode for mode in modes if mode in ("train", "folds")]
        can_mount = soak.can_mount()
        disks = _trials("disk", options.disks if can_mount else 0, until, soak.full_disk)
        terms = _trials("term", options.terms, until, lambda: soak.term(rng.choice(stopped)))
        kills = _trials("kill", options.kills, until, lambda: soak.kill(rng.choice(modes)))
    asked = {"disks": options.disks, "terms": options.terms, "kills": options.kills}
    done = {"disks": len(disks), "terms": len(terms), "kills": len(kills)}
    result = {
        "disks": _count(disks) if can_mount else "skipped: a tmpfs needs root",
        "terms": _count(terms),
        "kills": _count(kills),
        "failures": [t["fault"] for t in (*disks, *terms, *kills) if t["fault"]],
        "most_steps_lost": max((t.get("lost", 0) for t in terms), default=0),
        "not_reached": {
            name: f"{done[name]} of {asked[name]}" for name in asked if done[name] < asked[name]
        },
    }
    print(json.dumps(result, indent=2))
    if options.json:
        import timing

        about = {"modes": options.modes, "seed": options.seed}
        record = {"machine": timing.machine(), **about, **result}
        Path(options.json).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(result["failures"]))


def _trials(
    name: str, count: int, until: float, trial: Callable[[], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Run up to `count` trials, none that would begin after `until`, and print each failure."""
    trials: list[dict[str, Any]] = []
    began = time.monotonic()
    while len(trials) < count and time.monotonic() < until:
        trials.append(trial())
        if fault := trials[-1]["fault"]:
            print(f"{name} {len(trials)}: {fault}", flush=True)
    print(f"{name}: {len(trials)} in {time.monotonic() - began:.0f} s", flush=True)
    return trials


def _count(trials: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {
        "trials": len(trials),
        "disturbed": sum(t["disturbed"] for t in trials),
        "equal": sum(not t["fault"] for t in trials),
    }


class Soak:
    """Commands on one config, their undisturbed results, and the ways to disturb them."""

    def __init__(self, folder: Path, rng: random.Random, modes: Sequence[str]):
        self.folder, self.rng = folder, rng
        self.config = folder / "soak_config.py"
        self.config.write_text(CONFIG.format(cache=str(folder / "cache")), encoding="utf-8")
        self.expected: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        for mode in modes:
            took = []
            for _ in range(2):  # the first also fills caches, and other work may stop either
                run = self.prepared(mode, "undisturbed")
                began = time.monotonic()
                code = os.waitstatus_to_exitcode(os.waitpid(self.start(mode, run), 0)[1])
                if code:
                    raise SystemExit(f"{mode} fails undisturbed:\n{self.output(run)}")
                took.append(time.monotonic() - began)
            self.seconds[mode] = min(took)
            self.expected[mode] = contents(run)
            if mode == "train":
                self.finished = folder / "finished"
                shutil.copytree(run, self.finished)
        print({mode: f"{s:.1f} s" for mode, s in self.seconds.items()}, flush=True)

    def prepared(self, mode: str, name: str, parent: Path | None = None) -> Path:
        run = (parent or self.folder) / name
        shutil.rmtree(run, ignore_errors=True)
        if mode in ON_A_RUN:
            shutil.copytree(self.finished, run)
        return run

    def start(self, mode: str, run: Path) -> int:
        """Start a command and return its process id."""
        argv = [sys.executable, str(LAUNCH), f"--workdir={run}", *MODES[mode]]
        if mode not in ON_A_RUN:
            argv.append(f"--config={self.config}")
        how = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        path = str(self.folder / f"{run.name}.txt")
        actions = [(os.POSIX_SPAWN_OPEN, 1, path, how, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        return os.posix_spawn(argv[0], argv, environment, file_actions=actions, setsid=True)

    def output(self, run: Path) -> str:
        return Path(f"{self.folder / run.name}.txt").read_text(errors="replace")

    def finish(self, mode: str, run: Path) -> str:
        """Run the command to its end, and return what differs from the undisturbed run."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.start(mode, run), 0)[1])
        if code:
            return f"{mode}: exit code {code}: {self.output(run)[-500:]}"
        return difference(mode, contents(run), self.expected[mode])

    def kill(self, mode: str) -> dict[str, Any]:
        """Kill the command one to three times, then let it end."""
        run = self.prepared(mode, f"kill_{mode}")
        disturbed = False
        for _ in range(self.rng.randint(1, 3)):
            pid = self.start(mode, run)
            disturbed |= self._kill_somewhere(pid, mode, run)
        return {"disturbed": disturbed, "fault": self.finish(mode, run)}

    def _kill_somewhere(self, pid: int, mode: str, run: Path) -> bool:
        """Kill at a random time, or after a random number of changes of the run folder."""
        deadline = time.monotonic() + self.rng.uniform(0.0, self.seconds[mode])
        changes = self.rng.randint(1, 60) if self.rng.random() < 0.5 else 0
        seen = names(run)
        while time.monotonic() < deadline or changes:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return False
            if changes and (now := names(run)) != seen:
                seen, changes = now, changes - 1
                if not changes:
                    break
            time.sleep(0.0005 if changes else 0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return True

    def term(self, mode: str) -> dict[str, Any]:
        """Stop the command by SIGTERM, then let it end."""
        run = self.prepared(mode, f"term_{mode}")
        pid = self.start(mode, run)
        time.sleep(self.rng.uniform(0.0, self.seconds[mode]))
        os.kill(pid, signal.SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        lost = steps_lost(run)
        if code not in (0, 143, -signal.SIGTERM):
            return {"disturbed": True, "fault": f"{mode}: SIGTERM gave exit code {code}"}
        if lost > 1:
            return {"disturbed": True, "lost": lost, "fault": f"{mode}: {lost} steps were lost"}
        return {"disturbed": code != 0, "lost": lost, "fault": self.finish(mode, run)}

    def can_mount(self) -> bool:
        folder = self.folder / "probe"
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
        )
        if mounted.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)
        return mounted.returncode == 0

    def full_disk(self) -> dict[str, Any]:
        """Run on a file system that is too small, make room, and let the command end."""
        disk = self.folder / "disk"
        disk.mkdir(exist_ok=True)
        needed = sum(p.stat().st_size for p in self.finished.rglob("*") if p.is_file()) // 1024
        size = self.rng.randint(4, max(5, int(needed * 0.95)))
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=True
        )
        try:
            run = disk / "run"
            before = len(self.output(run)) if Path(f"{self.folder / 'run'}.txt").exists() else 0
            pid = self.start("train", run)
            code, waited = None, time.monotonic()
            while code is None and time.monotonic() - waited < 10 + 4 * self.seconds["train"]:
                done, status = os.waitpid(pid, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status) if done else None
                time.sleep(0.05)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return {"disturbed": True, "fault": f"{size} KiB: the command hangs"}
            said = self.output(run)[before:]
            errors = [line for line in said.splitlines() if "medtl: error" in line]
            if code == 1 and (len(errors) != 1 or "Traceback" in said):
                return {"disturbed": True, "fault": f"{size} KiB: {said[-500:]}"}
            if code not in (0, 1):
                return {"disturbed": True, "fault": f"{size} KiB: code {code}: {said[-500:]}"}
            remount = ["mount", "-o", "remount,size=200m", str(disk)]
            subprocess.run(remount, check=True)
            return {"disturbed": code == 1, "fault": self.finish("train", run)}
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def names(run: Path) -> frozenset[str]:
    """Return the names of all files and folders of a run."""
    return frozenset(os.path.join(root, n) for root, ds, fs in os.walk(run) for n in (*ds, *fs))


def steps_lost(run: Path) -> int:
    """Return the most steps that a log has beyond the last checkpoint of its stage."""
    lost = 0
    for log in run.rglob("log.jsonl"):
        steps = [json.loads(line).get("step", 0) for line in log.read_text().splitlines() if line]
        saved = [int(p.name) for p in (log.parent / "checkpoints").glob("*") if p.name.isdigit()]
        if steps and (saved or (log.parent / "checkpoints").exists()):
            lost = max(lost, max(steps) - max(saved, default=0))
    return lost


def contents(run: Path) -> dict[str, str]:
    """Return file -> digest of what must be equal in two runs; times and paths are left out."""
    from medtl.training.checkpoint import Store

    found: dict[str, str] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if "checkpoints" in path.relative_to(run).parts:
            if path.name.isdigit() and path.parent.name == "checkpoints":
                with Store(path.parent.parent) as store:
                    arrays = store.arrays(int(path.name))
                key = hashlib.sha256()
                for array in sorted(arrays):
                    key.update(array.encode() + arrays[array].tobytes())
                found[name] = key.hexdigest()
            continue
        if not path.is_file():
            continue
        if path.suffix in (".json", ".jsonl"):
            text = path.read_text()
            parts = text.splitlines() if path.suffix == ".jsonl" else [text]
            value: Any = [_without_times(json.loads(part)) for part in parts if part.strip()]
            if path.suffix == ".jsonl":  # a line may be written again after a kill
                value = sorted({json.dumps(line, sort_keys=True) for line in value})
            found[name] = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        elif path.suffix == ".csv":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = ""  # reports and figures state times; that they exist is compared
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not TIMES.search(k)}
    if isinstance(value, list):
        return [_without_times(v) for v in value]
    return value


def difference(mode: str, found: dict[str, str], expected: dict[str, str]) -> str:
    """Return the files that are missing, left over or different; empty where there are none."""
    texts = [f"missing {n}" for n in sorted(expected.keys() - found.keys())]
    texts += [f"left over {n}" for n in sorted(found.keys() - expected.keys())]
    shared = sorted(found.keys() & expected.keys())
    texts += [f"different {n}" for n in shared if found[n] != expected[n]]
    return f"{mode}: {'; '.join(texts[:6])}" if texts else ""


if __name__ == "__main__":
    main()
