#!/usr/bin/env python3
"""Check that a GPU computes what the CPU computes, and that every training config runs on it.

    python3 scripts/check_cuda.py

On a machine with an NVIDIA GPU and a program that was built after `PROXRL_CUDA=1 make setup`:

- greedy answers of both devices in f32 are compared, token by token and by their log-probabilities;
- every config in configs/ that trains on its own (no endpoint, no worker elsewhere) takes a few steps in f32 and in
  bf16, several at a time, and must end well with finite metrics; sampler and trainer must agree (`mismatch_kl`) where
  all samples are the policy's own;
- a run is interrupted with Ctrl-C's signal, and resumed;
- the quickstart runs to its end in both formats, alone;
- `proxrl bench` measures speed in both formats.

Results are stored in OUT, a JSON file per part; an earlier check's runs there are replaced. `--only PART …` runs some
parts. Failures are listed at the end, with exit code 1. Needs Python 3.8 and nothing else.
"""

import argparse
import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compare_methods import ROOT

PARTS = ["doctor", "greedy", "configs", "resume", "quickstart", "bench"]
DTYPES = ["f32", "bf16"]
QUESTIONS = [
    "What is 12+7? Answer with a number.",
    "Name the largest planet.",
    "Write one sentence about rain.",
    "Count from one to ten in words.",
]
# Configs that need an endpoint, a worker elsewhere or the samples of another run, that serve, or that `bench` measures.
NOT_ALONE = {"judge_endpoint", "remote", "remix_offline", "serve", "bench"}
# Configs that learn from samples of other policies by design, which shows in `mismatch_kl`.
OFF_POLICY = {"props", "remix_grpo", "remix_ppo"}
# In nats. In f32 the order of sums differs, over thirty layers; in bf16 sampler and trainer may also round differently.
LOGPROB_LIMIT = 2e-3
MISMATCH_LIMIT = {"f32": 1e-5, "bf16": 1e-2}


class Failed(Exception):
    """A failed check, as a sentence."""


def run(program, *arguments, wait=600):
    """Returns the program's standard output; a failure of the program is a failed check."""
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=wait)
    if done.returncode != 0:
        said = done.stderr.strip()[-1500:]
        raise Failed(f"`proxrl {shlex.join(map(str, arguments))}` ended with {done.returncode}: {said}")
    return done.stdout


def gpu():
    """Returns name, driver, and used MB of the first GPU."""
    if not shutil.which("nvidia-smi"):
        return "none", "none", 0.0
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.used", "--format=csv,noheader,nounits", "--id=0"]
    name, driver, used = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    return name, driver, float(used)


def doctor(options):
    said = run(options.program, "doctor")
    (options.out / "doctor.txt").write_text(said)
    line = next((line for line in said.splitlines() if line.strip().startswith("CUDA ")), "")
    if (not line or "not usable" in line) and options.device != "cpu":
        raise Failed(f"proxrl doctor sees no GPU: {line.strip()}")
    print(said, flush=True)


def answer(options, question, device):
    arguments = ["generate", question, "--model", options.model, "--greedy", "--json", "--max-new-tokens", 48]
    return json.loads(run(options.program, *arguments, "--device", device))


def greedy(options):
    rows, largest = [], 0.0
    for question in QUESTIONS:
        host, device = (answer(options, question, name) for name in ("cpu", options.device))
        alike = next((i for i, (a, b) in enumerate(zip(host["ids"], device["ids"])) if a != b), len(host["ids"]))
        apart = max(abs(a - b) for a, b in zip(host["logprobs"][:alike], device["logprobs"][:alike]))
        largest = max(largest, apart)
        rows.append({"question": question, "tokens": len(host["ids"]), "alike": alike, "apart": apart})
    keep(options, "greedy", rows)
    parted = [row["question"] for row in rows if row["alike"] < row["tokens"]]
    if parted or largest > LOGPROB_LIMIT:
        raise Failed(f"the devices part on {parted}; log-probabilities differ by up to {largest:.1e} nats")


def changed(options, folder, dtype, **changes):
    """Returns the `--set` options of a run on the device in this format; its folder and its own store are created anew."""
    shutil.rmtree(folder, ignore_errors=True)
    for left in folder.parent.glob(f"{folder.name}.db*"):
        left.unlink()
    keys = {"model.device": options.device, "model.dtype": dtype, "model.path": options.model}
    keys["store.url"] = f"sqlite://{folder}.db"
    keys.update({name.replace("__", "."): value for name, value in changes.items()})
    return [word for name, value in keys.items() for word in ("--set", f"{name}={json.dumps(value)}")]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def one_config(options, name, dtype):
    """Runs a few steps of a config and returns its row of results."""
    folder = options.out / "configs" / f"{name}-{dtype}"
    started = time.monotonic()
    # Few held-out prompts: many of these run side by side.
    sets = changed(options, folder, dtype, steps=options.steps, evaluate__prompts=4)
    row = {"config": name, "dtype": dtype, "failed": None, "mismatch_kl": None}
    try:
        run(options.program, "train", ROOT / "configs" / f"{name}.toml", "--out", folder, *sets)
        steps = metrics(folder)
        numbers = [step[key] for step in steps for key in ("loss", "grad_norm") if key in step]
        if len(steps) < options.steps or not all(map(math.isfinite, numbers)):
            raise Failed(f"{len(steps)} steps, whose losses and norms of gradients are {numbers}")
        mismatch = [step["mismatch_kl"] for step in steps if step.get("mismatch_kl") is not None]
        row["mismatch_kl"] = max(mismatch, default=None)
        known = row["mismatch_kl"] is not None and name not in OFF_POLICY
        if known and not row["mismatch_kl"] <= MISMATCH_LIMIT[dtype]:
            raise Failed(f"mismatch_kl is {row['mismatch_kl']:.1e}, above {MISMATCH_LIMIT[dtype]:g}")
    except (Failed, subprocess.TimeoutExpired, KeyError, TypeError) as error:
        row["failed"] = str(error)
    row["seconds"] = time.monotonic() - started
    print(f"{name} {dtype}: {row['failed'] or 'ran'} ({row['seconds']:.0f} s)", flush=True)
    return row


def configs(options):
    names = options.configs or sorted({path.stem for path in (ROOT / "configs").glob("*.toml")} - NOT_ALONE - {"tiny"})
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda job: one_config(options, *job), [(n, d) for d in DTYPES for n in names]))
    keep(options, "configs", rows)
    failed = [f"{row['config']} in {row['dtype']}: {row['failed']}" for row in rows if row["failed"]]
    if failed:
        raise Failed("\n".join(failed))


def resume(options):
    folder = options.out / "resume"
    sets = changed(options, folder, "f32", steps=6, evaluate__prompts=4)
    command = [options.program, "train", ROOT / "configs/quickstart.toml", "--out", folder, *sets]
    with open(options.out / "resume.log", "w") as log:
        running = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
        file = folder / "metrics.jsonl"
        until = time.monotonic() + 120
        while not (file.exists() and file.read_text().count("\n") >= 2):
            if running.poll() is not None or time.monotonic() > until:
                running.kill()
                raise Failed(f"the run took no two steps: {(options.out / 'resume.log').read_text()[-1500:]}")
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        code = running.wait(60)
    done = len(metrics(folder))
    run(options.program, "train", "--resume", folder)
    steps = [row["step"] for row in metrics(folder)]
    keep(options, "resume", {"code": code, "steps_before": done, "steps": steps})
    if steps != list(range(1, 7)) or done >= 6 or code != 130:
        raise Failed(f"interrupted after {done} steps (exit code {code}), resumed: steps {steps}")


def quickstart(options):
    rows = []
    for dtype in DTYPES:
        folder = options.out / f"quickstart-{dtype}"
        sets, log = changed(options, folder, dtype), options.out / f"quickstart-{dtype}.log"
        _, _, idle = gpu()
        started, most = time.monotonic(), idle
        with open(log, "w") as out:
            command = [options.program, "train", ROOT / "configs/quickstart.toml", "--out", folder, *sets]
            running = subprocess.Popen([str(word) for word in command], stdout=out, stderr=out)
            while running.poll() is None:
                most = max(most, gpu()[2])
                time.sleep(0.5)
        if running.returncode != 0:
            said = log.read_text()[-1500:]
            raise Failed(f"the quickstart in {dtype} ended with {running.returncode}: {said}")
        summary = json.loads((folder / "summary.json").read_text())
        rows.append({"dtype": dtype, "seconds": time.monotonic() - started, "gpu_mb": most - idle, **summary})
        print(rows[-1], flush=True)
    keep(options, "quickstart", rows)


def bench(options):
    for dtype in DTYPES:
        sets = ["--set", f'model.device="{options.device}"', "--set", f'model.dtype="{dtype}"']
        sets += ["--model", options.model]
        often = ["--repetitions", 3, "--seconds", options.seconds]
        config = ROOT / "configs/bench.toml"
        parts = ["decode", "prefill", "score", "train", "grpo", "dpo", "startup"]
        said = run(options.program, "bench", *parts, *sets, "--config", config, *often, "--json")
        (options.out / f"bench-{dtype}.json").write_text(said)
        print(said, flush=True)


def keep(options, part, found):
    (options.out / f"{part}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "target/release/proxrl"))
    parser.add_argument("--model", default="SmolLM2-135M-Instruct.Q4_1.gguf", help="value of model.path")
    parser.add_argument("--device", default="cuda", help="cpu tries this script without a GPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--configs", nargs="+", help="these alone, by the names of their files")
    parser.add_argument("--steps", type=int, default=3, help="of every config")
    parser.add_argument("--seconds", type=int, default=10, help="of the bench: no figure is repeated after so many")
    parser.add_argument("--jobs", type=int, default=6, help="configs that run side by side")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/cuda", help="folder of runs and results")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in (part for part in PARTS if part in options.only):
        started, outcome = time.monotonic(), "held"
        try:
            globals()[part](options)
        except (Failed, subprocess.TimeoutExpired, OSError) as error:
            failed.append(f"{part}: {error}")
            outcome = "failed"
        print(f"== {part}: {outcome} ({time.monotonic() - started:.0f} s)", flush=True)
    if failed:
        print("\n".join(failed), file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
