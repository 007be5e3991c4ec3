"""Run the tests marked as slow: each file in a process of its own, two at a time, with a limit of time.

Ray ends a process that is connected to a node when it takes that node for dead, which may happen where all cores are busy. Such a
process says nothing, so a file whose process died, rather than failed, is run once more, and alone. If the tests of Ray die then
too, they are reported as not run to the end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIMIT = 900  # seconds for a file
ENDED = (0, 1, 5)  # statuses of pytest that ran to its end: passed, failed, nothing selected
SUMMARY = re.compile(r"\d+ (passed|failed|errors?|deselected)\b.* in ")  # the last line of such a run
DIED = -1  # in place of a status 1 that is Ray's


def run(path: Path) -> int:
    """Run the slow tests of a file, print what they said unless they passed, and return the status; 124: out of time."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-m", "slow", "-v", "--durations=3", str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=LIMIT)
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            said, status = process.communicate()[0], 124
    last = said.strip().rpartition("\n")[2]
    if status == 1 and not SUMMARY.search(last):
        status = DIED
    print(f"{path}: status {status} after {time.monotonic() - began:.0f} s: {last}", flush=True)
    if status not in (0, 5):
        print(said, flush=True)
    return status


def main() -> int:
    files = [
        path for path in sorted(Path("tests").rglob("test_*.py")) if "mark.slow" in path.read_text(encoding="utf-8")
    ]
    files.sort(key=lambda path: not path.stem.startswith("test_ray"))  # the longest first
    with ThreadPoolExecutor(2) as pool:
        statuses = dict(zip(files, pool.map(run, files), strict=True))
    for path, status in statuses.items():
        if status not in ENDED:
            print(f"{path}: its process ended with status {status}; once more", flush=True)
            statuses[path] = run(path)
    died = [path for path, status in statuses.items() if status not in ENDED and path.stem.startswith("test_ray")]
    failed = [path for path, status in statuses.items() if status and path not in died]
    for kind, paths in (("failed", failed), ("NOT RUN TO THE END", died)):
        print(f"{len(files)} files with slow tests; {kind}: {', '.join(map(str, paths)) or 'none'}")
    return 1 if failed or not files else 0


if __name__ == "__main__":
    sys.exit(main())
