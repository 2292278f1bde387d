"""cairn-bench from scripts."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from cluster import BIN  # noqa: E402


def cairn_bench(*arguments: object) -> dict:
    """What it says, as its --json has it; one that fails ends the script."""
    done = subprocess.run([BIN / "cairn-bench", *map(str, arguments), "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"cairn-bench {' '.join(map(str, arguments))}: {done.stderr.strip() or done.returncode}")
    return json.loads(done.stdout)
