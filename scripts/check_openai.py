#!/usr/bin/env python3
"""Check that the daemon answers the official `openai` package as OpenAI's servers would.

Starts `proxrl rollout serve` on a tiny random network at a free port, and requests everything that docs/serving.md
promises through the package's own client, whose types reject unknown fields.

    python3 scripts/check_openai.py [PROXRL]

PROXRL is the program, target/debug/proxrl by default. Without the package (pip install openai) the script prints a line
and checks nothing.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading

CONFIG = """
[model]
device = "cpu"
random = { family = "llama", hidden_size = 64, layers = 2, heads = 4, kv_heads = 2, intermediate_size = 128 }
[serve]
name = "tiny"
port = 0
max_waiting = 0
engine = { max_running = 8 }
"""


@contextlib.contextmanager
def daemon(program):
    """Yields the URL and the token of a daemon that stops with the block."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "serve.toml"), "w") as file:
            file.write(CONFIG)
        process = subprocess.Popen([os.path.abspath(program), "rollout", "serve", "--config", "serve.toml"],
                                   cwd=folder, stdout=subprocess.PIPE, text=True)
        try:
            url = process.stdout.readline().split()[-1]
            token = process.stdout.readline().split()[-1]
            yield url, token
        finally:
            process.terminate()
            if process.wait(timeout=60) != 0:
                sys.exit("the daemon did not end in order")


def check_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "proxrl"


def check_chat(client):
    ask = dict(model="tiny", messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
               max_completion_tokens=20, n=2, seed=3, temperature=0.9, top_p=0.95)
    whole = client.chat.completions.create(**ask)
    texts = [choice.message.content for choice in whole.choices]
    assert len(texts) == 2 and texts[0] != texts[1]
    assert [choice.message.content for choice in client.chat.completions.create(**ask).choices] == texts
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    streamed, usage = ["", ""], None
    for event in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        usage = event.usage or usage
        for choice in event.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts, (streamed, texts)
    assert usage == whole.usage


def check_logprobs(client):
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=5, seed=1, logprobs=True, top_logprobs=4,
        extra_body={"return_token_ids": True, "prompt_logprobs": 1, "top_k": 200, "min_p": 0.0})
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == len(answer.choices[0].token_ids) and all(len(token.top_logprobs) == 4 for token in tokens)
    assert len(answer.prompt_logprobs) == len(answer.prompt_token_ids) == answer.usage.prompt_tokens
    text = client.completions.create(model="tiny", prompt="1+1=", max_tokens=5, seed=1, logprobs=2)
    logprobs = text.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) <= 5
    assert all(isinstance(place, dict) for place in logprobs.top_logprobs)


def check_completions(client):
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=6, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in answer.choices} <= {"stop", "length"}
    stream = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=6, seed=1, stream=True)
    texts = [""] * 4
    for event in stream:
        for choice in event.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in answer.choices]
    by_ids = client.completions.create(model="tiny", prompt=[97], max_tokens=6, seed=1, temperature=0)
    by_text = client.completions.create(model="tiny", prompt="a", max_tokens=6, seed=2, temperature=0)
    assert by_ids.choices[0].text == by_text.choices[0].text


def check_errors(client, openai, url):
    def refused(kind, words, call):
        try:
            call()
        except kind as error:
            assert words in error.message, error.message
            return error
        raise AssertionError(f"{kind.__name__} was expected")

    hi = [{"role": "user", "content": "Hi"}]
    chat = client.chat.completions.create
    refused(openai.NotFoundError, "does not exist", lambda: chat(model="gpt", messages=hi))
    error = refused(openai.BadRequestError, "unsupported parameter `logit_bias`",
                    lambda: chat(model="tiny", messages=hi, logit_bias={"5": 1}))
    assert error.param == "logit_bias" and error.type == "invalid_request_error"
    error = refused(openai.BadRequestError, "at most", lambda: chat(model="tiny", messages=hi, max_tokens=10**6))
    assert error.code == "context_length_exceeded"
    stranger = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
    refused(openai.AuthenticationError, "no valid token", lambda: stranger.models.list())


def check_queue(client, openai):
    """Fills the daemon with eight streams; a ninth is refused, and admitted once one of them is closed."""
    def stream():
        return client.completions.create(model="tiny", prompt="a", max_tokens=4000, temperature=0, stream=True)

    streams = [stream() for _ in range(8)]
    try:
        client.completions.create(model="tiny", prompt="b", max_tokens=1)
        raise AssertionError("the queue has no end")
    except openai.RateLimitError as error:
        assert int(error.response.headers["retry-after"]) >= 1
    threading.Timer(0.3, streams[0].close).start()
    client.with_options(max_retries=5).completions.create(model="tiny", prompt="b", max_tokens=1)
    for other in streams:
        other.close()


def main(program="target/debug/proxrl"):
    try:
        import openai
    except ImportError:
        print("skipped: the package openai is not installed; pip install openai")
        return
    with daemon(program) as (url, token):
        client = openai.OpenAI(base_url=url, api_key=token, max_retries=0, timeout=60)
        for name, check in [
            ("models", lambda: check_models(client)),
            ("completions", lambda: check_completions(client)),
            ("chat", lambda: check_chat(client)),
            ("log-probabilities", lambda: check_logprobs(client)),
            ("errors", lambda: check_errors(client, openai, url)),
            ("queue", lambda: check_queue(client, openai)),
        ]:
            check()
            print(f"{name}: as the client expects")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
