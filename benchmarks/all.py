"""Runs every benchmark on speed that needs no GPU, one after the other, and says which are done.

    python -m benchmarks.all              # what is not measured yet with the code as it stands
    python -m benchmarks.all --again      # everything
    python -m benchmarks.all --only decode paged
    python -m benchmarks.all --quick      # a rehearsal: nothing is written

About twenty minutes on a quiet machine of two cores. One that is not quiet makes each script wait, and give up in the end; then run
it again: what was measured with the same code stays.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DONE = ROOT / ".venv-peers" / "measured.json"

RUNS: dict[str, list[str]] = {
    "decode": ["decode"],
    "decode_1b": ["decode", "--model", "1b"],
    "step_profile": ["step_profile"],
    "overhead": ["overhead"],
    "paged": ["paged"],
    "prefill": ["prefill"],
    "quantised_decode": ["quantised_decode"],
    "scaling": ["scaling"],
    "engine_throughput": ["engine_throughput"],
}
"""What is run under each name: a script and its options."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--again", action="store_true", help="measure what has been measured, too")
    options.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    options.add_argument("--quick", action="store_true", help="a rehearsal: tiny sizes, any load, and nothing is written")
    given = options.parse_args()
    code, done, failed = fingerprint(ROOT), measured(), []
    for name in given.only:
        if done.get(name) == code and not (given.again or given.quick):
            print(f"{name}: measured already", flush=True)
            continue
        start = time.perf_counter()
        status = run(RUNS[name], quick=given.quick)
        print(f"{name}: {'done' if status == 0 else f'exit status {status}'}, {time.perf_counter() - start:.0f} s\n", flush=True)
        if status:
            failed.append(name)
        elif not given.quick:
            done[name] = code
            DONE.write_text(json.dumps(done, indent=1) + "\n")
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}. Run this again for them alone")


def run(command: list[str], *, quick: bool) -> int:
    """Run a script in a process of its own, so that none inherits another's memory and threads; return its exit status."""
    options = ["--quick"] if quick else command[1:]
    return subprocess.run([sys.executable, "-m", f"benchmarks.{command[0]}", *options], cwd=ROOT).returncode


def measured() -> dict[str, str]:
    """Return the code that each run was last measured with."""
    return json.loads(DONE.read_text()) if DONE.exists() else {}


def fingerprint(root: Path) -> str:
    """Return what changes when the package or the benchmarks do."""
    sources = sorted([*(root / "llama3_edu").rglob("*.py"), *(root / "benchmarks").rglob("*.py")])
    summary = hashlib.sha256()
    for path in sources:
        summary.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return summary.hexdigest()[:16]


if __name__ == "__main__":
    main()
