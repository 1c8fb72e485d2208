#!/usr/bin/env python3
"""Measures other programs on the work of `proxrl bench`. scripts/bench.py starts this in an environment that has them.

    python bench_peers.py PEER PART WORK

PEER is `transformers` (with a LoRA adapter by PEFT), `trl` or `llama.cpp`, PART a part of `proxrl bench`, and WORK a JSON
object with the paths of the weights and the size of the work. Prints one JSON object with the figures under the names of
`proxrl bench`.
"""

import json
import math
import os
import random
import resource
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

GROUP = 8  # Samples of one prompt, as in a group.
RANK, ALPHA = 16, 32
RAGGED_ROWS, RAGGED_MEAN = 16, 64.0
PAIRS, PAIR_TOKENS = 32, 64


def ragged_lengths():
    """Returns the lengths of the ragged batch of `proxrl bench`: quantiles of an exponential distribution."""
    return [int(max(RAGGED_MEAN * -math.log(1 - (row + 0.5) / RAGGED_ROWS), 4)) for row in range(RAGGED_ROWS)]


def repeat(work, seconds_of):
    """Yields the result of each repetition, up to their number or the time limit."""
    began, done = time.perf_counter(), []
    while not done or len(done) < seconds_of["repetitions"] and time.perf_counter() - began < seconds_of["seconds"]:
        done.append(work())
    return done


def clock(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def figure(key, values, unit):
    return {"key": key, "values": values, "unit": unit}


def peak_memory_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def age_s():
    """Returns the seconds since this process started."""
    ticks = float(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
    return float(open("/proc/uptime").read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def pieces(ids, count, length):
    """Returns pieces of the prose as in `proxrl bench`: each begins 7 tokens after the one before."""
    return [[ids[(7 * number + place) % len(ids)] for place in range(length)] for number in range(count)]


def number_format(torch, work):
    """Returns the dtype of the frozen weights; adapters are f32."""
    return {"f32": torch.float32, "bf16": torch.bfloat16}[work["dtype"]]


# --- transformers, with PEFT ------------------------------------------------------------------------------------------


def lora():
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def load(work):
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(work["threads"])
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(work["hf"])
    model = AutoModelForCausalLM.from_pretrained(work["hf"], dtype=number_format(torch, work))
    return torch, tokenizer, get_peft_model(model, lora())


def generate(torch, model, rows, new):
    with torch.no_grad():
        model.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
            max_new_tokens=new,
            min_new_tokens=new,
        )


def decode(work):
    torch, tokenizer, model = load(work)
    model.eval()
    ids, new, figures = tokenizer(work["prose"])["input_ids"], work["new_tokens"], []
    for batch in work["batches"]:
        prompts = -(-batch // GROUP)
        rows = torch.tensor(pieces(ids, prompts, work["prompt_tokens"])).repeat_interleave(batch // prompts, 0)
        generate(torch, model, rows, 2)
        first = statistics.median(repeat(lambda: clock(lambda: generate(torch, model, rows, 1)), work))
        whole = repeat(lambda: clock(lambda: generate(torch, model, rows, new)), work)
        figures.append(figure(f"decode/{batch}", [len(rows) * (new - 1) / (t - first) for t in whole], "tokens/s"))
    return figures


def prefill(work):
    torch, tokenizer, model = load(work)
    model.eval()
    ids, tokens, figures = tokenizer(work["prose"])["input_ids"], min(work["tokens"], 1024), []
    for length in (work["prompt_tokens"], tokens):
        count = max(tokens // length, 1)
        rows = torch.tensor(pieces(ids, count, length))
        generate(torch, model, rows, 1)
        times = repeat(lambda: clock(lambda: generate(torch, model, rows, 1)), work)
        figures.append(figure(f"prefill/{count}x{length}", [count * length / t for t in times], "tokens/s"))
    return figures


def score(work):
    torch, tokenizer, model = load(work)
    model.eval()
    length = work["lengths"][0]
    count = max(work["tokens"] // length, 1)
    rows = torch.tensor(pieces(tokenizer(work["prose"])["input_ids"], count, length))

    def once():
        with torch.no_grad():
            logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
            torch.log_softmax(logits, -1).gather(-1, rows[:, 1:, None])

    once()
    return [figure(f"score/{count}x{length}", [count * length / clock(once) for _ in range(work["repetitions"])], "tokens/s")]


def train(work):
    torch, tokenizer, model = load(work)
    model.train()
    ids, figures = tokenizer(work["prose"])["input_ids"], []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def update(rows, mask):
        logits = model(input_ids=rows, attention_mask=mask, use_cache=False).logits[:, :-1]
        targets = rows[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    cases = [(f"{max(work['tokens'] // n, 1)}x{n}", [n] * max(work["tokens"] // n, 1)) for n in work["lengths"]]
    for key, lengths in cases + [("ragged", ragged_lengths())] * work["ragged"]:
        rows = torch.tensor(pieces(ids, len(lengths), max(lengths)))
        mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
        update(rows[:1], mask[:1])
        times = repeat(lambda: clock(lambda: update(rows, mask)), work)
        figures.append(figure(f"train/{key}", [sum(lengths) / t for t in times], "tokens/s"))
    return figures


# --- TRL --------------------------------------------------------------------------------------------------------------


def step_times():
    """Returns a callback that records the process' age at the first step and the duration of each step."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def __init__(self):
            self.first_after, self.seconds, self.logs = None, [], []

        def on_step_begin(self, *_, **__):
            self.first_after = self.first_after or age_s()
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.seconds.append(time.perf_counter() - self.start)

        def on_log(self, args, state, control, logs=None, **__):
            self.logs.append(logs or {})

    return Steps()


def grpo(work):
    watch = grpo_steps(work, work["repetitions"] + 1)
    samples = work["prompts_per_step"] * work["group_size"]
    lengths = [logs["completions/mean_length"] for logs in watch.logs if "completions/mean_length" in logs]
    # The first step warms up.
    seconds = watch.seconds[1:]
    per_token = [t / (samples * mean) for t, mean in zip(seconds, lengths[1:])]
    return [figure("grpo/step", seconds, "s"), figure("grpo/token", per_token, "s")]


def startup(work):
    small = {"prompts_per_step": 1, "group_size": 2, "max_new_tokens": 1, "trl_micro": 0}
    return [figure("startup/first_step", [grpo_steps({**work, **small}, 1).first_after], "s")]


def grpo_steps(work, steps):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(work["threads"])
    draw = random.Random(0)
    prompts, group, new = work["prompts_per_step"], work["group_size"], work["max_new_tokens"]
    question = lambda: f"What is {draw.randint(1, 99)}+{draw.randint(1, 99)}? Answer with a number."
    rows = [{"prompt": [{"role": "user", "content": question()}]} for _ in range(max(64, steps * prompts))]

    def length(completion_ids, **_):
        return [-min(1.0, abs(len(ids) - 40) / 40) for ids in completion_ids]

    config = GRPOConfig(
        output_dir=work["folder"], use_cpu=True, bf16=work["dtype"] == "bf16", report_to="none",
        save_strategy="no", disable_tqdm=True,
        max_steps=steps, logging_steps=1, per_device_train_batch_size=work["trl_micro"] or prompts * group,
        gradient_accumulation_steps=prompts * group // (work["trl_micro"] or prompts * group), num_generations=group,
        max_completion_length=new, temperature=1.0, learning_rate=1e-4, lr_scheduler_type="constant", beta=0.0,
        # On by default, to save memory; off, because it costs time.
        gradient_checkpointing=False, dataloader_pin_memory=False,
    )  # fmt: skip
    watch = step_times()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work["hf"], dtype=number_format(torch, work)),
        reward_funcs=length,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(work["hf"]),
        peft_config=lora(),
        callbacks=[watch],
    )
    trainer.train()
    return watch


def dpo(work):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(work["threads"])
    tokenizer, steps = AutoTokenizer.from_pretrained(work["hf"]), work["repetitions"]
    count, ids = PAIRS * steps, tokenizer(work["prose"])["input_ids"]
    turn = lambda role, piece: [{"role": role, "content": tokenizer.decode(piece)}]
    around = len(tokenizer.apply_chat_template(turn("user", []), add_generation_prompt=True, return_dict=True)["input_ids"])
    questions = pieces(ids, count, PAIR_TOKENS - around)
    answers = pieces(ids, 3 * count, PAIR_TOKENS - 2)[count:]
    rows = [
        {
            "prompt": turn("user", questions[row]),
            "chosen": turn("assistant", answers[2 * row]),
            "rejected": turn("assistant", answers[2 * row + 1]),
        }
        for row in range(count)
    ]
    micro = work["trl_micro"] or PAIRS
    config = DPOConfig(
        output_dir=work["folder"], use_cpu=True, bf16=work["dtype"] == "bf16", report_to="none",
        save_strategy="no", disable_tqdm=True,
        max_steps=steps, logging_steps=1, per_device_train_batch_size=micro, gradient_accumulation_steps=PAIRS // micro,
        learning_rate=1e-4, lr_scheduler_type="constant", gradient_checkpointing=False, max_length=256,
        dataloader_pin_memory=False,
    )  # fmt: skip
    watch = step_times()
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work["hf"], dtype=number_format(torch, work)),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora(),
        callbacks=[watch],
    )
    trainer.train()
    return [figure("dpo/step", watch.seconds, "s")]


# --- llama.cpp --------------------------------------------------------------------------------------------------------


class Llama:
    """A context of llama.cpp with several sequences, through its C interface."""

    def __init__(self, work, sequences, tokens):
        import llama_cpp as c

        self.c = c
        c.llama_backend_init()
        model = c.llama_model_default_params()
        self.model = c.llama_model_load_from_file(work["gguf"].encode(), model)
        context = c.llama_context_default_params()
        context.n_ctx = sequences * tokens
        context.n_batch = context.n_ubatch = max(1024, sequences)
        context.n_seq_max = sequences
        context.n_threads = context.n_threads_batch = work["threads"]
        context.type_k = context.type_v = c.GGML_TYPE_F32
        if hasattr(context, "kv_unified"):
            context.kv_unified = True
        self.context = c.llama_init_from_model(self.model, context)
        if not self.model or not self.context:
            raise SystemExit(f"llama.cpp cannot load {work['gguf']}")
        self.batch = c.llama_batch_init(context.n_batch, 0, 1)
        self.sampler = c.llama_sampler_init_dist(0)

    def pass_over(self, entries):
        """Runs one pass over tuples (token, position, sequence, whether its logits are needed)."""
        for row, (token, place, sequence, wanted) in enumerate(entries):
            self.batch.token[row], self.batch.pos[row] = token, place
            self.batch.n_seq_id[row], self.batch.seq_id[row][0] = 1, sequence
            self.batch.logits[row] = wanted
        self.batch.n_tokens = len(entries)
        if self.c.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama.cpp could not decode a batch")

    def draw(self, row):
        return self.c.llama_sampler_sample(self.sampler, self.context, row)

    def forget(self):
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def close(self):
        self.c.llama_batch_free(self.batch)
        self.c.llama_free(self.context)
        self.c.llama_model_free(self.model)


def prose_ids(work):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(os.path.join(work["hf"], "tokenizer.json")).encode(work["prose"]).ids


def llama_decode(work):
    ids, prompt, new, figures = prose_ids(work), work["prompt_tokens"], work["new_tokens"], []
    for batch in work["batches"]:
        llama = Llama(work, batch, prompt + new)
        prompts = pieces(ids, -(-batch // GROUP), prompt)

        def once():
            llama.forget()
            tokens = []
            for sequence in range(batch):
                piece = prompts[sequence // GROUP]
                llama.pass_over([(token, place, sequence, place == prompt - 1) for place, token in enumerate(piece)])
                tokens.append(llama.draw(-1))
            times = []
            for place in range(prompt, prompt + new - 1):
                start = time.perf_counter()
                llama.pass_over([(token, place, sequence, True) for sequence, token in enumerate(tokens)])
                tokens = [llama.draw(row) for row in range(batch)]
                times.append(time.perf_counter() - start)
            return batch / statistics.median(times[1:])

        figures.append(figure(f"decode/{batch}", repeat(once, work), "tokens/s"))
        llama.close()
    return figures


def llama_prefill(work):
    ids, tokens, figures = prose_ids(work), min(work["tokens"], 1024), []
    for length in (work["prompt_tokens"], tokens):
        count = max(tokens // length, 1)
        llama = Llama(work, count, length + 1)
        rows = pieces(ids, count, length)
        entries = [
            (token, place, number, place == length - 1) for number, row in enumerate(rows) for place, token in enumerate(row)
        ]

        def once():
            llama.forget()
            llama.pass_over(entries)
            llama.draw(-1)

        once()
        times = repeat(lambda: clock(once), work)
        figures.append(figure(f"prefill/{count}x{length}", [count * length / t for t in times], "tokens/s"))
        llama.close()
    return figures


PEERS = {
    "transformers": {"decode": decode, "prefill": prefill, "score": score, "train": train},
    "trl": {"grpo": grpo, "dpo": dpo, "startup": startup},
    "llama.cpp": {"decode": llama_decode, "prefill": llama_prefill},
}


def main():
    peer, part, work = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    # Only the report goes to the standard output, whatever the libraries print.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    figures = PEERS[peer][part](work)
    figures.append(figure(f"{part}/peak_memory", [peak_memory_mb()], "MB"))
    print(json.dumps({"figures": figures}), file=out)


if __name__ == "__main__":
    main()
