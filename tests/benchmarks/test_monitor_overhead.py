"""The benchmark of the monitor runs: each pair has one run with a monitor that really took samples."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.monitor_overhead import measure, watched  # noqa: E402
from llama3_edu import load_tiny  # noqa: E402


def test_a_row_says_what_was_measured_and_that_samples_were_taken() -> None:
    model, _ = load_tiny()
    row = measure("100 Hz", lambda: watched(model, 100), model, new_tokens=12, repeats=3)
    assert row["monitor"] == "100 Hz" and row["samples_per_run"] >= 2 and row["of_one_core"].endswith(" %")
    assert measure("none", lambda: None, model, new_tokens=2, repeats=2)["samples_per_run"] == 0
