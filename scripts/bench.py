#!/usr/bin/env python3
"""Measure proxrl and its peers on the same weights, on one machine, in one run.

    make bench                                    this program alone, against the machine's limits
    make bench PEERS=1                            and transformers with PEFT, TRL and llama.cpp
    python3 scripts/bench.py --parts decode grpo  some parts; the others keep their stored numbers
    python3 scripts/bench.py --check              fails if a ratio of docs/results/performance.json was lost
    python3 scripts/bench.py --set model.dtype=bf16 --kept docs/results/performance-bf16.json
                                                  all with bf16 weights

Product and peers take turns, part by part and round by round, each in a process of its own. Every number is the median of
its repetitions, with minimum and maximum. Only ratios of numbers of one run are stored and compared later: product to
peer, and product to the machine's limit as computed by `proxrl bench`.

The peers get a Python environment of their own in ${PROXRL_CACHE:-${XDG_CACHE_HOME:-~/.cache}/proxrl}/peers, some 6 GB,
at the versions below; llama.cpp is compiled for it, which takes minutes. `--peers-python` names an existing environment.
The weights are the untrained model, exported by this program itself, and the script checks that the peers' tokenizer
gives the same tokens. Without --peers, Python 3.8 and the program are enough.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import bench_page
from compare_methods import ROOT, commit, machine, spoken

CONFIG = ROOT / "configs/bench.toml"
PINNED = [
    "torch==2.13.0",
    "transformers==5.23.0",
    "trl==1.16.0",
    "peft==0.21.0",
    "datasets==5.2.0",
    "accelerate==1.15.0",
    "llama-cpp-python==0.3.36",
]
PARTS = ["decode", "prefill", "score", "train", "grpo", "dpo", "startup", "growth"]
USUAL = PARTS[:-1]
# Peers of each part.
PEERS = {
    "decode": ["transformers", "llama.cpp"],
    "prefill": ["transformers", "llama.cpp"],
    "score": ["transformers"],
    "train": ["transformers"],
    "grpo": ["trl"],
    "dpo": ["trl"],
    "startup": ["trl"],
}
QUESTION = "What is 137+58? Answer with a number."


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=USUAL, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--peers", action="store_true", help="measure the peers too; sets up their environment once")
    parser.add_argument("--peers-python", type=Path, help="an existing Python with the peers")
    parser.add_argument("--only-peers", nargs="+", metavar="PEER", help="only these of transformers, trl and llama.cpp")
    parser.add_argument("--rounds", type=int, default=1, help="turns that product and peers take")
    parser.add_argument("--repetitions", type=int, default=3, help="of each figure in each turn")
    parser.add_argument("--seconds", type=float, default=60, help="no further repetition of a figure begins after this")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--trl-micro", type=int, default=0, help="TRL's per-device batch; 0 for the whole batch")
    parser.add_argument("--no-store", action="store_true", help="leave the store out of growth")
    parser.add_argument("--model", help="the model; that of configs/bench.toml by default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the config")
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/proxrl")
    parser.add_argument("--kept", type=Path, default=ROOT / "docs/results/performance.json", help="file of the ratios")
    parser.add_argument("--check", action="store_true", help="compare with the stored ratios instead of storing")
    parser.add_argument("--tolerance", type=float, default=0.25, help="share of a ratio that may be lost")
    return parser.parse_args()


def cache_folder():
    own, home = os.environ.get("PROXRL_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else (Path(home) if home else Path.home() / ".cache") / "proxrl"


def peers_python(args):
    """Returns the path of a Python with the peers; None if they are not asked for."""
    if args.peers_python:
        return args.peers_python
    if not args.peers:
        return None
    folder = cache_folder() / "peers"
    python, stamp = folder / "bin/python", folder / ".complete"
    if not stamp.exists() or stamp.read_text() != "\n".join(PINNED):
        say(f"peers: installing into {folder}, once")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINNED], check=True)
        stamp.write_text("\n".join(PINNED))
    return python


def say(line):
    print(line, file=sys.stderr, flush=True)


def run(command, **more):
    """Returns the standard output of a command; its standard error is passed through. Exits if the command fails."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, **more)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(map(str, command))} failed")
    return done.stdout


def changes(args):
    model = [f'model.path="{args.model}"'] if args.model else []
    return [word for change in model + args.set for word in ("--set", change)]


def weights(args, python, dtype):
    """Returns the untrained model for the peers, (Hugging Face folder, GGUF file); exports once per program and model."""
    about = [str(args.program.stat().st_mtime_ns), args.model or "", *args.set]
    folder = cache_folder() / "bench-weights"
    stamp = folder / ".complete"
    hf, gguf = folder / "hf", folder / "model.gguf"
    if not stamp.exists() or stamp.read_text() != "\n".join(about):
        say("peers: exporting the untouched model")
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            # Two samples of one token have the same length, so the same reward: nothing is learned in this one step.
            small = ["steps=1", "rollout.prompts_per_step=1", "rollout.group_size=2", "rollout.max_new_tokens=1"]
            small += [f'store.url="sqlite://{scratch}/bench.db"', "tracker.tensorboard=false"]
            sets = [word for change in small for word in ("--set", change)]
            run([args.program, "train", CONFIG, "--out", f"{scratch}/run", *changes(args), *sets], stderr=subprocess.DEVNULL)
            subprocess.run(["rm", "-rf", str(hf)], check=True)
            run([args.program, "export", f"{scratch}/run", "--format", "hf", "--type", dtype, "--out", hf])
            run([args.program, "export", f"{scratch}/run", "--format", "gguf", "--type", dtype, "--out", gguf])
            drawn = run([args.program, "generate", "--run", f"{scratch}/run", "--json", "--max-new-tokens", "1", QUESTION])
            (folder / "question.json").write_text(drawn)
        check_tokens(python, hf, json.loads((folder / "question.json").read_text())["prompt_ids"])
        stamp.write_text("\n".join(about))
    return hf, gguf


def check_tokens(python, hf, expected):
    """Checks that the peers' tokenizer and chat template give the same tokens; otherwise they would do other work."""
    code = (
        "import json, sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        " print(json.dumps(t.apply_chat_template([{'role': 'user', 'content': sys.argv[2]}],"
        " add_generation_prompt=True, return_dict=True)['input_ids']))"
    )
    found = json.loads(run([python, "-c", code, hf, QUESTION]))
    if found != expected:
        sys.exit(f"the peers' tokenizer gives {found} for `{QUESTION}`, but proxrl {expected}: the work would differ")


def product(args, part):
    say(f"{part}: proxrl")
    words = [args.program, "bench", part, "--json", "--config", CONFIG, *changes(args)]
    words += ["--repetitions", args.repetitions, "--seconds", args.seconds, "--new-tokens", args.new_tokens]
    words += ["--prompt-tokens", args.prompt_tokens, "--tokens", args.tokens]
    words += ["--batches", ",".join(map(str, args.batches)), "--lengths", ",".join(map(str, args.lengths))]
    return json.loads(run(words))


def refuse_mixture(args, dtype):
    """Exits if the stored figures are of weights of another format."""
    kept = json.loads(args.kept.read_text()).get("parts", {}) if args.kept.exists() else {}
    others = {part.get("dtype", "f32") for part in kept.values()} - {dtype}
    if others:
        sys.exit(f"{args.kept} holds figures of {', '.join(others)} weights, and these are of {dtype}: name another file with --kept")


def store_growth():
    """Measures appending to and reading from a store that grows to a million samples, by the store's own bench."""
    say("growth: the store")
    words = [os.environ.get("CARGO", "cargo"), "run", "--release", "--locked", "--package", "proxrl-store"]
    return json.loads(run([*words, "--example", "bench", "--", "growth"], cwd=ROOT))["figures"]


def peer(args, python, name, part, work):
    say(f"{part}: {name}")
    with tempfile.TemporaryDirectory() as folder:
        words = [python, ROOT / "scripts/bench_peers.py", name, part, json.dumps({**work, "folder": folder})]
        done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        say(f"{part}: {name} failed and is left out: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return []
    return json.loads(done.stdout)["figures"]


def measure(args, python):
    """Returns figures by key, with the values of the product and of each peer, and the product's other output by part."""
    figures, about = {}, {}
    for turn in range(args.rounds):
        for part in args.parts:
            report = product(args, part)
            refuse_mixture(args, report["dtype"])
            said = about.setdefault(part, {"others": {}})
            said.update({key: report[key] for key in ("program", "model", "dtype", "threads", "machine") if key in report})
            for name, cores in report.get("others", {}).items():
                said["others"][name] = max(said["others"].get(name, 0.0), cores or 0.0)
            for found in report["figures"]:
                kept = figures.setdefault(found["key"], {**found, "values": [], "limits": [], "peers": {}})
                kept["values"] += found["values"]
                kept["limits"] += [found["limit"]] if found["limit"] else []
            if part == "growth" and not args.no_store:
                for found in store_growth():
                    blank = {**found, "name": found["key"], "better": "lower", "values": [], "limits": [], "peers": {}}
                    figures.setdefault(found["key"], blank)["values"].extend(found["values"])
            hf, gguf = weights(args, python, report["dtype"]) if python else (None, None)
            work = {
                "threads": report["threads"], "prose": report["prose"], "repetitions": args.repetitions,
                "seconds": args.seconds, "batches": args.batches, "new_tokens": args.new_tokens,
                "prompt_tokens": args.prompt_tokens, "lengths": args.lengths, "tokens": args.tokens, "ragged": True,
                "hf": str(hf), "gguf": str(gguf), "dtype": report["dtype"], "trl_micro": args.trl_micro,
                "prompts_per_step": 4, "group_size": 8, "max_new_tokens": 64,
            }  # fmt: skip
            for name in PEERS.get(part, []) if python else []:
                if args.only_peers and name not in args.only_peers:
                    continue
                for found in peer(args, python, name, part, work):
                    blank = {"key": found["key"], "unit": found["unit"], "values": [], "limits": [], "peers": {}}
                    own = figures.setdefault(found["key"], blank)
                    own["peers"].setdefault(name, []).extend(found["values"])
    return figures, about


def summary(values):
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "values": values}


def ratio(better, own, other):
    """Returns the factor by which `own` is better than `other`."""
    return own / other if better == "higher" else other / own


def condensed(figures):
    """Returns the figures with medians and ratios, in the form in which they are stored."""
    kept = []
    for figure in figures.values():
        better = figure.get("better", "lower")
        entry = {key: figure.get(key) for key in ("key", "name", "unit", "work")}
        entry.update(better=better, product=None, share_of_limit=None, peers={})
        if figure["values"]:
            entry["product"] = summary(figure["values"])
            if figure["limits"]:
                entry["limit"] = statistics.median(figure["limits"])
                entry["share_of_limit"] = ratio(better, entry["product"]["median"], entry["limit"])
        for name, values in figure["peers"].items():
            entry["peers"][name] = summary(values)
            if entry["product"]:
                entry["peers"][name]["ratio"] = ratio(better, entry["product"]["median"], entry["peers"][name]["median"])
        kept.append(entry)
    return kept


def ratios(entries):
    """Returns every guarded ratio by a descriptive name."""
    found = {}
    for entry in entries:
        if entry["share_of_limit"]:
            found[f"{entry['key']}, share of the limit"] = entry["share_of_limit"]
        for name, other in entry["peers"].items():
            if "ratio" in other:
                found[f"{entry['key']}, to {name}"] = other["ratio"]
    return found


def check(kept, now, tolerance):
    """Prints the ratios that were lost and returns their number."""
    before, after = ratios(kept["figures"]), ratios(now)
    lost = 0
    for name in sorted(before.keys() & after.keys()):
        share = after[name] / before[name]
        word = "LOST" if share < 1 - tolerance else "ok"
        lost += word == "LOST"
        print(f"{word:5} {name}: {after[name]:.3f}, was {before[name]:.3f} ({share - 1:+.0%})")
    if not before.keys() & after.keys():
        sys.exit("nothing that was measured is kept: run without --check first")
    return lost


def versions(python):
    code = (
        "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in"
        " ('torch', 'transformers', 'trl', 'peft', 'llama-cpp-python') if any(d.name == n or"
        " d.name.replace('_', '-') == n for d in m.distributions())}))"
    )
    return json.loads(run([python, "-c", code]))


def keep(args, about, entries, python):
    """Stores the figures beside those of parts that were not measured, and writes the page."""
    kept = json.loads(args.kept.read_text()) if args.kept.exists() else {"figures": []}
    measured = {entry["key"] for entry in entries}
    kept["figures"] = [entry for entry in kept["figures"] if entry["key"] not in measured] + entries
    kept["figures"].sort(key=lambda entry: PARTS.index(entry["key"].split("/")[0]))
    command = "python3 scripts/bench.py " + spoken(sys.argv[1:], {"--program": [], "--peers-python": ["--peers"]})
    for part in args.parts:
        kept.setdefault("parts", {})[part] = {"commit": commit(), "command": command.strip(), **about[part]}
    kept["host"] = machine()
    if python:
        kept["peers"] = versions(python)
    args.kept.parent.mkdir(parents=True, exist_ok=True)
    args.kept.write_text(json.dumps(kept, indent=1) + "\n")
    return bench_page.write(kept, args.kept.with_suffix(".md"))


def main():
    args = arguments()
    if not args.program.exists():
        sys.exit(f"{args.program} is not there: cargo build --release builds it, --program names another one")
    python = peers_python(args)
    figures, about = measure(args, python)
    entries = condensed(figures)
    print(bench_page.text_table(entries))
    if args.check:
        if not args.kept.exists():
            sys.exit(f"{args.kept} is not there: run without --check first")
        lost = check(json.loads(args.kept.read_text()), entries, args.tolerance)
        sys.exit(f"{lost} ratios lost more than {args.tolerance:.0%}" if lost else 0)
    print(keep(args, about, entries, python))


if __name__ == "__main__":
    main()
