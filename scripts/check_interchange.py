#!/usr/bin/env python3
"""Check that exports compute the same in the programs that they are for as in proxrl.

Samples an answer with a run's newest checkpoint, exports the run in every format, loads each export in its target
program, and compares the log-probability of every sampled token, and the ids of a text:

| export | loaded by |
|---|---|
| `peft`, `peft-padded` | transformers, with the adapter put on the base by PEFT |
| `hf` | transformers |
| `gguf` as f16 and q8_0 | llama.cpp, through llama-cpp-python |

    python3 scripts/check_interchange.py RUN_FOLDER BASE_MODEL [PROXRL]

RUN_FOLDER is a run, BASE_MODEL the .gguf file or Hugging Face folder that it was trained on. Packages that are not
installed (torch, transformers, peft, gguf; llama-cpp-python) are skipped with a note and do not fail the check. An
export that computes something else ends the program with 1.

An adapter can only be compared on a base that both programs read alike. transformers' own reader of GGUF files leaves
out Llama 3's rotary factors and Qwen3's head size: such a base is detected and skipped; give its Hugging Face folder.
"""

import json
import os
import subprocess
import sys
import tempfile

QUESTION = "What is 12+7? Answer with a number."
# In nats. Everything in f32: arithmetic in another order, over some 30 layers.
EXACT = 2e-3
# llama.cpp multiplies in f16, or rounds both sides of a product to 8 bits.
ROUNDED = {"f16": 5e-2, "q8_0": 0.5}


class Missing(Exception):
    """A requirement of a check that is not installed."""


def proxrl(program, *arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"proxrl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def transformers():
    try:
        import torch
        import transformers
        return torch, transformers
    except ImportError as error:
        raise Missing(f"{error}; pip install torch transformers peft gguf")


def load(path):
    torch, library = transformers()
    if path.endswith(".gguf"):
        folder, file = os.path.split(path)
        return library.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    return library.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def scored_by_torch(model, drawn):
    torch, _ = transformers()
    with torch.no_grad():
        logits = model(torch.tensor([drawn["prompt_ids"] + drawn["ids"]])).logits[0, len(drawn["prompt_ids"]) - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(drawn["ids"])[:, None])[:, 0].tolist()


def load_base(base, own):
    """Loads the base in transformers; raises unless it computes there what it computes in proxrl, which sampled `own`."""
    try:
        model = load(base)
    except (OSError, RuntimeError, ValueError) as error:
        raise Missing(f"transformers cannot load the base: {str(error).splitlines()[0]}")
    error = difference(scored_by_torch(model, own), own["logprobs"])
    if error > EXACT:
        raise Missing(f"transformers reads the base itself differently ({error:.1e}); give its Hugging Face folder")
    return model


def check_peft(export, base, drawn, own, _):
    try:
        from peft import PeftModel
    except ImportError as error:
        raise Missing(f"{error}; pip install peft")
    model = load_base(base, own)
    without = scored_by_torch(model, drawn)
    effect = difference(without, drawn["logprobs"])
    if effect <= EXACT:
        sys.exit(f"the adapter changes nothing ({effect:.1e}), so comparing it proves nothing; train longer")
    print(f"    without the adapter: {effect:.2e}")
    return scored_by_torch(PeftModel.from_pretrained(model, export), drawn), EXACT


def check_hub(export, _, drawn, _own, plain):
    _, library = transformers()
    same_ids(library.AutoTokenizer.from_pretrained(export)(QUESTION).input_ids, plain)
    return scored_by_torch(load(export), drawn), EXACT


def check_gguf(kind):
    def check(export, _, drawn, _own, plain):
        try:
            import llama_cpp
            import numpy
        except ImportError as error:
            raise Missing(f"{error}; pip install llama-cpp-python")
        ids = drawn["prompt_ids"] + drawn["ids"]
        model = llama_cpp.Llama(export, logits_all=True, n_ctx=max(64, len(ids) + 1), n_threads=1, verbose=False)
        same_ids(model.tokenize(QUESTION.encode(), add_bos=True, special=True), plain)
        model.eval(ids)
        logits = numpy.array(model.scores[len(drawn["prompt_ids"]) - 1 : len(ids) - 1], dtype=numpy.float64)
        top = logits.max(-1, keepdims=True)
        logprobs = logits - top - numpy.log(numpy.exp(logits - top).sum(-1, keepdims=True))
        return [float(row[token]) for row, token in zip(logprobs, drawn["ids"])], ROUNDED[kind]

    return check


def same_ids(theirs, ours):
    if list(theirs) != ours:
        sys.exit(f"the exported tokenizer reads {QUESTION!r} as {list(theirs)}, proxrl as {ours}")


def difference(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


CHECKS = [
    ("peft", ["--format", "peft"], check_peft),
    ("peft-padded", ["--format", "peft-padded"], check_peft),
    ("hf", ["--format", "hf", "--type", "f32"], check_hub),
    ("gguf f16", ["--format", "gguf", "--type", "f16"], check_gguf("f16")),
    ("gguf q8_0", ["--format", "gguf", "--type", "q8_0"], check_gguf("q8_0")),
]


def main(run, base, program="target/release/proxrl"):
    answer = ["--json", "--seed", "1", "--max-new-tokens", "24"]
    drawn = json.loads(proxrl(program, "generate", QUESTION, "--run", run, *answer))
    own = json.loads(proxrl(program, "generate", QUESTION, "--model", base, *answer))
    plain = json.loads(proxrl(program, "generate", QUESTION, "--raw", "--run", run, *answer))["prompt_ids"]
    failed, skipped = [], []
    for name, arguments, check in CHECKS:
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "model.gguf" if name.startswith("gguf") else "export")
            proxrl(program, "export", run, *arguments, "--out", out)
            try:
                theirs, tolerance = check(out, base, drawn, own, plain)
            except Missing as missing:
                print(f"{name}: skipped: {missing}")
                skipped.append(name)
                continue
        error = difference(theirs, drawn["logprobs"])
        verdict = "the same" if error <= tolerance else "NOT the same"
        print(f"{name}: {verdict}; {len(theirs)} tokens, largest difference {error:.2e} (at most {tolerance:.0e})")
        if error > tolerance:
            failed.append(name)
    if skipped:
        print(f"not checked: {', '.join(skipped)}")
    if failed:
        sys.exit(f"these exports mean something else: {', '.join(failed)}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
