#!/usr/bin/env python3
"""Which layers keep their ranks: the open gates of several runs, by kind of module and by depth, and how alike they are.

    python3 scripts/compare_ranks.py RUN [RUN ...]

Reads the gates in the last checkpoint of each run folder and prints Markdown: mean open ranks by kind of module and by
third of the depth for each run, and Spearman's correlation of the ranks of all layers between every two runs. Beside it
stands what chance gives: the correlations of 999 shuffles of one run's layers, of which the 95 % quantile is printed.
Needs Python 3.8 and nothing else.
"""

import argparse
import json
import random
import re
import struct
import sys
from itertools import combinations
from pathlib import Path

LAYER = re.compile(r"layers\.(\d+)\..*?(\w+)\.gate$")


def open_ranks(run):
    """The open gates of each layer: {(depth, kind): count}."""
    checkpoints = sorted((run / "checkpoints").glob("step_*"), key=lambda path: int(path.name[5:]))
    if not checkpoints:
        sys.exit(f"{run} has no checkpoint; train it, or name a run folder")
    data = (checkpoints[-1] / "adapter.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    ranks = {}
    for name, tensor in json.loads(data[8 : 8 + length]).items():
        found = LAYER.search(name)
        if not found:
            continue
        begin, end = tensor["data_offsets"]
        gates = struct.unpack(f"<{(end - begin) // 4}f", data[8 + length + begin : 8 + length + end])
        ranks[int(found[1]), found[2]] = sum(gate != 0 for gate in gates)
    if not ranks:
        sys.exit(f"the adapter of {run} has no gates; it is not SoRA's")
    return ranks


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def places(numbers):
    """Ranks in ascending order, from 0; equal numbers share the mean of their places."""
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    shared, start = [0.0] * len(numbers), 0
    while start < len(order):
        end = start
        while end < len(order) and numbers[order[end]] == numbers[order[start]]:
            end += 1
        for index in order[start:end]:
            shared[index] = (start + end - 1) / 2
        start = end
    return shared


def correlation(a, b):
    a, b = [x - mean(a) for x in a], [x - mean(b) for x in b]
    scale = (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
    return sum(x * y for x, y in zip(a, b)) / scale if scale else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    ranks = [open_ranks(run) for run in runs]
    layers = sorted(ranks[0])
    if any(sorted(other) != layers for other in ranks):
        sys.exit("the runs adapt different layers")
    depth = 1 + max(layer for layer, _ in layers)
    kinds = sorted({kind for _, kind in layers})

    print("| mean open ranks | " + " | ".join(run.name for run in runs) + " |")
    print("|---|" + "---|" * len(runs))

    def row(name, chosen):
        print(f"| {name} | " + " | ".join(f"{mean(one[key] for key in chosen):.1f}" for one in ranks) + " |")

    for kind in kinds:
        row(f"`{kind}`", [key for key in layers if key[1] == kind])
    for third, name in enumerate(["first third of the layers", "second third", "last third"]):
        row(name, [key for key in layers if key[0] * 3 // depth == third])
    row("all", layers)

    if len(runs) > 1:
        print("\n| layers of | correlation | chance, 95 % of shuffles below |\n|---|---|---|")
    shuffler = random.Random(0)
    for (first, a), (second, b) in combinations(zip(runs, ranks), 2):
        a, b = (places([one[key] for key in layers]) for one in (a, b))
        by_chance = sorted(correlation(a, shuffler.sample(b, len(b))) for _ in range(999))
        print(f"| {first.name} and {second.name} | {correlation(a, b):.2f} | {by_chance[949]:.2f} |")


if __name__ == "__main__":
    main()
