#!/usr/bin/env python3
"""Compares what two builds of proxrl compute, to the last bit.

    python3 scripts/compare_metrics.py OLD NEW

OLD and NEW are two programs. Each trains every config of configs/ that runs on its own, for a few steps on a tiny random
network, and both must log the same metrics (all digits; time, speed and memory aside) and save the same adapter. With
`--quickstart`, configs/quickstart.toml runs as it stands for ten steps, on the real model. Metrics that only NEW logs are
listed and are no difference. Ends with exit code 1 if anything differs. Needs Python 3.8 and nothing else.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# They need an endpoint, a worker elsewhere or the samples of another run, serve, or only say what `bench` measures.
NOT_ALONE = {"judge_endpoint", "remote", "remix_offline", "serve", "bench"}
MODEL = re.compile(r'^path = "SmolLM2-135M-Instruct.Q4_1.gguf"$', re.MULTILINE)
TINY = """device = "cpu"
random = { family = "llama", hidden_size = 32, layers = 1, heads = 2, kv_heads = 1, intermediate_size = 64 }"""
SMALLER = ["rollout.prompts_per_step=4", "rollout.max_new_tokens=12", "evaluate.prompts=4", "tracker.tensorboard=false"]


def measured(name):
    """Whether a metric depends on the clock or the machine."""
    return name.startswith(("time/", "perf/")) or name == "step_time"


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if not measured(name)} for line in lines]


def run(program, config, folder, sets):
    """Trains in a folder of its own; the metrics of each step, and the hash of the last adapter."""
    folder.mkdir(parents=True)
    arguments = [program, "train", config, "--out", "run"] + [word for value in sets for word in ("--set", value)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=folder, env=one_thread, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{program} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    adapters = sorted(folder.glob("run/checkpoints/step_*/adapter.safetensors"), key=lambda path: path.stat().st_mtime)
    return rows(folder / "run"), hashlib.sha256(adapters[-1].read_bytes()).hexdigest()


def compare(options, name, scratch):
    """What differs, as sentences; the metrics that only the new program logs."""
    text = (ROOT / "configs" / f"{name}.toml").read_text()
    sets = [f"steps={options.steps}", *SMALLER]
    if name == "quickstart" and options.quickstart:
        sets = ["steps=10", "evaluate.prompts=16"]
    elif name != "tiny":
        text, found = MODEL.subn(TINY, text)
        if found != 1:
            raise RuntimeError(f"configs/{name}.toml does not name the model that a tiny network replaces")
    else:
        sets = []
    config = scratch / f"{name}.toml"
    config.write_text(text)
    (old, old_hash), (new, new_hash) = (
        run(program, config, scratch / side / name, sets) for side, program in [("old", options.old), ("new", options.new)]
    )
    faults = [f"{len(old)} steps, then {len(new)}"] if len(old) != len(new) else []
    gone = {metric for before, after in zip(old, new) for metric in set(before) - set(after)}
    if gone:
        faults.append(f"no longer logged: {', '.join(sorted(gone))}")
    for before, after in zip(old, new):
        for metric, value in before.items():
            if metric not in gone and after[metric] != value:
                faults.append(f"step {before['step']}: {metric} was {value}, is {after[metric]}")
    if old_hash != new_hash:
        faults.append("the last adapters differ")
    added = sorted({metric for row in new for metric in row} - {metric for row in old for metric in row})
    return faults, added, sum(map(len, old))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="the program before a change")
    parser.add_argument("new", help="the program after it")
    parser.add_argument("--configs", nargs="+", help="names of configs; all that run alone without it")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quickstart", action="store_true", help="ten steps of the quickstart on the real model")
    options = parser.parse_args()
    options.old, options.new = (str(Path(program).resolve()) for program in (options.old, options.new))
    every = sorted(path.stem for path in (ROOT / "configs").glob("*.toml") if path.stem not in NOT_ALONE)
    names = options.configs or every

    def one(name):
        try:
            faults, added, count = compare(options, name, Path(scratch))
        except (RuntimeError, OSError, ValueError) as error:
            faults, added, count = [str(error)], [], 0
        said = "; ".join(faults[:5]) if faults else f"{count} numbers equal"
        more = f" (new: {', '.join(added)})" if added else ""
        print(f"{name}: {said}{more}", flush=True)
        return name if faults else None

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as pool:
        differing = [name for name in pool.map(one, names) if name]
    print(f"{len(names) - len(differing)} of {len(names)} configs agree to the last bit")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
