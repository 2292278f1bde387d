#!/usr/bin/env python3
"""A flame graph of the whole machine under a load of cairn-bench, by perf: who calls whom, as wide as it takes time.

    tools/bench/flame.py NODES IN_FLIGHT [WORKLOAD [PICTURE]]      writes build/flame.svg; needs perf and the right to use it
"""

import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from html import escape

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "bench")]

from cluster import BIN, Cluster  # noqa: E402

WIDTH, ROW, SECONDS = 1200, 15, 4
NARROWEST = 0.002  # of the whole


def record(nodes: int, in_flight: str, workload: str, data: pathlib.Path) -> None:
    with Cluster(nodes, modules=("echo",)) as cluster:
        cluster.wait_balanced()
        load = subprocess.Popen([BIN / "cairn-bench", workload, "--in-flight", in_flight, "--seconds", str(SECONDS + 3),
                                 *cluster.endpoints], stdout=subprocess.DEVNULL)
        time.sleep(2)
        subprocess.run(["perf", "record", "-q", "-a", "-F", "299", "--call-graph", "dwarf,16384", "-o", data, "--", "sleep",
                        str(SECONDS)], check=True, stderr=subprocess.DEVNULL)
        load.wait()


def name_of(line: str) -> str:
    """Without addresses, offsets, template arguments and parameters; of an unknown function its library."""
    match = re.match(r"\s*[0-9a-f]+ (.*) \(([^()]*)\)$", line)
    name, library = match.groups() if match else (line.strip(), "?")
    name = re.sub(r"\+0x[0-9a-f]+$", "", name)
    if name == "[unknown]":
        return f"[{pathlib.Path(library).name}]"
    before = None
    while before != name:
        before, name = name, re.sub(r"<[^<>]*>|\([^()]*\)", "", name)
    return name.removesuffix(" const").split(" ")[-1] or "?"


def stacks(data: pathlib.Path):
    """Each sample: its thread's name, then functions from the outermost in."""
    script = subprocess.run(["perf", "script", "-i", data, "-F", "comm,ip,sym,dso"], capture_output=True, text=True).stdout
    for sample in script.split("\n\n"):
        lines = sample.strip("\n").split("\n")
        if len(lines) < 2:
            continue
        thread = lines[0].strip().split(":")[0]
        if thread != "swapper":
            yield [thread, *(name_of(line) for line in reversed(lines[1:]))]


def tree(samples) -> dict:
    root = {"count": 0, "below": {}}
    for stack in samples:
        root["count"] += 1
        at = root
        for name in stack:
            if at.get("name") == name:  # recursion, and a library's functions without names
                continue
            at = at["below"].setdefault(name, {"name": name, "count": 0, "below": {}})
            at["count"] += 1
    return root


def draw(at: dict, left: float, depth: int, scale: float, whole: int, out: list[str]) -> int:
    deepest = depth
    for child in sorted(at["below"].values(), key=lambda c: -c["count"]):
        width = child["count"] * scale
        if child["count"] >= whole * NARROWEST:
            hue = 10 + int(hashlib.sha256(child["name"].encode()).hexdigest()[:2], 16) % 40
            label = f"{child['name']}, {child['count'] / whole:.1%}"
            out.append(f'<g><title>{escape(label)}</title><rect x="{left:.1f}" y="{depth * ROW}" width="{width:.1f}" '
                       f'height="{ROW - 1}" fill="hsl({hue},80%,65%)"/>')
            if width > 40:
                out.append(f'<text x="{left + 2:.1f}" y="{depth * ROW + 11}">{escape(child["name"][:int(width / 6)])}</text>')
            out.append("</g>")
            deepest = max(deepest, draw(child, left, depth + 1, scale, whole, out))
        left += width
    return deepest


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    nodes, in_flight = int(sys.argv[1]), sys.argv[2]
    workload = sys.argv[3] if len(sys.argv) > 3 else "dispatch"
    picture = pathlib.Path(sys.argv[4]) if len(sys.argv) > 4 else ROOT / "build" / "flame.svg"
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "perf.data"
        record(nodes, in_flight, workload, data)
        root = tree(stacks(data))
    if root["count"] == 0:
        raise SystemExit("perf has no samples")
    out: list[str] = []
    deepest = draw(root, 0, 1, WIDTH / root["count"], root["count"], out)
    title = f"{workload}, {nodes} node(s), {in_flight} in flight: both cores, by thread"
    picture.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{(deepest + 2) * ROW}" font-family="sans-serif" '
        f'font-size="10"><rect width="100%" height="100%" fill="white"/><text x="4" y="11" font-size="12">{escape(title)}</text>'
        + "\n".join(out) + "</svg>\n")
    print(f"picture: {picture}")


if __name__ == "__main__":
    main()
