#!/usr/bin/env python3
"""Compare methods: train configs on several seeds under common settings, and write a page with tables and curves.

    python3 scripts/compare_methods.py configs/grpo.toml configs/rloo.toml --seeds 0 1 2 --page docs/results/methods.md

Every config is trained on every seed into OUT/NAME-SEED, one after another, because they would share the cores; `--jobs
N` trains N at a time, for machines with cores or a GPU to spare. Each stores its samples in OUT/NAME-SEED.db. Finished
runs are not repeated and interrupted ones continue, so the same command can be given until it is done. `--set
KEY=VALUE` changes all configs, `--set NAME:KEY=VALUE` one of them: a method with more samples per step, such as DAPO,
should have fewer steps.

The tables read each run's metrics.jsonl at equal numbers of samples and at equal seconds of training: the mean of a
metric over the last eighth of the budget up to that point, then its mean and standard deviation over seeds. `--reach
METRIC=VALUE,...` adds the samples, tokens and seconds that each method spends until a metric, such as the held-out
accuracy of `evaluate.every`, first reaches that value, or until its mean over the newest `--window` samples does;
`--means METRIC,...` adds means over all steps. Methods are compared with the first one seed by seed: a difference or a
ratio has the 95 % interval of a paired bootstrap, from five seeds on. `proxrl plot` draws the curves. Needs Python 3.8
and the program.
"""

import argparse
import json
import os
import platform
import random
import shlex
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Parts of the common budget at which the tables read a metric.
PARTS = (0.25, 0.5, 0.75, 1.0)
# Share of the whole budget that a reading is averaged over.
WINDOW = 0.125
# Samples of a bootstrap.
RESAMPLES = 4000


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="[NAME=]CONFIG", help="configs, each named after its file or as given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="[NAME:]KEY=VALUE", help="change a key")
    parser.add_argument("--samples", type=int, help="sample budget; by default the samples that every run has")
    parser.add_argument("--metric", default="reward", help="a name in metrics.jsonl")
    parser.add_argument("--reach", default="", metavar="METRIC=VALUE,...", help="values to reach; greater is better")
    parser.add_argument("--window", type=int, default=0, help="samples that a metric to reach is averaged over")
    parser.add_argument("--means", default="", metavar="METRIC,...", help="metrics to average over all steps")
    parser.add_argument("--about", default="", help="a paragraph about the task, for the page")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the runs")
    parser.add_argument("--page", type=Path, default=Path("docs/results/methods.md"), help="the page to write")
    parser.add_argument("--title", default="Methods compared")
    parser.add_argument("--jobs", type=int, default=1, help="runs that train side by side")
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/proxrl")
    return parser.parse_args()


def overrides(settings, name):
    """Returns the settings for one config: those without a name, and its own."""
    chosen = []
    for setting in settings:
        owner, separator, rest = setting.partition(":")
        # A colon behind the equals sign belongs to the value.
        if separator and "=" not in owner:
            if owner == name:
                chosen.append(rest)
        else:
            chosen.append(setting)
    return chosen


def named(text):
    """Returns name and file of a config: of `NAME=FILE`, or of a file, whose name is the config's."""
    name, separator, file = text.partition("=")
    return (name, Path(file)) if separator else (Path(text).stem, Path(text))


def train(program, config, seed, folder, settings):
    """Trains one config unless that is done already; continues an interrupted run."""
    if (folder / "summary.json").exists():
        return
    if (folder / "config.toml").exists():
        command = [program, "train", "--resume", folder]
    else:
        command = [program, "train", config, "--out", folder, "--set", f"seed={seed}"]
        command += ["--set", f'store.url="sqlite://{folder}.db"']
        for setting in settings:
            command += ["--set", setting]
    print("+", shlex.join(map(str, command)), flush=True)
    subprocess.run([str(part) for part in command], check=True)


def steps(folder):
    """Returns the metrics of every step; the held-out accuracy after the last one is in summary.json alone."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    after = json.loads((folder / "summary.json").read_text()).get("accuracy_after")
    if lines and after is not None:
        lines[-1].setdefault("eval_accuracy", after)
    return lines


def rows(folder, metric):
    """Returns (samples, seconds, metric) of every step that has the metric."""
    lines = steps(folder)
    found = [(row["num_samples"], row["time/train_s"], row[metric]) for row in lines if row.get(metric) is not None]
    if not found:
        sys.exit(f"{folder}/metrics.jsonl has no metric `{metric}`; --metric names another one")
    return found


def reading(points, place, budget):
    """Returns the mean over the last eighth of the budget before `place`; None beyond the end of the run.

    `points` are (x, y), x ascending. A step counts at its end; if none ends in the window, the last one before it counts.
    """
    before = [(x, y) for x, y in points if x <= place + 1e-9]
    if not before or points[-1][0] < place - 1e-9:
        return None
    inside = [y for x, y in before if x > place - WINDOW * budget]
    return statistics.mean(inside) if inside else before[-1][1]


def spread(values, digits=3, scale=1.0):
    """Formats `mean ± standard deviation` of the known values."""
    known = [value * scale for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{statistics.mean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def paired(pairs, statistic, digits=2, scale=1.0):
    """Formats a statistic of pairs, one per seed, with the 95 % interval of a paired bootstrap from five pairs on."""
    if not pairs:
        return "–"
    value = f"{statistic(pairs) * scale:.{digits}f}"
    if len(pairs) < 5:
        return value
    chance = random.Random(0)
    drawn = sorted(statistic(chance.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    low, high = drawn[int(0.025 * RESAMPLES)] * scale, drawn[int(0.975 * RESAMPLES) - 1] * scale
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def ratio(pairs):
    """The mean of the first numbers over the mean of the second."""
    return statistics.mean(one for one, _ in pairs) / statistics.mean(other for _, other in pairs)


def difference(pairs):
    return statistics.mean(one - other for one, other in pairs)


def table(heads, lines):
    text = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join(text + [f"| {' | '.join(line)} |" for line in lines])


def course(runs, metric, axis, budget, unit):
    """Returns a table of a metric at parts of the budget, one line per method; `axis` is 0 for samples, 1 for seconds."""
    places = [part * budget for part in PARTS]
    lines = []
    for name, folders in runs.items():
        seeds = [[(row[axis], row[2]) for row in rows(folder, metric)] for folder in folders]
        at = lambda place: spread([reading(points, place, budget) for points in seeds])
        lines.append([name] + [at(place) for place in places])
    digits = 0 if budget >= 20 else 1
    return table(["method"] + [f"{place:,.{digits}f} {unit}" for place in places], lines)


def newest(measured, window):
    """Returns the last metric, or its mean over the newest `window` samples or more; None while there are fewer.

    `measured` are (samples drawn until then, metric).
    """
    if not window:
        return measured[-1][1]
    weighted = drawn = 0.0
    for place in range(len(measured) - 1, -1, -1):
        samples = measured[place][0] - (measured[place - 1][0] if place else 0)
        weighted += samples * measured[place][1]
        drawn += samples
        if drawn >= window:
            return weighted / drawn
    return None


def first_at(folder, metric, value, window):
    """Returns the (samples, tokens, seconds) of a run when a metric first reached a value; None if it never did."""
    measured = []
    for row in steps(folder):
        if row.get(metric) is None:
            continue
        measured.append((row["num_samples"], row[metric]))
        reading = newest(measured, window)
        if reading is not None and reading >= value:
            return row["num_samples"], row["num_generated_tokens"], row["time/train_s"]
    return None


def reached(runs, metric, value, window):
    """Returns a table of the cost of each method until a metric reaches a value, over the seeds in which it does."""
    spent = {name: [first_at(folder, metric, value, window) for folder in folders] for name, folders in runs.items()}
    first = next(iter(runs))
    lines = []
    for name, folders in runs.items():
        found = [each for each in spent[name] if each]
        pairs = [(one[0], other[0]) for one, other in zip(spent[name], spent[first]) if one and other]
        share = paired(pairs, ratio)
        of = lambda place: spread([one[place] for one in found], 0)
        lines.append([name, f"{len(found)} of {len(folders)}", of(0), of(1), of(2), share])
    return table(["method", "seeds", "samples", "tokens drawn", "training, s", f"samples, {first} = 1"], lines)


def reach_part(args, runs):
    """Returns the page's section on values to be reached; empty without any."""
    if not args.reach:
        return ""
    metric, separator, values = args.reach.partition("=")
    if not separator:
        sys.exit(f"--reach {args.reach}: write METRIC=VALUE, such as eval_accuracy=0.5,0.6")
    its = f"its mean over the newest {args.window} samples or a few more " if args.window else ""
    spent = lambda value: reached(runs, metric, float(value), args.window)
    tables = [f"Until {value.strip()}:\n\n{spent(value)}\n" for value in values.split(",")]
    return f"## Spent until `{metric}` is reached\n\n" + "\n".join(tables) + f"""
The first step counts after which the metric was measured and {its}was at least the value; *seeds* says in how many runs
that happened, and the other columns are over those; the last one is over the seeds in which it happened to both.

"""


def means_part(args, runs):
    """Returns the page's section on means over all steps; empty without any."""
    if not args.means:
        return ""
    metrics = [metric.strip() for metric in args.means.split(",")]
    lines = []
    for name, folders in runs.items():
        known = lambda folder, metric: [row[metric] for row in steps(folder) if row.get(metric) is not None]
        seeds = {metric: [known(folder, metric) for folder in folders] for metric in metrics}
        means = {metric: [statistics.mean(values) for values in found if values] for metric, found in seeds.items()}
        if any(means.values()):
            lines.append([name] + [spread(means[metric]) for metric in metrics])
    if not lines:
        sys.exit(f"--means {args.means}: no run has any of these metrics")
    heads = ["method"] + [f"`{metric}`" for metric in metrics]
    return f"## Means over all steps\n\n{table(heads, lines)}\n\n"


def outcome(runs, summaries):
    """Returns a table of each method's results at the end of its runs."""
    lines = []
    for name in runs:
        of = lambda key: [summary.get(key) for summary in summaries[name]]
        lines.append([
            name,
            spread(of("accuracy_before"), 1, 100.0),
            spread(of("accuracy_after"), 1, 100.0),
            spread(of("samples"), 0),
            spread(of("generated_tokens"), 0),
            spread(of("train_seconds"), 0),
            spread(of("peak_rss_mb"), 0),
        ])
    heads = ["method", "held-out accuracy before, %", "after, %", "samples", "tokens drawn", "training, s", "peak memory, MB"]
    return table(heads, lines)


def against_first(runs, summaries, metric, samples):
    """Returns a table of paired differences from the first method: held-out accuracy at the end, and the metric."""
    first, *others = runs
    at = lambda folder: reading([(row[0], row[2]) for row in rows(folder, metric)], samples, samples)
    lines = []
    for name in others:
        ends = [[summary.get("accuracy_after") for summary in summaries[each]] for each in (name, first)]
        accuracies = [pair for pair in zip(*ends) if None not in pair]
        readings = [pair for pair in zip(map(at, runs[name]), map(at, runs[first])) if None not in pair]
        better = sum(one > other for one, other in accuracies)
        lines.append([
            name,
            paired(accuracies, difference, 1, 100.0),
            f"{better} of {len(accuracies)}",
            paired(readings, difference, 3),
        ])
    if not lines:
        return ""
    heads = ["method", "held-out accuracy, points", "seeds with more", f"`{metric}` at {samples:,.0f} samples"]
    return f"## Difference from {first}, seed by seed\n\n{table(heads, lines)}\n\n" + (
        "Brackets are 95 % intervals of a paired bootstrap over seeds; fewer than five seeds have none.\n\n"
    )


def machine():
    try:
        info = Path("/proc/cpuinfo").read_text()
        model = next(line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    gpu = ""
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
        gpu = "".join(f", {name}" for name in asked.stdout.splitlines())
    return f"{len(os.sched_getaffinity(0))} cores of {model}{gpu}, {platform.system()}"


def commit():
    said = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


def spoken(words, instead):
    """Returns the command line for the page: some options and their values left out, or others in their place."""
    kept, words = [], iter(words)
    for word in words:
        option, given, _ = word.partition("=")
        if option not in instead:
            kept.append(word)
            continue
        if not given:
            next(words, None)
        kept += instead[option]
    return shlex.join(kept)


def page(args, runs, summaries):
    every = [folder for folders in runs.values() for folder in folders]
    samples = args.samples or min(rows(folder, args.metric)[-1][0] for folder in every)
    seconds = min(rows(folder, args.metric)[-1][1] for folder in every)
    pictures = []
    for axis in ("samples", "seconds"):
        picture = args.page.with_name(f"{args.page.stem}-{axis}.svg")
        named = [f"{name}={folder}" for name, folders in runs.items() for folder in folders]
        command = [args.program, "plot", *named, "--x", axis, "--y", args.metric, "--out", picture]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        pictures.append(f"![{args.metric} by {axis}, mean over seeds]({picture.name})")
    seeds = ", ".join(map(str, args.seeds))
    # The paragraph about the task is on the page already.
    command = "python3 " + spoken(sys.argv, {"--about": [], "--program": []})
    over = [name for name in runs if max(summary.get("samples") or 0 for summary in summaries[name]) > samples]
    about = f"{args.about}\n\n" if args.about else ""
    beyond = f" By then {', '.join(over)} had drawn more than {samples:,.0f} samples; the next table is at equal ones." if over else ""
    return f"""# {args.title}

{about}Each method by its own config, on seeds {seeds}; every number is the mean over seeds, ± their standard deviation. Commit
{commit()}, {machine()}.

```sh
{command}
```

## At the end

{outcome(runs, summaries)}

Held-out prompts are answered greedily, before the first and after the last step. *Training* is sampling, scoring, storing
and updating.{beyond}

{against_first(runs, summaries, args.metric, samples)}{reach_part(args, runs)}{means_part(args, runs)}## `{args.metric}` against samples

{course(runs, args.metric, 0, samples, "samples")}

{pictures[0]}

## `{args.metric}` against seconds of training

{course(runs, args.metric, 1, seconds, "s")}

{pictures[1]}

A number in these two tables is the mean over the last eighth of the budget before that point; the budget is what every run
has reached. The curves are smoothed means over seeds.
"""


def main():
    args = arguments()
    if not args.program.exists():
        sys.exit(f"{args.program} is not there: cargo build --release builds it, --program names another one")
    args.out.mkdir(parents=True, exist_ok=True)
    args.page.parent.mkdir(parents=True, exist_ok=True)
    runs, jobs = {}, []
    # Seed by seed, so that an interruption leaves every method with the same number of runs, or one less.
    for seed in args.seeds:
        for name, config in map(named, args.configs):
            folder = args.out / f"{name}-{seed}"
            jobs.append((args.program, config, seed, folder, overrides(args.set, name)))
            runs.setdefault(name, []).append(folder)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: train(*job), jobs))
    read = lambda folder: json.loads((folder / "summary.json").read_text())
    summaries = {name: [read(folder) for folder in folders] for name, folders in runs.items()}
    args.page.write_text(page(args, runs, summaries))
    print(args.page)


if __name__ == "__main__":
    main()
