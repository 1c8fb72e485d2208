#!/usr/bin/env python3
"""Does an exported adapter mean the same to Hugging Face PEFT as to proxrl?

Draws an answer with the run's adapter, exports the adapter, loads both in transformers and PEFT, and compares the
log-probability of every drawn token. Needs torch, transformers, peft and gguf; says so and ends with 3 without them.

    python3 scripts/check_peft.py RUN_FOLDER BASE_MODEL [PROXRL]

RUN_FOLDER is a run of a real model, BASE_MODEL its .gguf file or Hugging Face folder.
"""

import json
import os
import subprocess
import sys
import tempfile

TOLERANCE = 2e-3  # nats; f32 arithmetic in another order, over some 30 layers

try:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f"skipped: {error}; pip install torch transformers peft gguf", file=sys.stderr)
    sys.exit(3)


def proxrl(program, *arguments):
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def base(path):
    if path.endswith(".gguf"):
        folder, file = os.path.split(path)
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def scores(model, drawn):
    ids = torch.tensor([drawn["prompt_ids"] + drawn["ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(drawn["prompt_ids"]) - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(drawn["ids"])[:, None])[:, 0]


def main(run, model_path, program="target/release/proxrl"):
    question = "What is 12+7? Answer with a number."
    drawn = json.loads(proxrl(program, "generate", question, "--run", run, "--json", "--seed", "1", "--max-new-tokens", "24"))
    with tempfile.TemporaryDirectory() as folder:
        proxrl(program, "export", run, "--format", "peft", "--out", folder, "--base", model_path)
        model = base(model_path)
        without = scores(model, drawn)
        with_adapter = scores(PeftModel.from_pretrained(model, folder), drawn)
    ours = torch.tensor(drawn["logprobs"])
    difference = (with_adapter - ours).abs().max().item()
    effect = (without - ours).abs().max().item()
    print(f"{len(ours)} tokens: largest difference {difference:.2e} with the adapter, {effect:.2e} without it")
    if difference > TOLERANCE or effect <= TOLERANCE:
        sys.exit("the adapter does not mean the same in PEFT")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
