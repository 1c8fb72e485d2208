#!/usr/bin/env python3
"""Compare preference methods at equal numbers of generated pairs, and write a page with the numbers.

    python3 scripts/compare_preferences.py --model SmolLM2-135M-Instruct.Q4_1.gguf --seeds 0 1 2
    python3 scripts/compare_preferences.py --tiny --steps 4 --seeds 0 --out /tmp/smoke --page /tmp/smoke/page.md

Two tasks, each with one judge for all methods:

- `sums`: sums and differences; a rule compares answers by correctness. Measured: the win rate of sampled answers to
  held-out questions against the base model, and the held-out accuracy.
- `styles`: questions with three answers that beat each other in a circle; this file, as `--judge`, is the judge. The
  equilibrium of the game is known. Measured: the distance of each method's distribution over answers from it, and the
  win rate against the base model.

Every method gets STEPS x PAIRS pairs of its own samples; offline DPO gets as many of the base model's. Finished runs
are not repeated and interrupted ones continue, so the same command can be given until it is done. `--set KEY=VALUE`
changes every training run, `--set METHOD:KEY=VALUE` those of one method. Needs Python 3.8 and the program.
"""

import argparse
import itertools
import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

from compare_methods import ROOT, commit, machine, overrides, spoken, spread, table

# The circle: P(row beats column), and the win rate of the three over every other answer.
STYLES = ("red", "green", "blue")
OTHER = "other"
CIRCLE = {
    "red": {"red": 0.5, "green": 0.9, "blue": 0.2},
    "green": {"red": 0.1, "green": 0.5, "blue": 0.8},
    "blue": {"red": 0.8, "green": 0.2, "blue": 0.5},
}
BEATS_OTHER = 0.95
# Weight of the KL towards the base model in the game, for methods with such a weight.
BETA = 0.1

METHODS = {
    "dpo": '[algorithm.dpo]\nbeta = {beta}',
    "iterative_dpo": '[algorithm.apo]\nalpha = 0.0\nbeta = {beta}\nsteps_per_iteration = {iteration}\nties = "skip"',
    "apo": '[algorithm.apo]\nalpha = 0.3\nbeta = {beta}\nsteps_per_iteration = {iteration}\nties = "skip"',
    "online_dpo": '[algorithm.online_dpo]\nbeta = {beta}\nties = "skip"',
    "nash_md": "[algorithm.nash_md]\nbeta = {beta}",
    # An average that lags by two steps: in so short a run the default lag of ten would keep it near its start.
    "nash_mp": "[algorithm.nash_mp]\nbeta = {beta}\neta = {eta}\nkappa = 0.5",
    "nash_prox": '[algorithm.nash_mp]\nbeta = {beta}\neta = {eta}\nkappa = 1.0\nema_every = {iteration}\nform = "contrastive"',
}

RANDOM_MODEL = '''device = "cpu"
random = { family = "llama", hidden_size = 64, layers = 2, heads = 4, kv_heads = 2, intermediate_size = 128 }'''


def style(text):
    """Returns the first of the three styles that an answer names."""
    found = re.search("|".join(STYLES), text.lower())
    return found.group(0) if found else OTHER


def tiny_style(text):
    """Returns the style of a noisy answer of the tiny network: the class of its first letter or digit."""
    found = re.search(r"[A-Za-z0-9]", text)
    if not found:
        return OTHER
    return STYLES[0] if found.group(0).isdigit() else STYLES[1] if found.group(0).isupper() else STYLES[2]


def beats(own, other):
    """Returns the probability that one style beats another."""
    if own == other:
        return 0.5
    if OTHER in (own, other):
        return BEATS_OTHER if other == OTHER else 1.0 - BEATS_OTHER
    return CIRCLE[own][other]


def judge(classify):
    """Runs the judge of the circle: reads a pair per line and prints a probability per line."""
    for line in sys.stdin:
        pair = json.loads(line)
        print(beats(classify(pair["first"]), classify(pair["second"])))


def equilibrium(reference, beta, rounds=5000):
    """Returns the policy that no other is preferred to, with a KL penalty towards `reference`, by exact Nash-MP."""
    names = [name for name in reference if reference[name] > 0.0]
    eta = min(2.0 * beta, 1.0)
    policy = dict(reference)

    def proximal(anchor, opponent):
        logits = {}
        for own in names:
            wins = sum(beats(own, other) * opponent[other] for other in names)
            log = eta * math.log(reference[own]) + math.log(anchor[own]) + eta / beta * wins
            logits[own] = log / (1.0 + eta)
        top = max(logits.values())
        total = sum(math.exp(value - top) for value in logits.values())
        return {name: math.exp(value - top) / total for name, value in logits.items()}

    policy = {name: reference[name] for name in names}
    for _ in range(rounds):
        policy = proximal(policy, proximal(policy, policy))
    return {name: policy.get(name, 0.0) for name in reference}


def apart(one, other):
    """Returns the total variation distance of two distributions."""
    return 0.5 * sum(abs(one[name] - other[name]) for name in one)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", choices=["styles", "tiny"], help="act as the judge of the circle, on standard input")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct.Q4_1.gguf", help="value of model.path")
    parser.add_argument("--tiny", action="store_true", help="use a tiny random network, to try this script")
    parser.add_argument("--tasks", nargs="+", choices=["sums", "styles"], default=["sums", "styles"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40, help="training steps of every method")
    parser.add_argument("--pairs", type=int, default=16, help="pairs generated per step")
    parser.add_argument("--iterations", type=int, default=4, help="iterations of iterative DPO and APO, points of Nash Prox")
    parser.add_argument("--answers", type=int, default=8, help="answers per held-out question; four times as many in styles")
    parser.add_argument("--set", action="append", default=[], metavar="[METHOD:]KEY=VALUE", help="change a key")
    parser.add_argument("--out", type=Path, default=Path("runs/preferences"), help="folder of the runs")
    parser.add_argument("--page", type=Path, default=Path("docs/results/preferences.md"), help="the page to write")
    parser.add_argument("--about", default="", help="a paragraph about the results, for the page")
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/proxrl")
    return parser.parse_args()


def questions(task):
    """Returns (training rows, held-out rows), each a prompt with a right and a wrong answer."""
    row = lambda prompt, right, wrong: {"prompt": prompt, "answer": right, "chosen": right, "rejected": wrong}
    if task == "sums":
        sums = [(f"{a}+{b}", a + b) for a, b in itertools.product(range(21), repeat=2)]
        sums += [(f"{a}-{b}", a - b) for a, b in itertools.product(range(21), repeat=2) if a >= b]
        rows = [row(f"What is {text}? Answer with a number.", str(value), str(value + 1)) for text, value in sums]
        return [it for place, it in enumerate(rows) if place % 8], rows[::8]
    things = "car house bird shirt chair flag boat cup hat bag lamp door ball book shoe kite".split()
    asks = ("Which colour should a {} have: red, green or blue? Answer with one word.",
            "Choose a colour for a {}: red, green or blue. Say the colour only.")
    rows = [row(ask.format(thing), "red", "stone") for thing in things for ask in asks]
    return [it for place, it in enumerate(rows) if place % 4], rows[::4]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Task:
    """One task on one seed: its files, its configs and its runs."""

    def __init__(self, args, name, seed):
        self.args, self.name, self.seed = args, name, seed
        self.folder = (args.out / f"{name}-{seed}").resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        train, held_out = questions(name)
        self.held_out = len(held_out)
        self.answers = args.answers * (4 if name == "styles" else 1)
        write_rows(self.folder / "train.jsonl", train)
        write_rows(self.folder / "held_out.jsonl", held_out)

    def call(self, *command):
        command = [str(self.args.program), *map(str, command)]
        print("+", shlex.join(command), flush=True)
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    def judge(self):
        if self.name == "styles":
            kind = "tiny" if self.args.tiny else "styles"
            argument = json.dumps([str(Path(__file__).resolve()), "--judge", kind])
            # The judge gives the same comparison in either order.
            return f'[judge]\nswap = false\ncommand = {{ program = "python3", args = {argument} }}'
        rule = 'rule.regex = { pattern = "[0-9]" }' if self.args.tiny else 'rule.math_answer = { extract = "last_number" }'
        return f"[judge]\ntemperature = 0.0\n{rule}\n\n[[reward]]\n{rule}"

    def config(self, algorithm, group_size, train, steps, pairs, rate):
        model = RANDOM_MODEL if self.args.tiny else f"path = {json.dumps(self.args.model)}"
        text = f"""seed = {self.seed}
steps = {steps}
micro_batch_tokens = 1024

[model]
{model}

[model.adapter.lora]
rank = 16
alpha = 32

[prompts.jsonl]
path = "{train}"
held_out_path = "{self.folder / 'held_out.jsonl'}"

[rollout]
prompts_per_step = {pairs}
group_size = {group_size}
max_new_tokens = {8 if self.args.tiny else 16}

{self.judge()}

{algorithm}

[optimizer.adamw]
learning_rate = {rate}

[checkpoint]
every = {steps}

[store]
url = "sqlite://{self.folder / 'samples.db'}"
"""
        return text

    def run(self, name, text, settings=()):
        """Trains a config unless that is done already; continues an interrupted run."""
        folder = self.folder / name
        if (folder / "summary.json").exists():
            return folder
        if (folder / "config.toml").exists():
            self.call("train", "--resume", folder)
            return folder
        path = self.folder / f"{name}.toml"
        path.write_text(text)
        self.call("train", path, "--out", folder, *(part for setting in settings for part in ("--set", setting)))
        return folder

    def query(self, sql):
        url = f"sqlite://{self.folder / 'samples.db'}"
        return json.loads(self.call("replay", "query", "--store", url, "--format", "json", "--", sql))

    def drawn_pairs(self):
        """Returns a file with pairs sampled from the base model, the data set of offline DPO."""
        path = self.folder / "pairs.jsonl"
        if path.exists():
            return path
        args = self.args
        text = self.config(METHODS["online_dpo"].format(beta=BETA), 2, self.folder / "train.jsonl", args.steps, args.pairs, 0.0)
        self.run("draw", text)
        # A tie has no better answer, so the pair is left out.
        rows = self.query(
            "SELECT p.json AS prompt, a.text AS chosen, b.text AS rejected, c.win AS wins FROM comparisons c"
            " JOIN samples a ON a.id = c.sample_id JOIN groups g ON g.id = a.group_id JOIN prompts p ON p.id = g.prompt_id"
            " JOIN runs ON runs.id = g.run_id AND runs.name = 'draw'"
            " JOIN samples b ON b.group_id = a.group_id AND b.place = c.rival_place"
            " WHERE c.rival = 'own' AND c.win > 0.5 ORDER BY a.id"
        )
        if not rows:
            sys.exit(f"{self.folder}: the judge told no two answers of the base model apart")
        prompt = lambda row: json.loads(row["prompt"])["input"]
        write_rows(path, [
            {"prompt": prompt(row), "chosen": turn(row["chosen"]), "rejected": turn(row["rejected"])} for row in rows
        ])
        return path

    def train(self, method):
        """Returns the run folder of a method."""
        args = self.args
        values = {"beta": BETA, "eta": 2.0 * BETA, "iteration": max(1, args.steps // args.iterations)}
        algorithm = METHODS[method].format(**values)
        source = self.drawn_pairs() if method == "dpo" else self.folder / "train.jsonl"
        # Nash-MD's opponent samples the other answer of each pair.
        group_size = 1 if method == "nash_md" else 2
        rate = 5e-3 if args.tiny else 1e-4
        text = self.config(algorithm, group_size, source, args.steps, args.pairs, rate)
        return self.run(method, text, overrides(args.set, method))

    def evaluate(self, run):
        """Returns the win rate against the base model and the other metrics of the held-out answers."""
        path = run / "eval.json"
        if not path.exists():
            answers = f"evaluate.samples={self.answers}"
            path.write_text(self.call("eval", run, "--against", "base", "--set", answers, "--json"))
        return json.loads(path.read_text())

    def styles(self, run):
        """Returns the distribution over styles of a run's held-out answers; of the base model's without a run."""
        name = f"{run.name if run else 'base'}_styles"
        text = self.config(METHODS["online_dpo"].format(beta=BETA), self.answers, self.folder / "held_out.jsonl", 1, self.held_out, 0.0)
        # Only the samples matter here, and a rule is cheaper than a program.
        text = text.replace(self.judge(), '[judge]\nrule.regex = { pattern = "[0-9]" }')
        self.run(name, text, [f"model.adapter_from={run}"] if run else [])
        rows = self.query(
            "SELECT s.text FROM samples s JOIN groups g ON g.id = s.group_id"
            f" JOIN runs ON runs.id = g.run_id AND runs.name = '{name}'"
        )
        classify = tiny_style if self.args.tiny else style
        found = [classify(row["text"]) for row in rows]
        return {name: found.count(name) / len(found) for name in (*STYLES, OTHER)}


def turn(text):
    return [{"role": "assistant", "content": text}]


def sums(args):
    lines = []
    tasks = [Task(args, "sums", seed) for seed in args.seeds]
    for method in args.methods:
        found = [task.evaluate(task.train(method)) for task in tasks]
        of = lambda key: [row.get(key) for row in found]
        lines.append([
            method,
            spread(of("eval_win_rate/base"), 1, 100.0),
            spread(of("eval_accuracy"), 1, 100.0),
            spread(of("eval_unjudged_comparisons"), 0),
        ])
    return table(["method", "win rate against base, %", "held-out accuracy, %", "pairs not judged"], lines)


def styles(args):
    tasks = [Task(args, "styles", seed) for seed in args.seeds]
    bases = [task.styles(None) for task in tasks]
    # One reference for all seeds: the base model is the same.
    reference = {name: sum(base[name] for base in bases) / len(bases) for name in bases[0]}
    # A style that was never sampled is not impossible.
    floor = {name: max(share, 1e-3) for name, share in reference.items()}
    reference = {name: share / sum(floor.values()) for name, share in floor.items()}
    target = equilibrium(reference, BETA)
    row = lambda name, shares: [name] + [spread([share[key] for share in shares], 3) for key in reference]
    lines = [row("base model", bases) + [spread([apart(base, target) for base in bases]), "–"]]
    for method in args.methods:
        runs = [task.train(method) for task in tasks]
        shares = [task.styles(run) for task, run in zip(tasks, runs)]
        wins = [task.evaluate(run).get("eval_win_rate/base") for task, run in zip(tasks, runs)]
        lines.append(row(method, shares) + [spread([apart(share, target) for share in shares]), spread(wins, 1, 100.0)])
    lines.append(["**equilibrium**"] + [f"{target[key]:.3f}" for key in reference] + ["0", "–"])
    return table(["method", *reference, "distance from the equilibrium", "win rate against base, %"], lines)


def page(args, tables):
    model = "a tiny random network" if args.tiny else args.model
    circle = table(["", *STYLES], [[own] + [f"{CIRCLE[own][other]}" for other in STYLES] for own in STYLES])
    titles = {
        "sums": "## A rule judges sums and differences\n\nThe right answer beats the wrong one, and equals draw.",
        "styles": f"""## A judge that prefers in a circle

P(row beats column), by the first of the three that an answer names; each beats an answer without any of them with
{BEATS_OTHER}:

{circle}

The equilibrium is that of the game with a KL penalty of weight {BETA} towards the base model, whose own distribution
over the four is measured. The distance is half the sum of absolute differences.""",
    }
    parts = "\n\n".join(f"{titles[task]}\n\n{found}" for task, found in tables.items())
    about = f"\n{args.about}\n" if args.about else ""
    return f"""# Preference methods compared

{model}, {args.steps} steps of {args.pairs} generated pairs for every method, seeds {", ".join(map(str, args.seeds))}; every number is the mean
over seeds, ± their standard deviation. Held-out questions are answered {args.answers} times each ({4 * args.answers} times in the second
task, which has few) at temperature 1, independently by both sides. Commit {commit()}, {machine()}.

```sh
python3 {spoken(sys.argv, {"--program": [], "--about": []})}
```
{about}
{parts}
"""


def main():
    args = arguments()
    if args.judge:
        judge(tiny_style if args.judge == "tiny" else style)
        return
    if not args.program.exists():
        sys.exit(f"{args.program} is not there: cargo build --release builds it, --program names another one")
    args.program = args.program.resolve()
    args.page.parent.mkdir(parents=True, exist_ok=True)
    compare = {"sums": sums, "styles": styles}
    args.page.write_text(page(args, {task: compare[task](args) for task in args.tasks}))
    print(args.page)


if __name__ == "__main__":
    main()
