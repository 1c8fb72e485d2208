#!/usr/bin/env python3
"""How well the groups that a policy samples stand for it: independent samples, stratified ones, and PROPS.

    python3 scripts/sampling_error.py --page docs/results/stratify.md

One policy, the untrained model, answers the same questions again and again (the learning rate is 0), with each way of
sampling and each group size. Three numbers follow from the stored ids and log-probabilities:

- sampling error: KL(empirical || policy) of a group's first tokens, in nats per group, averaged over groups;
- variance of the group's mean reward between groups of one question, averaged over questions;
- agreement: the mean reward over all, which no way of sampling may change.

Under PROPS the log-probabilities are the behaviour policy's, so its error is the metric `behavior/sampling_error` beside
that of as many independent samples at the same places. Intervals are bootstraps over questions. Needs Python 3.8 and the
program.
"""

import argparse
import json
import math
import random
import sqlite3
import statistics
import struct
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from compare_methods import ROOT, commit, machine, paired, ratio, spoken, table

WAYS = {
    "independent": [],
    "stratified, 1 token": ["rollout.stratify=1"],
    "stratified, 4 tokens": ["rollout.stratify=4"],
    "PROPS": ["behavior.props.slices=4"],
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/quickstart.toml")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=12, help="groups of each question")
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 32], help="sizes of groups")
    parser.add_argument("--out", type=Path, default=Path("runs/sampling"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/stratify.md"))
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/proxrl")
    return parser.parse_args()


def rows(count):
    chance, found = random.Random(0), []
    while len(found) < count:
        x, y, sign = chance.randrange(21), chance.randrange(21), chance.choice("+-")
        answer = x + y if sign == "+" else x - y
        row = {"prompt": f"What is {x}{sign}{y}? Answer with a number.", "answer": str(answer)}
        if row not in found:
            found.append(row)
    return "".join(json.dumps(row) + "\n" for row in found)


def sample(args, way, size):
    """Samples every question `rounds` times into a store; returns the run's folder and the store's path."""
    folder = args.out / f"{way.replace(' ', '_').replace(',', '')}-{size}"
    store = folder.with_suffix(".db")
    if (folder / "summary.json").exists():
        return folder, store
    data = args.out / "questions.jsonl"
    data.write_text(rows(args.questions))
    text = args.config.read_text()
    begin = text.index("[prompts.")
    config = args.out / "config.toml"
    config.write_text(text[:begin] + f'[prompts.jsonl]\npath = "{data}"\n\n' + text[text.index("[rollout]"):])
    per_step = max(1, min(args.questions, 128 // size))
    sets = [f"steps={args.questions * args.rounds // per_step}", f"rollout.prompts_per_step={per_step}",
            f"rollout.group_size={size}", "optimizer.adamw.learning_rate=0", "optimizer.adamw.gate.learning_rate=0",
            "checkpoint.every=100000", "evaluate.every=0", "tracker.tensorboard=false",
            f'store.url="sqlite://{store}"', *WAYS[way]]
    words = [str(args.program), "train", str(config), "--out", str(folder)]
    subprocess.run(words + [word for each in sets for word in ("--set", each)], check=True)
    return folder, store


def groups(store):
    """{question: [(first tokens with log-probs, mean reward)]}."""
    found = defaultdict(list)
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as opened:
        members = defaultdict(list)
        for group, question, ids, logprobs, reward in opened.execute(
            "SELECT v.group_id, v.question, s.token_ids, s.logprobs, v.reward FROM sample_view v "
            "JOIN samples s ON s.id = v.sample_id WHERE s.length > 0"
        ):
            first = struct.unpack("<I", ids[:4])[0], struct.unpack("<f", logprobs[:4])[0]
            members[group, question].append((first, reward))
    for (_, question), samples in members.items():
        found[question].append(([first for first, _ in samples], statistics.mean(reward for _, reward in samples)))
    return found


def error(firsts):
    """KL(empirical || policy) of first tokens with their log-probabilities under the policy."""
    counts, of = Counter(token for token, _ in firsts), dict(firsts)
    return sum(count / len(firsts) * (math.log(count / len(firsts)) - of[token]) for token, count in counts.items())


def numbers(found):
    """(sampling error, variance of the mean reward, mean reward) of each question."""
    return {
        question: (
            statistics.mean(error(firsts) for firsts, _ in drawn),
            statistics.variance(reward for _, reward in drawn),
            statistics.mean(reward for _, reward in drawn),
        )
        for question, drawn in found.items()
    }


def props(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["behavior/sampling_error"], row["behavior/sampling_error_iid"]) for row in lines]


def main():
    args = arguments()
    if not args.program.exists():
        sys.exit(f"{args.program} is not there: cargo build --release builds it, --program names another one")
    args.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for size in args.groups:
        basis = None
        for way in WAYS:
            folder, store = sample(args, way, size)
            measured = numbers(groups(store))
            basis = basis or measured
            pairs = lambda place: [(measured[question][place], basis[question][place]) for question in basis]
            mean = lambda place: statistics.mean(each[place] for each in measured.values())
            if way == "PROPS":
                found = props(folder)
                errors = [f"{statistics.mean(one for one, _ in found):.3f}", paired(found, ratio)]
            else:
                errors = [f"{mean(0):.3f}", paired(pairs(0), ratio) if way != "independent" else "1"]
            variance = paired(pairs(1), ratio) if way != "independent" else "1"
            lines.append([str(size), way, *errors, f"{mean(1):.4f}", variance, f"{mean(2):.3f}"])
    heads = ["group", "sampling", "sampling error, nats", "ratio", "variance of the group's mean reward", "ratio", "mean reward"]
    command = "python3 " + spoken(sys.argv, {"--program": []})
    args.page.write_text(f"""# Stratified groups: sampling error

```sh
{command}
```

{table(heads, lines)}

Commit {commit()}, {machine()}; {args.questions} questions, {args.rounds} groups of each; `ratio` is to independent samples,
with the 95 % interval of a bootstrap over questions. The error of PROPS is over the prefixes of a step (its own metric),
so only its ratio compares.
""")
    print(args.page)


if __name__ == "__main__":
    main()
