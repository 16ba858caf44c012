"""All that only a GPU can show, in one call from the project's folder: `python -m tests.gpu`.

Runs the tests of the Triton kernels on the device, those marked gpu included, then `sab bench gpu`: kernels against
their oracles at real shapes, times, profiles of fits. The last line of stdout is one JSON object; exit code 1 where a
test fails or a kernel disagrees. `--toy` runs through without a GPU, in Triton's interpreter, at tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("tests/test_gpu_linear.py", "tests/test_walk.py")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="without a GPU, tiny")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each time that is taken")
    options = parser.parse_args(arguments)
    environment = dict(os.environ)
    chosen = ["-m", "not slow"]
    if options.toy:
        environment |= {"TRITON_INTERPRET": "1", "SAB_KERNEL": "triton"}
        chosen = ["-m", "gpu"]  # which skip, one by one
    # on the way to stderr, as stdout ends in one JSON object
    command = [sys.executable, "-m", "pytest", "-n", "0", *TESTS, *chosen]  # one at a time on one device
    tests = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr)
    command = [sys.executable, "-m", "sab", "bench", "gpu", "--seconds", str(options.seconds)]
    command += ["--toy"] if options.toy else []
    bench = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    lines = bench.stdout.strip().splitlines()
    found = json.loads(lines[-1]) if bench.returncode == 0 and lines else {}
    print(json.dumps({**found, "tests_passed": tests.returncode == 0, "agrees": bench.returncode == 0}))
    return int(tests.returncode != 0 or bench.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
