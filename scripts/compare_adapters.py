#!/usr/bin/env python3
"""LoRA, SoRA at twice the rank, and SoRA that is pruned on the way: accuracy, time and memory side by side.

Trains each on several seeds, one after the other on the same machine, and prints a Markdown table from each run's
summary.json. A finished run is not trained again, so an interrupted comparison continues where it stopped.

    python3 scripts/compare_adapters.py OUT_FOLDER [--seeds 0 1 2] [--proxrl target/release/proxrl] [--set KEY=VALUE ...]

`--set` applies to every run, such as `--set steps=20`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
KINDS = {
    "LoRA, rank 16": ["lora.toml"],
    "SoRA, 32 to a budget": ["sora_budget.toml", "--set", "prune.every=0"],
    "the same, pruned": ["sora_budget.toml"],
}


def train(program, arguments, seed, changes, out):
    if (out / "summary.json").exists():
        return
    config, *own = arguments
    call = [program, "train", str(CONFIGS / config), *own, "--set", f"seed={seed}", "--out", str(out)]
    call += ["--set", f"store.url=sqlite://{out.parent / 'samples.db'}"]
    for change in changes:
        call += ["--set", change]
    if (out / "config.toml").exists():
        call = [program, "train", "--resume", str(out)]
    print("+", " ".join(call), file=sys.stderr, flush=True)
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def row(kind, seed, out):
    summary = json.loads((out / "summary.json").read_text())
    steps = metrics(out)
    half = steps[len(steps) // 2 :]
    update = sum(step["time/update_s"] for step in half) / len(half)
    open_ranks, all_ranks = steps[-1].get("adapter/rank_total"), steps[0].get("adapter/rank_computed")
    kept = f"{open_ranks:.0f} of {all_ranks:.0f}" if all_ranks else "all"
    accuracy = summary["accuracy_after"]
    return (
        f"| {kind} | {seed} | {100 * accuracy:.1f} % | {summary['active_rank']:.1f} | {kept} "
        f"| {summary['train_seconds']:.0f} s | {update:.2f} s | {summary['peak_rss_mb']:.0f} MB |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--proxrl", default="target/release/proxrl")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in arguments.seeds:
        # All kinds of one seed in sequence, so that other load on the machine affects all of them.
        for number, (kind, config) in enumerate(KINDS.items()):
            folder = out / f"kind-{number}-seed-{seed}"
            train(arguments.proxrl, config, seed, arguments.changes, folder)
            rows.append((number, row(kind, seed, folder)))
    print("| adapter | seed | held-out accuracy | mean rank | open ranks | training "
          "| update, second half | peak memory |")
    print("|---|---|---|---|---|---|---|---|")
    for _, line in sorted(rows, key=lambda entry: entry[0]):
        print(line)


if __name__ == "__main__":
    main()
