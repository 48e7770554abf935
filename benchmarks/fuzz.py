"""Damage inputs and run files: is each answered in one line, within 8 s and 1.5 GB, never believed?

    python benchmarks/fuzz.py --cases=10000 --json=benchmarks/results/fuzz.json
    python benchmarks/fuzz.py --cases=200 --only=npz,manifest --keep=FOLDER
    python benchmarks/fuzz.py --cases=10000 --seconds=1800

Each case takes files that are in order, damages one (bytes, bits, lengths, cells, JSON values) and
reads them as the command line does. An outcome is

- clean: a `UserError` of at most two lines;
- accepted: the reader took it. Where every flipped bit must be noticed (checkpoints with their
  records, caches), the content must equal that of the whole file;
- a failure: another exception, a crash, 8 s of CPU time or 60 s, 1.5 GB more than before, or
  content that differs in silence.

A process takes 200 cases, so that what one leaves behind meets the next; the process after a hang
or a crash goes on with the next case. Targets whose library is absent are named and left out.
Each target takes its cases in ten rounds, so that a command that --seconds ends has seen them all.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from fuzz_targets import TARGETS, Target  # noqa: E402

from medtl.errors import UserError  # noqa: E402

SECONDS, WAIT, BYTES, BATCH, ROUNDS = 8.0, 60.0, 1.5e9, 200, 10
NASTY = [
    *("", " ", "nan", "inf", "-inf", "-1", "1e400", "1e39", "9" * 400, "1e-999999999", "1_000"),
    *("\0", "a\0b", '"', "a\nb", "\ufeff", "\u202e", "\u0661", "=1+1", "x" * 9000, "a;b", "a|b"),
    *("true", "null", "train", "image_path", "../../etc/passwd", "/dev/zero", "00.png#999999999"),
]
VALUES = [None, True, -1, 0, 2**63, 2**70, 1e308, float("nan"), "", "x", [], {}, [[]], {"a": None}]
Damage = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, rng: random.Random) -> bytes:
    """Flip one bit."""
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def edit(content: bytes, rng: random.Random) -> bytes:
    """Change, drop, insert, repeat, zero or cut bytes, one to four times; half near the start."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        size = max(1, len(changed))
        at = rng.randrange(size if rng.random() < 0.5 else min(size, 300))
        part = slice(at, at + rng.choice((1, 1, 2, 4, 8, 64, 1000)))
        length = len(changed[part])
        special = rng.choice((b"\xff", b"\x7f", b"\x80", b"\0", rng.randbytes(1)))
        changed[part] = {
            "change": rng.randbytes(length),
            "special": special * length,
            "drop": b"",
            "insert": rng.randbytes(4) + changed[part],
            "repeat": changed[part] * rng.randint(2, 50),
            "digits": bytes(
                rng.choice(b"0123456789-e.") if 48 <= b < 58 else b for b in changed[part]
            ),
        }[rng.choice(("change", "special", "drop", "insert", "repeat", "digits"))]
        if rng.random() < 0.1:
            del changed[at:]
    return bytes(changed)


def cells(content: bytes, rng: random.Random) -> bytes:
    """Replace one to three cells of a CSV file."""
    rows = list(csv.reader(io.StringIO(content.decode())))
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice((*NASTY, *rng.choice(rows)))
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def values(content: bytes, rng: random.Random) -> bytes:
    """Replace or drop a value of JSON, or of a line of it."""
    lines = content.decode().splitlines() if content.count(b"\n{") else [content.decode()]
    at = rng.randrange(len(lines))
    whole = [json.loads(lines[at])]
    holder, key = whole, 0
    while isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    if isinstance(holder, dict) and rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = rng.choice((*VALUES, *NASTY))
    lines[at] = json.dumps(whole[0])
    return "\n".join(lines).encode()


def damages(target: Target, name: str) -> tuple[Damage, ...]:
    """Return the kinds of damage that a file of a target gets."""
    if target.content is not None:
        return (flip,)
    fine = {".csv": (cells, cells), ".json": (values, values), ".jsonl": (values, values)}
    return (flip, edit, edit, *fine.get(Path(name).suffix, ()))


def damaged_copy(target: Target, base: Path, folder: Path, seed: str) -> tuple[Path, bytes]:
    """Damage one of the target's files in `folder`; return its path and its former content."""
    rng = random.Random(seed)
    files = [p for p in sorted(base.rglob("*")) if p.is_file() and target.takes(p)]
    files = [p for p in files if p.stat().st_size]
    chosen = rng.choice(files)
    content = chosen.read_bytes()
    path = folder / chosen.relative_to(base)
    changed = content
    while changed == content:
        changed = rng.choice(damages(target, chosen.name))(content, rng)
    path.write_bytes(changed)
    return path, content


def outcome(target: Target, folder: Path, whole: Any) -> str:
    """Read damaged files; return what came of it."""
    try:
        content = target.read(folder)
        if whole is not None and target.content(content) != whole:
            return "unnoticed"
        return "accepted"
    except UserError as error:
        text = str(error)
        return "clean" if text.strip() and text.count("\n") <= 4 else f"long: {text[:300]}"
    except MemoryError as error:
        return "clean" if str(error) else "memory: MemoryError"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [f for f in where if "/medtl/" in f.filename] or where
        return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def work(target: Target, base: Path, cases: range, seed: int, out: int, keep: str) -> None:
    """Take cases in a process of their own, and write a line before and after each."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "case"
        shutil.copytree(base, folder)
        whole = target.read(folder)  # a target that refuses whole files would show nothing
        whole = None if target.content is None else target.content(whole)
        for case in cases:
            os.write(out, f"begin {case}\n".encode())
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            path, former = damaged_copy(target, base, folder, f"{seed} {target.name} {case}")
            came = outcome(target, folder, whole)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > BYTES / 1024:
                came = f"memory: {came}"
            if keep and came not in ("clean", "accepted"):
                shutil.copy(path, Path(keep) / f"{target.name}_{case}_{path.name}")
            if target.leaves:  # reading writes, too
                shutil.rmtree(folder)
                shutil.copytree(base, folder)
            else:
                path.write_bytes(former)
            os.write(out, f"end {came}\n".encode())


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_process(function: Callable[..., None], *args: Any) -> tuple[int, int]:
    """Run a function in a child; return its id and the end of a pipe that it writes to."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        code = 1
        try:
            function(*args, write)
            code = 0
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        os._exit(code)
    os.close(write)
    return pid, read


def watched(pid: int, pipe: int) -> tuple[list[tuple[int, str]], int]:
    """Return (case, outcome) of a child's cases, and the case after the last."""
    found: list[tuple[int, str]] = []
    case, text, began, used = -1, "", time.monotonic(), 0.0
    while True:
        ready, _, _ = select.select([pipe], [], [], 0.5)
        if ready:
            read = os.read(pipe, 65536).decode()
            if not read:
                break
            *lines, text = (text + read).split("\n")
            for line in lines:
                word, _, rest = line.partition(" ")
                if word == "begin":
                    case, began, used = int(rest), time.monotonic(), _seconds(pid)
                elif word == "end":
                    found.append((case, rest))
                    case = -1
                else:
                    print(line, file=sys.stderr)
        elif case >= 0 and (time.monotonic() - began > WAIT or _seconds(pid) - used > SECONDS):
            os.kill(pid, signal.SIGKILL)
            found.append((case, "hang"))
            os.waitpid(pid, 0)
            os.close(pipe)
            return found, case + 1
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(pipe)
    if case >= 0:
        found.append((case, f"crash: exit code {code}"))
    elif code:
        raise SystemExit("a target fails on whole files")
    return found, max((c for c, _ in found), default=-1) + 1


def fuzz(target: Target, base: Path, cases: range, seed: int, keep: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    case = cases.start
    while case < cases.stop:
        batch = range(case, min(case + BATCH, cases.stop))
        pid, pipe = in_process(lambda out, batch=batch: work(target, base, batch, seed, out, keep))
        some, case = watched(pid, pipe)
        found += some
    return found


def prepared(target: Target, folder: Path) -> Path | None:
    """Write a target's whole files; return their folder, None where a library is absent."""
    base = folder / target.name
    base.mkdir()
    pid, pipe = in_process(lambda out: target.prepare(base))
    with os.fdopen(pipe) as file:
        error = file.read()
    if not os.waitpid(pid, 0)[1]:
        return base
    if "ImportError" not in error and "ModuleNotFoundError" not in error:
        raise SystemExit(error)
    print(f"{target.name}: left out, {error.splitlines()[-1]}", flush=True)
    return None


def rounds(cases: int) -> list[range]:
    """Return the cases 0 .. cases - 1 in ten ranges of about equal length."""
    ends = [cases * i // ROUNDS for i in range(ROUNDS + 1)]
    return [range(ends[i], ends[i + 1]) for i in range(ROUNDS)]


def kind_of(outcome: str) -> str:
    """Return an outcome without its details."""
    return outcome.partition(":")[0] if ": " in outcome else outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after this time")
    parser.add_argument("--only", default="", help="names of targets, split by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default="", help="a folder for the files that fail")
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    chosen = [t for t in TARGETS if not options.only or t.name in options.only.split(",")]
    shares = sum(t.share for t in chosen)
    until = time.monotonic() + options.seconds
    found: dict[str, list[tuple[int, str]]] = {}
    with tempfile.TemporaryDirectory() as name:
        bases = {t: base for t in chosen if (base := prepared(t, Path(name)))}
        for i in range(ROUNDS):
            for target, base in bases.items():
                if time.monotonic() > until:
                    continue
                cases = rounds(round(options.cases * target.share / shares))[i]
                of_round = fuzz(target, base, cases, options.seed, options.keep)
                found.setdefault(target.name, []).extend(of_round)
    result: dict[str, Any] = {}
    for target_name, outcomes in found.items():
        kinds = Counter(kind_of(outcome) for _, outcome in outcomes)
        failures = Counter(o for _, o in outcomes if o not in ("clean", "accepted"))
        result[target_name] = {"cases": len(outcomes), **kinds}
        print(f"{target_name}: {dict(kinds)}")
        for outcome, n in failures.most_common(20):
            first = next(case for case, o in outcomes if o == outcome)
            print(f"  {n} x {outcome} (first: case {first})")
    total = Counter[str]()
    for counts in result.values():
        total.update(counts)
    print(dict(total))
    if options.json:
        import timing

        record = {
            "machine": timing.machine(),
            "seed": options.seed,
            "asked": options.cases,
            "total": dict(total),
            "targets": result,
        }
        Path(options.json).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.exit(total["cases"] - total["clean"] - total["accepted"] > 0)


if __name__ == "__main__":
    main()
