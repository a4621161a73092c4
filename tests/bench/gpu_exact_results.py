"""What `gpu_exact.py` measured: a file of one JSON object a line, and tables of it.

The first line is the environment. A row has a ``key`` and its times in ms, or an ``error``;
``work`` and ``unit`` where a rate says something; ``peer``, the key of the row beside which it
stands, with what is wanted of their ratio: ``least_ratio`` times as fast as the peer,
``most_ratio`` of its time, or ``least_share`` of its rate.
"""

import json
import os

from environment import card_line

PARTS = ("products", "rows", "models", "tiles")
TITLES = {
    "products": "Square products",
    "rows": "Kernels that memory limits",
    "models": "Whole models",
    "tiles": "Other tiles",
}


class Kept:
    """The file while rows are added: each is on the disk before the next is measured.

    A row that failed before is measured again; the last of a key is the one that counts.
    """

    def __init__(self, path, about):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = read(path)
        self._done = {line["key"] for line in lines if "ms" in line}
        self._file = path.open("a", encoding="utf-8")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # the line that was being written is lost
        self._write({"about": about})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def has(self, key):
        return key in self._done

    def add(self, row):
        self._write(row)
        said = f"{row['ms']:.3f} ms" if "ms" in row else row["error"]
        print(f"{row['key']}: {said}", flush=True)

    def _write(self, line):
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read(path):
    """The lines of a file that is whole, or of which the end is missing."""
    lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return lines


def markdown(lines):
    """The tables as `docs/gpu.md` has them."""
    abouts = [line["about"] for line in lines if "about" in line]
    rows = {line["key"]: line for line in lines if "key" in line}
    text = [card_line(about) for about in abouts[-1:]]
    if any(about["rehearsed"] for about in abouts):
        text.append(
            "**A rehearsal: no card, tiny sizes, the wall clock. No figure means a thing.**"
        )
    for part in PARTS:
        of_part = [row for row in rows.values() if row["part"] == part]
        if of_part:
            text += ["", f"### {TITLES[part]}", ""]
            text += [
                "| | median ms | least – most | rate | beside | target |",
                "|---|---|---|---|---|---|",
            ]
            text += [line(row, rows) for row in of_part]
    return "\n".join(text)


def line(row, rows):
    """One row of a table."""
    if "error" in row:
        return f"| {row['key']} | {row['error'].splitlines()[0]} | | | | |"
    rate = f"{row['work'] / row['ms'] * 1e3:.1f} {row['unit']}" if "work" in row else ""
    beside, target = judged(row, rows.get(row.get("peer"), {}))
    spread = f"{row['least_ms']:.3f} – {row['most_ms']:.3f}"
    return f"| {row['key']} | {row['ms']:.3f} | {spread} | {rate} | {beside} | {target} |"


def judged(row, peer):
    """How a row stands beside its peer, and whether that is what was wanted."""
    if "ms" not in peer:
        return ("no " + row["peer"], "") if "peer" in row else ("", "")
    name = row["peer"]
    faster = peer["ms"] / row["ms"]
    if "most_ratio" in row:
        return f"{1 / faster:.2f} × {name}", verdict(1 / faster, row["most_ratio"], least=False)
    if "least_share" in row:
        share = faster * row["work"] / peer["work"]
        return f"{share:.2f} of {name}", verdict(share, row["least_share"])
    target = row.get("least_ratio")
    return f"{faster:.2f} × {name}", "" if target is None else verdict(faster, target)


def verdict(value, target, *, least=True):
    """The target, and whether it is met."""
    met = value >= target if least else value <= target
    return f"{'≥' if least else '≤'} {target:g} {'met' if met else 'MISSED'}"
