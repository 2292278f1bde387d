"""Faults that need root: mounts and network namespaces of the test's own."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "support"))
