"""What every script on speed shares: its options, the numbers of threads, the way a table of timings looks."""

import argparse
import datetime
import os
import platform
import sys
from collections.abc import Callable, Sequence

import psutil
import torch

from benchmarks.report import Report
from benchmarks.timing import Quiet, Timing, TooBusy
from benchmarks.workers import PeerFailed

MS = 1e3
"""Milliseconds in a second."""

HOW = (
    "In turns: each round samples every contender once and begins with another one. A sample is kept where other processes took at "
    "most {others:.0%} of the machine while it ran, and taken again where not; `rejected` counts those. Median of {rounds} rounds "
    "(quartiles). A ratio is the median of the rounds' own ratios."
)


def options(description: str, *, rounds: int = 7, patience: float = 240.0) -> argparse.ArgumentParser:
    """Return a parser with what all scripts take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="samples to keep of each contender")
    parser.add_argument("--others", type=float, default=0.04, help="the largest share of the machine that others may take")
    parser.add_argument("--patience", type=float, default=patience, help="seconds until a measurement is given up, per table row")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--quick", action="store_true", help="a rehearsal: tiny sizes, any load, and nothing is written")
    return parser


def parsed(parser: argparse.ArgumentParser, quick: dict[str, object], arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options given, for a rehearsal with others as their defaults, and set the number of torch's threads."""
    if parser.parse_known_args(arguments)[0].quick:
        parser.set_defaults(rounds=2, others=1.0, **quick)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    return given


def quiet(given: argparse.Namespace) -> Quiet:
    """Return when a sample counts."""
    return Quiet(others=given.others, patience=given.patience, settle=0.0 if given.quick else 0.1)


def report(
    given: argparse.Namespace, *, name: str, script: str, title: str, notes: Sequence[str], versions: Sequence[str]
) -> Report:
    """Return an empty report that says how, with which versions and when.

    Args:
        versions: what the peers say of themselves: `transformers 5.23.0, torch 2.13.0`.
    """
    pairs = [text.rsplit(" ", 1) for line in versions for text in line.split(", ")]
    known = {what: version for what, version in pairs if what != "torch"}
    known |= {"Python": platform.python_version(), "measured on": datetime.date.today().isoformat()}
    how = HOW.format(others=given.others, rounds=given.rounds)
    return Report(name=name, script=script, title=title, notes=[*notes, how], versions=known)


def finish(made: Report, given: argparse.Namespace) -> None:
    """Print the table; write it, unless this is a rehearsal."""
    if given.quick:
        print(made.markdown())
    else:
        made.finish()


def run(main: Callable[[], None]) -> None:
    """Run a script; where the machine is too busy or a peer is missing, end it with one line that says so."""
    try:
        main()
    except (TooBusy, PeerFailed) as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {error}")


def spread(timing: Timing, scale: float = MS, digits: int = 2) -> str:
    """Return a median with its quartiles: `10.52 (10.48 to 10.61)`."""
    low, high = (value * scale for value in timing.quartiles)
    return f"{timing.median * scale:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
