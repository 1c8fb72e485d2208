"""The page of scripts/bench.py: tables, and bar charts as SVG, drawn here so that nothing needs to be installed."""

import html
import re

COLOURS = {"proxrl": "#0072b2", "transformers": "#e69f00", "trl": "#d55e00", "llama.cpp": "#009e73", "limit": "#bbbbc2"}
INK, GRID = "#3c3c43", "#e2e2e7"

CHARTS = [
    ("decode", r"decode/\d+$", "Decoding, tokens per second by sequences side by side (more is better)"),
    ("reading", r"(prefill|score)/\d+x\d+$", "Prefill and scoring, tokens per second (more is better)"),
    ("train", r"train/(\d+x\d+|ragged)$", "Training, useful tokens per second by rows x length (more is better)"),
    ("steps", r"(grpo|dpo)/step$|startup/first_step$", "Seconds of a whole step, and until the first (less is better)"),
    ("memory", r".*/peak_memory$", "Peak memory, MB (less is better)"),
]

# Note on figures for which TRL's batch was split.
TRL_MICRO = """
`--trl-micro N` cuts TRL's batch into passes of N rows, as people do whose memory the whole batch does not fit in.
"""


def number(value):
    """Formats a number with three significant digits."""
    if value is None:
        return ""
    size = abs(value)
    for least, digits in ((100, 0), (10, 1), (1, 2), (0.1, 3)):
        if size >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.2e}" if 0 < size < 1e-3 else f"{value:.4f}"


def spread(one):
    if one is None:
        return ""
    middle = number(one["median"])
    return middle if len(one["values"]) < 2 else f"{middle} ({number(one['low'])}–{number(one['high'])})"


def between(values):
    """Formats minimum and maximum, as one number if they look alike."""
    ends = [number(value) for value in (min(values), max(values))] if values else ["?"]
    return "–".join(dict.fromkeys(ends))


def lines_of(entries):
    names = sorted({name for entry in entries for name in entry["peers"]})
    heads = ["figure", "unit", "proxrl", "of the limit"] + [word for name in names for word in (name, "ratio")]
    lines = []
    for entry in entries:
        share = entry["share_of_limit"]
        line = [entry["key"], entry["unit"], spread(entry["product"]), f"{share:.0%}" if share else ""]
        for name in names:
            other = entry["peers"].get(name)
            line += [spread(other), f"{other['ratio']:.2f}" if other and "ratio" in other else ""]
        lines.append(line)
    return heads, lines


def text_table(entries):
    heads, lines = lines_of(entries)
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
    row = lambda line: "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
    return "\n".join(row(line) for line in [heads, *lines])


def markdown_table(entries):
    heads, lines = lines_of(entries)
    return "\n".join(["| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines]])


def bar_chart(title, groups):
    """Draws horizontal bars: `groups` is a list of (label, [(series, value)])."""
    bar, gap, width = 16, 14, 640
    # Letters of this size are about eight wide; a label must not begin outside of the picture.
    left = 30 + 8 * max((len(label) for label, _ in groups), default=0)
    most = max((value for _, bars in groups for _, value in bars), default=0) or 1
    body, y = [], 54
    for label, bars in groups:
        middle = y + bar * len(bars) / 2 + 5
        body.append(f'<text x="{left - 10}" y="{middle:.0f}" text-anchor="end">{html.escape(label)}</text>')
        for name, value in bars:
            length = max(value / most * width, 1)
            body.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" fill="{COLOURS[name]}"/>')
            body.append(f'<text x="{left + length + 6:.1f}" y="{y + 12}" font-size="12">{number(value)}</text>')
            y += bar
        y += gap
    names = [name for name in COLOURS if any(name == series for _, bars in groups for series, _ in bars)]
    x, legend = left, []
    for name in names:
        legend.append(f'<rect x="{x}" y="32" width="12" height="12" fill="{COLOURS[name]}"/>')
        legend.append(f'<text x="{x + 17}" y="43" font-size="13">{name}</text>')
        x += 40 + 8 * len(name)
    total = left + width + 80
    axis = f'<line x1="{left}" y1="50" x2="{left}" y2="{y - gap}" stroke="{GRID}"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{y}" viewBox="0 0 {total} {y}"'
        f' font-family="DejaVu Sans, sans-serif" font-size="13" fill="{INK}">\n'
        f'<rect width="{total}" height="{y}" fill="white"/>\n'
        f'<text x="{left}" y="20" font-size="16">{html.escape(title)}</text>\n'
        + "\n".join([axis, *legend, *body])
        + "\n</svg>\n"
    )


def line_chart(title, x_label, y_label, series):
    """Draws lines on two logarithmic axes: `series` is a list of (name, [(x, y)])."""
    from math import ceil, floor, log10

    left, top, width, height = 80, 40, 640, 300
    points = [point for _, line in series for point in line]
    low_x, high_x = log10(min(x for x, _ in points)), log10(max(x for x, _ in points))
    least, most = min(y for _, y in points), max(y for _, y in points)
    ticks = [part * 10.0**power for power in range(floor(log10(least)), ceil(log10(most)) + 1) for part in (1, 2, 5)]
    first = max(place for place, tick in enumerate(ticks) if tick <= least)
    last = min(place for place, tick in enumerate(ticks) if tick >= most and place > first)
    ticks = ticks[first : last + 1]
    low_y, high_y = log10(ticks[0]), log10(ticks[-1])
    place = lambda x, y: (
        left + (log10(x) - low_x) / ((high_x - low_x) or 1) * width,
        top + height - (log10(y) - low_y) / (high_y - low_y) * height,
    )
    body = []
    for tick in ticks:
        _, y = place(10**low_x, tick)
        body.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="{GRID}"/>')
        body.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:,.10g}</text>')
    for x in sorted({x for x, _ in points}):
        at, _ = place(x, ticks[0])
        body.append(f'<text x="{at:.1f}" y="{top + height + 18}" text-anchor="middle">{x:,.0f}</text>')
    # Names stand behind the lines' ends, from the top down, and none on another.
    floor_y = top
    coloured = list(zip(series, ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"]))
    for (name, line), colour in sorted(coloured, key=lambda one: -one[0][1][-1][1]):
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(x, y) for x, y in line))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        a, b = place(*line[-1])
        floor_y = max(b + 4, floor_y)
        body.append(f'<text x="{a + 8:.1f}" y="{floor_y:.1f}" fill="{colour}">{html.escape(name)}</text>')
        floor_y += 16
    total, tall = left + width + 20 + 8 * max(len(name) for name, _ in series), top + height + 50
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{tall}" viewBox="0 0 {total} {tall}"'
        f' font-family="DejaVu Sans, sans-serif" font-size="12" fill="{INK}">\n'
        f'<rect width="{total}" height="{tall}" fill="white"/>\n'
        f'<text x="{left}" y="22" font-size="16">{html.escape(title)}</text>\n'
        f'<text x="{left + width / 2}" y="{tall - 8}" text-anchor="middle">{html.escape(x_label)}</text>\n'
        f'<text x="14" y="{top + height / 2}" text-anchor="middle" transform="rotate(-90 14 {top + height / 2})">'
        f"{html.escape(y_label)}</text>\n" + "\n".join(body) + "\n</svg>\n"
    )


def growth(entries):
    """Returns (file, title, x label, y label, series) of every measured growth curve."""
    at = lambda prefix, value: [
        (int(entry["key"].rsplit("/", 1)[1]), value(entry))
        for entry in entries
        if entry["key"].startswith(prefix) and entry["product"]
    ]
    per_token = lambda entry: 1e3 / entry["product"]["median"]
    pictures = [
        ("group", "A drawn token by the size of its group", "samples of a prompt", "ms per token",
         [("sampling, prompt included", at("growth/group/", lambda entry: 1e3 * entry["product"]["median"]))]),
        ("length", "A token by the length of its row", "tokens in a row", "ms per token",
         [("training", at("growth/train/", per_token)), ("scoring", at("growth/score/", per_token))]),
        ("store", "The store as it grows", "stored samples", "ms",
         [(name, at(f"growth/store/{key}/", lambda entry: entry["product"]["median"]))
          for name, key in (("append of a step of 512", "append"), ("draw of 512, uniform", "uniform"),
                            ("draw of 512, recent", "recent"), ("draw of 512, stratified", "stratified"))]),
    ]  # fmt: skip
    pictures = [(*picture[:-1], [line for line in picture[-1] if line[1]]) for picture in pictures]
    return [picture for picture in pictures if picture[-1]]


def write(kept, page):
    """Writes the page and its plots; returns the page's path."""
    sections = []
    for name, pattern, title in CHARTS:
        groups = []
        for entry in kept["figures"]:
            if not re.match(pattern, entry["key"]) or not entry["product"]:
                continue
            bars = [("proxrl", entry["product"]["median"])]
            bars += [(peer, other["median"]) for peer, other in entry["peers"].items()]
            bars += [("limit", entry["limit"])] if entry.get("limit") else []
            groups.append((entry["key"], bars))
        if groups:
            picture = page.with_name(f"{page.stem}-{name}.svg")
            picture.write_text(bar_chart(title, groups))
            sections.append(f"![{title}]({picture.name})")
    growing = []
    for name, title, x_label, y_label, series in growth(kept["figures"]):
        picture = page.with_name(f"{page.stem}-growth-{name}.svg")
        picture.write_text(line_chart(title, x_label, y_label, series))
        growing.append(f"![{title}]({picture.name})")
    commands = sorted({about["command"] for about in kept.get("parts", {}).values()})
    commits = sorted({about["commit"] for about in kept.get("parts", {}).values()})
    peers = ", ".join(f"{name} {version}" for name, version in kept.get("peers", {}).items())
    about = next((one for one in kept.get("parts", {}).values() if "machine" in one), {})
    machines = [one["machine"] for one in kept.get("parts", {}).values() if "machine" in one]
    limits = {key: between([machine[key] for machine in machines]) for key in ("gflop_per_s", "read_gb_per_s")}
    micro = "" if not any("--trl-micro" in command for command in commands) else TRL_MICRO
    others = [cores for one in kept.get("parts", {}).values() for cores in one.get("others", {}).values()]
    quiet = f" Meanwhile other processes kept at most {max(others):.2f} cores busy." if others else ""
    usual = [entry for entry in kept["figures"] if not entry["key"].startswith("growth/")]
    grown = [entry for entry in kept["figures"] if entry["key"].startswith("growth/")]
    text = f"""# How fast it is

Written by [scripts/bench.py](../../scripts/bench.py). {about.get("program", "proxrl")} at {", ".join(commits)} with
`{about.get("model", "")}` in {about.get("dtype", "f32")}, {about.get("threads", "?")} threads, on {kept["host"]}.{" Peers: " + peers + "." if peers else ""}
The machine's limits, which each part measures in its own process: {limits["gflop_per_s"]} GFLOP/s in large products of the
network's shapes, {limits["read_gb_per_s"]} GB/s of reading.{quiet}

```sh
{chr(10).join(commands)}
```

Every number is the median of its repetitions, with the least and the greatest behind it. *Of the limit* is the share that
is reached of what the machine could do at best: the larger of the products' operations at the rate above and the bytes at
the rate above ([roofline.rs](../../bench/src/roofline.rs) counts them). *Ratio* is how many times better proxrl is than the
peer in the column before it: above 1 it is ahead, in speed as in memory. All do the same work from the same weights:

- `decode/N`: N sequences side by side after prompts of 64 tokens, eight of them of one prompt; *transformers* is
  `generate` with a LoRA adapter by PEFT, *llama.cpp* has weights of the same format and no adapter.
- `prefill/NxM`, `score/NxM`, `train/NxM`: N prompts or rows of M tokens. Training is forward, backward and update of LoRA
  of rank 16 on all linear layers; `train/ragged` has 16 rows of 4 to 221 tokens, of which only those count.
- `grpo/step`: [configs/bench.toml](../../configs/bench.toml): 4 prompts x 8 samples of at most 64 tokens, some 34 on average;
  `grpo/token` is the same per drawn token. Below it its phases; `decode` and `prefill` are parts of `collect`, and `forward`
  computes the gradient of each log-probability with respect to the hidden states along with it.
- `dpo/step`: 32 pairs of answers of 64 tokens to prompts of 64, the reference's log-probabilities included.
- `startup/first_step`: from the command until the first sample is being drawn. `peak_memory` is that of the part's process.
{micro}
{chr(10).join(sections)}

{markdown_table(usual)}
"""
    if grown:
        text += f"""
## Growth

{chr(10).join(growing)}

{markdown_table(grown)}
"""
    page.write_text(text)
    return page
