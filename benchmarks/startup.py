"""How long a person waits for nothing: `petriscope --help` and `import petriscope`, beside a bare Python.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from common import print_machine, print_table

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import petriscope": [sys.executable, "-c", "import petriscope"],
    "petriscope --help": [sys.executable, "-m", "petriscope", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.rounds + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - start)
    print_machine()
    rows = [
        (name, f"{statistics.median(t[1:]):.3f} s", f"{min(t[1:]):.3f} to {max(t[1:]):.3f}")
        for name, t in times.items()
    ]
    print_table(("command", "median", "range"), rows)


if __name__ == "__main__":
    main()
