"""Draws what `flashmorph-dist evaluate --out` and `bench --out` wrote as SVG.

    docs/evaluate/draw.py PICTURE.svg NUMBERS.json [TITLE=NAME ...]      TITLE stands for the model of that name

Of measurements a panel a model, tasks down, lengths across; of paces the gain over the first model against the length.
"""

import html
import json
import math
import sys
from pathlib import Path

CELL, ROW, LEFT, TOP, GAP = 46, 18, 116, 40, 14
LINES = ("#888", "#174ea6", "#c5500b", "#1e7b34", "#7b1fa2")


def text(x, y, what, anchor="middle", fill="#222", size=11):
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}" font-size="{size}">{html.escape(what)}</text>'


def colour(score):
    """From near white to blue, by the share found."""
    return "#" + "".join(f"{round(a + (b - a) * score):02x}" for a, b in zip((238, 243, 250), (23, 78, 166), strict=True))


def task_panel(x, title, tasks, lengths, scores):
    yield text(x + CELL * len(lengths) / 2, 14, title, size=12)
    for c, length in enumerate(lengths):
        yield text(x + CELL * (c + 0.5), 32, str(length))
        for r, task in enumerate(tasks):
            score = scores.get((task, length))
            if score is None:
                continue
            left, top = x + CELL * c, TOP + ROW * r
            yield f'<rect x="{left}" y="{top}" width="{CELL - 2}" height="{ROW - 2}" fill="{colour(score)}"/>'
            yield text(left + CELL / 2 - 1, top + 12, f"{100 * score:.0f}", fill="#fff" if score > 0.5 else "#222")


def tasks_picture(models, title_of):
    scores = [{(t["task"], int(t["length"])): t["score"] for t in model["tasks"]} for model in models]
    tasks = list(dict.fromkeys(task for one in scores for task, _ in one))
    lengths = sorted({length for one in scores for _, length in one})
    width = CELL * len(lengths) + GAP
    parts = [text(LEFT - 8, TOP + ROW * r + 12, task, anchor="end") for r, task in enumerate(tasks)]
    for m, (model, one) in enumerate(zip(models, scores, strict=True)):
        parts += task_panel(LEFT + width * m, title_of(model["name"]), tasks, lengths, one)
    return parts, LEFT + width * len(models), TOP + ROW * len(tasks) + 6


def gain_panel(x, title, paces, what, title_of, width=250, height=190):
    """log2 of the length across, the gain up from 0."""
    names = list(dict.fromkeys(pace["name"] for pace in paces))
    by_name = {name: {int(p["length"]): p[what] for p in paces if p["name"] == name} for name in names}
    lengths = sorted(by_name[names[0]])
    gains = {n: {t: by_name[n][t] / by_name[names[0]][t] for t in lengths if t in by_name[n]} for n in names}
    most = math.ceil(max(gain for line in gains.values() for gain in line.values()))
    first, last = math.log2(lengths[0]), math.log2(lengths[-1])

    def place(length, gain):
        return x + width * (math.log2(length) - first) / max(last - first, 1), TOP + height * (1 - gain / most)

    yield text(x + width / 2, 14, title, size=12)
    for gain in range(most + 1):
        _, y = place(lengths[0], gain)
        yield f'<line x1="{x}" x2="{x + width}" y1="{y:g}" y2="{y:g}" stroke="#ddd"/>' + text(x - 6, y + 4, f"{gain}x", "end")
    for length in lengths:
        yield text(place(length, 0)[0], TOP + height + 16, f"{length // 1024}K")
    for n, (name, line) in enumerate(gains.items()):
        points = " ".join("{:g},{:g}".format(*place(length, gain)) for length, gain in line.items())
        yield f'<polyline points="{points}" fill="none" stroke="{LINES[n]}" stroke-width="2"/>'
        yield text(x + 6, TOP + 14 * (n + 1), title_of(name), "start", LINES[n])


def gains_picture(paces, title_of):
    parts = [*gain_panel(40, "prefill, tokens a second", paces, "prefill_tokens_per_second", title_of)]
    parts += gain_panel(350, "decode, tokens a second", paces, "decode_tokens_per_second", title_of)
    return parts, 620, TOP + 190 + 26


def main(picture, numbers, *titles):
    names = dict(reversed(title.split("=", 1)) for title in titles)
    read = json.loads(Path(numbers).read_text())
    draw = gains_picture if "paces" in read else tasks_picture
    parts, width, height = draw(read.get("paces") or read["measurements"], lambda name: names.get(name, Path(name).name))
    body = "\n".join(parts)
    Path(picture).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
