#!/usr/bin/env python3
"""Ends a training at each of its system calls on files, and compares what comes of it with a run that was never ended.

    python3 scripts/crash_points.py target/release/proxrl
    python3 scripts/crash_points.py target/debug/proxrl --every 25 --faults kill,ENOSPC

A short run of configs/tiny.toml is repeated under strace, which at the n-th call of a kind sends SIGKILL or returns an
error in its place. Then the same command, or `train --resume`, goes on until it ends with exit code 0. Afterwards the
metrics, the samples and rewards in the store, its rows of runs, steps and checkpoints, the last adapter and the folder's
listing must be those of the undisturbed run, and `replay verify` must be content. A fault that the run survives must end
in exit code 0, 1 or 2, never in a panic. Ends with exit code 1 if anything differs. Needs Linux, strace and Python 3.8.
"""

import argparse
import hashlib
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compare_metrics import ROOT, rows

CALLS = ["mkdir", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "rename", "unlink"]
SETS = ["steps=3", "checkpoint.every=1", "checkpoint.keep=1", "rollout.prompts_per_step=2", "rollout.group_size=4",
        "evaluate.prompts=2", "evaluate.every=2", "model.threads=1"]
TABLES = {
    "runs": "SELECT id, name, status FROM runs ORDER BY id",
    "steps": "SELECT run_id, step FROM steps ORDER BY 1, 2",
    "checkpoints": "SELECT run_id, step, hash FROM checkpoints ORDER BY 1, 2",
    "groups": "SELECT run_id, step, place FROM groups ORDER BY 1, 2, 3",
    "samples": "SELECT g.step, g.place, s.* FROM samples s JOIN groups g ON g.id = s.group_id ORDER BY 1, 2, s.id",
    "rewards": "SELECT * FROM sample_view ORDER BY sample_id",
}


def command(program, *more):
    sets = [word for each in SETS for word in ("--set", each)]
    return [program, "train", str(ROOT / "configs/tiny.toml"), *sets, "--out", "run", *more]


def state(folder):
    """What must not depend on whether a run was disturbed."""
    run, found = folder / "run", {}
    found["metrics"] = rows(run)
    listing = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    # Event files are named after the moment and the process.
    found["listing"] = sorted({re.sub(r"events\.out\.\S+", "events", name) for name in listing if name != "trace"})
    for path in sorted(run.glob("checkpoints/*/*.safetensors")):
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    with sqlite3.connect(f"file:{folder / 'proxrl.db'}?mode=ro", uri=True) as store:
        store.text_factory = bytes
        for name, sql in TABLES.items():
            table = store.execute(sql)
            names = [column[0] for column in table.description]
            kept = [place for place, column in enumerate(names) if not column.endswith("_at")]
            found[name] = [[str(row[place]) for place in kept] for row in table]
    return found


def go(program, folder, words, prefix=()):
    return subprocess.run([*prefix, *words], cwd=folder, capture_output=True, text=True, timeout=300)


def count(program, calls):
    """The number of calls of each kind in the thread with most of them, as strace counts, and the state of the run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prefix = ["strace", "-f", "-qq", "-o", "trace", "-e", "trace=" + ",".join(calls)]
        done = go(program, folder, command(program), prefix)
        if done.returncode != 0:
            sys.exit(f"the undisturbed run fails:\n{done.stderr}")
        threads = Counter(re.findall(r"^(\d+)\s+(\w+)\(", (folder / "trace").read_text(), re.MULTILINE))
        most = Counter()
        for (_, call), number in threads.items():
            most[call] = max(most[call], number)
        return most, state(folder)


def try_point(program, call, number, fault, expected):
    """Returns what is wrong after this fault; an empty list if nothing is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        what = "signal=KILL" if fault == "kill" else f"error={fault}"
        prefix = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                  f"inject={call}:{what}:when={number}"]
        wrong = []
        done = go(program, folder, command(program), prefix)
        if "panicked" in done.stderr or (fault != "kill" and done.returncode not in (0, 1, 2)):
            wrong.append(f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        for _ in range(3):
            if done.returncode == 0:
                break
            begun = (folder / "run/config.toml").exists()
            done = go(program, folder, [program, "train", "--resume", "run"] if begun else command(program))
        else:
            return [*wrong, f"a dead end: {done.stderr.strip()[-300:]}"]
        found = state(folder)
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                wrong.append(f"{key} differs: {difference(expected.get(key), found.get(key))}")
        verified = go(program, folder, [program, "replay", "verify"])
        if verified.returncode != 0:
            wrong.append(f"verify: {verified.stderr.strip()}")
        return wrong


def difference(expected, found):
    if not isinstance(expected, list) or not isinstance(found, list):
        return f"{expected} and {found}"
    first = next((pair for pair in zip(expected, found) if pair[0] != pair[1]), None)
    if first:
        return f"{str(first[0])[:200]} and {str(first[1])[:200]}"
    return f"{len(expected)} and {len(found)}: {str((expected + found)[min(len(expected), len(found)):])[:300]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--calls", default=",".join(CALLS), help="kinds of system calls")
    parser.add_argument("--faults", default="kill,ENOSPC,EIO", help="kill, or names of errors")
    parser.add_argument("--every", type=int, default=1, help="only every n-th call")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        sys.exit("crash_points.py needs strace")
    program = str(Path(options.program).resolve())
    calls = options.calls.split(",")
    counts, expected = count(program, calls)
    print("| call | fault | points | wrong |\n|---|---|---|---|")
    all_wrong, points = [], 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for call in calls:
            for fault in options.faults.split(","):
                numbers = range(1, counts[call] + 1, options.every)
                results = pool.map(lambda number: try_point(program, call, number, fault, expected), numbers)
                wrong = [f"{call} {number}, {fault}: {'; '.join(each)}" for number, each in zip(numbers, results) if each]
                print(f"| `{call}` | {fault} | {len(numbers)} | {len(wrong)} |", flush=True)
                all_wrong += wrong
                points += len(numbers)
    print(f"\n{points} points, {len(all_wrong)} with a difference")
    for line in all_wrong:
        print(f"- {line}")
    sys.exit(1 if all_wrong else 0)


if __name__ == "__main__":
    main()
