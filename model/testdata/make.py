"""Writes the fixtures of the model crate: tiny random models, and what the reference libraries make of them.

    python model/testdata/make.py model/testdata [SmolLM2-135M-Instruct.Q4_1.gguf]

Made with Python 3.11, torch 2.13.0, transformers 5.23.0, tokenizers 0.23.3, gguf 0.19.0, safetensors 0.8.0.
Everything is seeded: a second run writes the same bytes.

| file | what it holds |
|---|---|
| `corpus.json` | texts in many scripts, with emoji, digits, blanks and marks |
| `MODEL/` | a Hugging Face folder: llama (Llama 3 rope scaling), llama2 (SentencePiece), qwen2, qwen3 |
| `MODEL.gguf` | the same model and tokenizer as GGUF |
| `MODEL/expected.safetensors` | `ids` [token], and the `logits` [token, vocab] that transformers computes for them |
| `MODEL/expected.json` | ids of each text of the corpus, plain and with special tokens; rendered conversations |
| `qwen3-sharded/` | qwen3's weights in two shards with an index |
| `blocks.gguf`, `blocks.safetensors` | one tensor per GGUF format, and the numbers it stands for |
| `peft/`, `rope/` | not written here: byte-level models of random numbers, adapters, and greedy answers of PEFT 0.21 and transformers 5.24 in f32 |
| `smollm2.json` | ids, conversations and logits of the real SmolLM2-135M-Instruct (only if its file is given) |
"""

import json
import random
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.tokenization_utils_base import generate_merges

CORPUS = [
    "",
    " ",
    "Hello, world!",
    "What is 7+15? Answer with a number.",
    "It's we're I'LL THEY'VE don't O'Neil's",
    "1234567890 12 345 6,789.01 ３４ ٣٤ ½ ² Ⅷ",
    "  two blanks,\ttab,\n\n\nthree lines\r\nwindows line \n indented",
    "trailing blanks   ",
    "\u00a0no-break \u3000ideographic \u2009thin",
    "Größe, naïve café, cafe\u0301, Å and A\u030a, ﬁ",
    "Привет, как дела? Ёлка и ёжик",
    "你好，世界！今天天气怎么样？",
    "こんにちは、元気ですか。カタカナ",
    "안녕하세요 세계",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "नमस्ते दुनिया कैसे हो",
    "สวัสดีชาวโลก",
    "😀 👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️ ☕",
    "x = {'a': [1, 2.5], \"b\": None}  # comment\n\tif x != y: return -1",
    "https://example.org/a_b?c=d&e=%20#f",
    "\\boxed{\\frac{1}{2}} $x^2 + y^2 = z^2$",
    "aaaaaaaaaaaaaaaa bbbbbbbb ---------- ==== ....",
    "\x00\x01\x7f\u200b\ufeff\ufffd",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 𒀀",
    "the end<|im_end|>\n<|im_start|>user again </s> <s>",
]

CONVERSATIONS = [
    [("user", "What is 2+2?")],
    [("system", "  Be brief. "), ("user", "Grüße 😀")],
    [("user", "1+1?"), ("assistant", "<think>\nadd\n</think>\n\n2"), ("user", "and 2+2?")],
]

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are tiny.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Headers, trimming, a default system turn taken off the list by slicing, and a tools branch that is not taken.
LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|im_start|>system\\n" }}
{%- if tools is not none %}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{{- system ~ "<|im_end|>" }}
{% for message in messages %}
    {# a comment on a line of its own #}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# A namespace, a reversed list, Python's string methods, a generation block: as in templates of thinking models.
THINKING = """{%- set ns = namespace(last=messages|length - 1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- if not ns.seen and message.role == "user" and message.content is string %}
        {%- set ns.seen = true %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- if '</think>' in content and loop.index0 < ns.last %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- generation %}
        {{- '<|im_start|>assistant\\n' + content.strip('\\n') + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- elif message.role.startswith('u') or message.role.upper() == 'SYSTEM' %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

# Alternating turns inside [INST], with an error where they do not alternate.
INSTRUCT = """{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system = '<<' + messages[0]['content'].strip() + '>>' %}{% else %}{% set turns = messages %}{% set system = '' %}{% endif %}
{% for message in turns %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate') }}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
    {%- else %}
{{ ' ' + message['content'].strip() + ' ' + eos_token }}
    {%- endif %}
{% endfor %}"""

# The published expressions of the two families' tokenizer.json files.
WORDS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
MARKS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TRAINING_TEXT = [text for text in CORPUS if "<|" not in text] * 3


def byte_level_tokenizer(pre):
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS[pre]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in MARKS])
    tokenizer.add_tokens([AddedToken("</think>", normalized=False)])
    if pre == "llama-bpe":
        begin = tokenizer.token_to_id("<|endoftext|>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", begin)]
        )
    return tokenizer


def sentence_piece_tokenizer():
    """A vocabulary with scores, and the tokenizer that the hub's converter derives from it."""
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    counting = Tokenizer(models.BPE())
    counting.pre_tokenizer = pre_tokenizers.Metaspace()
    counting.train_from_iterator(TRAINING_TEXT, trainers.BpeTrainer(vocab_size=330, show_progress=False))
    trained = sorted(counting.get_vocab().items(), key=lambda item: item[1])
    # SentencePiece puts merged pieces first, by rank, and single letters last.
    for piece in [p for p, _ in trained if len(p) > 1] + [p for p, _ in trained if len(p) == 1]:
        pieces.setdefault(piece, len(pieces))
    scores = {piece: 0.0 if place < 259 else float(259 - place) for piece, place in pieces.items()}
    merges = generate_merges(pieces, scores)
    tokenizer = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in ["<unk>", "<s>", "</s>"]])
    return tokenizer, scores


def save_tokenizer(folder, tokenizer, template, special):
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **special}
    # Both places that the hub has for a template.
    if folder.name == "qwen3":
        (folder / "chat_template.jinja").write_text(template)
    elif folder.name == "qwen2":
        settings["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    else:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def conversation(turns):
    return [{"role": role, "content": content} for role, content in turns]


def tokenizer_facts(tokenizer):
    return {
        "plain": [tokenizer(text, add_special_tokens=False).input_ids for text in CORPUS],
        "special": [tokenizer(text).input_ids for text in CORPUS],
        "decoded": [
            tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for text in CORPUS
        ],
        "conversations": [
            {
                "messages": conversation(turns),
                "closed": tokenizer.apply_chat_template(conversation(turns), tokenize=False),
                "open": tokenizer.apply_chat_template(conversation(turns), tokenize=False, add_generation_prompt=True),
                "ids": tokenizer.apply_chat_template(
                    conversation(turns), add_generation_prompt=True, return_dict=False
                ),
            }
            for turns in CONVERSATIONS
        ],
    }


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def randomise(model):
    """Weights large enough that a wrong layer shows in the logits."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.2 * noise)


def write_model(out, name, model, tokenizer, template, special, eos):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    randomise(model)
    model.eval()
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer, template, special)
    write_json(folder / "expected.json", tokenizer_facts(PreTrainedTokenizerFast.from_pretrained(folder)))
    generator = torch.Generator().manual_seed(11)
    # Longer than the original context of the rope scaling, so that every branch of it is taken.
    ids = torch.randint(model.config.vocab_size, (40,), generator=generator)
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    save_file({"ids": ids, "logits": logits.contiguous()}, folder / "expected.safetensors")


HUB_TO_GGML = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def ggml_name(hub):
    module, parameter = hub.rsplit(".", 1)
    if module.startswith("model.layers."):
        _, _, layer, module = module.split(".", 3)
        return f"blk.{layer}.{HUB_TO_GGML[module]}.{parameter}"
    return f"{HUB_TO_GGML[module]}.{parameter}"


def write_gguf(path, model, architecture, tokenizer, tokenizer_model, pre, template, marks, scores=None):
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if architecture == "llama":
        writer.add_rope_dimension_count(head_dim)

    tokens = [tokenizer.id_to_token(id) for id in range(tokenizer.get_vocab_size())]
    added = tokenizer.get_added_tokens_decoder()
    kinds = []
    for id, token in enumerate(tokens):
        if id in added:
            kinds.append(gguf.TokenType.CONTROL if added[id].special else gguf.TokenType.USER_DEFINED)
        elif token.startswith("<0x"):
            kinds.append(gguf.TokenType.BYTE)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model(tokenizer_model)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if scores is not None:
        writer.add_token_scores([scores[token] for token in tokens])
    else:
        writer.add_tokenizer_pre(pre)
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([" ".join(merge) for merge in merges])
    for key, mark in marks.items():
        getattr(writer, f"add_{key}_token_id")(tokenizer.token_to_id(mark))
    writer.add_chat_template(template)

    if config.rope_parameters.get("rope_type") == "llama3":
        inverse = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
        divisors = inverse / model.model.rotary_emb.inv_freq.float()
        writer.add_tensor("rope_freqs.weight", divisors.numpy().astype(np.float32))
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        heads = next((count for part, count in heads.items() if f".{part}." in name), None)
        if architecture == "llama" and heads:
            rows = array.shape[0]
            array = array.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(ggml_name(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_blocks(out):
    """One tensor per format, under the names of feed-forward matrices. The K formats, which Python cannot write, get
    random bytes with finite scales."""
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(out / "blocks.gguf", "llama")
    for name in ["context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"]:
        getattr(writer, f"add_{name}")(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((4, 2), np.float32))
    expected = {}
    kinds = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
    for layer, kind in enumerate(gguf.GGMLQuantizationType[name] for name in kinds):
        numbers = rng.normal(size=(3, 512)).astype(np.float32)
        if kind.name.endswith("_K"):
            per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            blocks = rng.integers(0, 256, (3, 512 // per_block, block_bytes), dtype=np.uint8)
            halves = rng.normal(size=(3, 512 // per_block, 2)).astype(np.float16).view(np.uint8)
            where = slice(208, 210) if kind.name == "Q6_K" else slice(0, 4)
            blocks[..., where] = halves[..., : where.stop - where.start]
            stored = blocks.reshape(3, -1)
        else:
            stored = gguf.quantize(numbers, kind)
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", stored, raw_dtype=kind)
        numbers = np.ascontiguousarray(gguf.dequantize(stored, kind), dtype=np.float32)
        expected[f"model.layers.{layer}.mlp.up_proj.weight"] = torch.from_numpy(numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, out / "blocks.safetensors", metadata={"formats": " ".join(kinds)})


def write_smollm2(out, file):
    file = Path(file)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers' import drops the digit splitting that the name `smollm` stands for.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    ])
    facts = tokenizer_facts(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ids = facts["conversations"][0]["ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    last = logits[-1]
    top = last.topk(10)
    facts["logits"] = {
        "ids": ids,
        "top_ids": top.indices.tolist(),
        "top": top.values.tolist(),
        "first_64_of_last": last[:64].tolist(),
        "logsumexp": logits.logsumexp(-1).tolist(),
        "mean": logits.mean(-1).tolist(),
    }
    write_json(out / "smollm2.json", facts)


def main():
    out = Path(sys.argv[1])
    torch.manual_seed(0)
    random.seed(0)
    write_json(out / "corpus.json", CORPUS)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 128, "attn_implementation": "eager"}
    chat = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}

    tokenizer = byte_level_tokenizer("llama-bpe")
    marks = {"eos": "<|im_end|>", "bos": "<|endoftext|>", "eot": "<|endoftext|>"}
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), rms_norm_eps=1e-5, tie_word_embeddings=False,
        bos_token_id=tokenizer.token_to_id("<|endoftext|>"), head_dim=16,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
        **sizes))
    write_model(out, "llama", model, tokenizer, LLAMA3, chat | {"bos_token": "<|endoftext|>"},
                [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")])
    write_gguf(out / "llama.gguf", model, "llama", tokenizer, "gpt2", "llama-bpe", LLAMA3, marks)

    tokenizer, scores = sentence_piece_tokenizer()
    model = LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.get_vocab_size(), rms_norm_eps=1e-6,
                                         tie_word_embeddings=False, **sizes))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_model(out, "llama2", model, tokenizer, INSTRUCT, special, 2)
    write_gguf(out / "llama2.gguf", model, "llama", tokenizer, "llama", None, INSTRUCT,
               {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, scores)

    tokenizer = byte_level_tokenizer("qwen2")
    marks = {"eos": "<|im_end|>", "pad": "<|endoftext|>"}
    eos = tokenizer.token_to_id("<|im_end|>")
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=tokenizer.get_vocab_size(), rms_norm_eps=1e-6,
                                         tie_word_embeddings=True, **sizes))
    write_model(out, "qwen2", model, tokenizer, CHATML, chat, eos)
    write_gguf(out / "qwen2.gguf", model, "qwen2", tokenizer, "gpt2", "qwen2", CHATML, marks)

    # Head size 16 although 32 / 4 = 8, as in the real family.
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=tokenizer.get_vocab_size(), rms_norm_eps=1e-6, head_dim=16,
                                         tie_word_embeddings=False, **sizes))
    write_model(out, "qwen3", model, tokenizer, THINKING, chat, eos)
    write_gguf(out / "qwen3.gguf", model, "qwen3", tokenizer, "gpt2", "qwen2", THINKING, marks)

    sharded = out / "qwen3-sharded"
    shutil.rmtree(sharded, ignore_errors=True)
    model.save_pretrained(sharded, max_shard_size="80KB")

    write_blocks(out)
    if len(sys.argv) > 2:
        write_smollm2(out, sys.argv[2])


if __name__ == "__main__":
    main()
