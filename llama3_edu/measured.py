"""What the benchmarks last measured, read back for the book: tables, plots, and above all what was aimed at and missed.

Every sentence with a figure in it is made from the files that the benchmarks wrote, so none can say what a later measurement
denies. The files lie in the repository and are no part of the installed package: where they are missing, what is shown says so.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from llama3_edu import plots

__all__ = ["Aim", "Case", "Results", "Shown", "RESULTS"]

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"

OURS, READABLE, LIMIT = "llama3_edu", "llama3_edu, the readable model", "limit"
SPELLED = {"openvino": "OpenVINO", "ctranslate2": "CTranslate2", LIMIT: "the limit"}
COLORS = {OURS: "accent", READABLE: "muted", "textbook loop": "muted", "transformers": "q", "openvino": "k", "ctranslate2": "v"}
MARKERS = {OURS: "o", READABLE: "x", "textbook loop": "^", "transformers": "s", "openvino": "D", "ctranslate2": "v"}


@dataclass(frozen=True)
class Shown:
    """Markdown that a notebook renders, and that reads as it is where nothing does."""

    text: str

    def _repr_markdown_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Case:
    """One figure and where it was measured: `at 128 tokens`, or nothing where there is one case alone."""

    where: str
    value: float


@dataclass(frozen=True)
class Aim:
    """What was aimed at, and what was measured.

    Args:
        what: is compared: it stands before `: at least 1.3 was the aim`.
        wanted: the least value that will do, or the largest.
        at_most: whether smaller is better.
        cases: all that were measured; none: it was not measured.
    """

    what: str
    wanted: float
    at_most: bool
    cases: Sequence[Case]

    @property
    def missed(self) -> list[Case]:
        return [case for case in self.cases if not self._reaches(case.value)]

    @property
    def reached(self) -> list[Case]:
        return [case for case in self.cases if self._reaches(case.value)]

    def sentence(self, cases: Sequence[Case]) -> str:
        """Return the aim and some of what was measured: `…: at least 1.30 was the aim, measured 1.21 at 128 tokens.`"""
        bound = f"at {'most' if self.at_most else 'least'} {self.wanted:.2f} was the aim"
        if not cases:
            return f"{self.what}: {bound}; not measured."
        return f"{self.what}: {bound}, measured {_listed(f'{self._digits(case.value)} {case.where}'.strip() for case in cases)}."

    def _reaches(self, value: float) -> bool:
        return value <= self.wanted if self.at_most else value >= self.wanted

    def _digits(self, value: float) -> str:
        """Two digits, or as many more as it takes to tell a value from the aim that it just misses."""
        digits = 2
        while digits < 6 and not self._reaches(value) and self._reaches(float(f"{value:.{digits}f}")):
            digits += 1
        return f"{value:.{digits}f}"


class Results:
    """The files of one folder.

    Args:
        folder: where the benchmarks wrote; the repository's own when left out.
    """

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder

    def get(self, name: str) -> Mapping[str, Any] | None:
        """Return what one benchmark wrote, or None where it has not."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def figures(self, name: str) -> list[Mapping[str, Any]]:
        """Return a benchmark's numbers, none where it was not run."""
        return list((self.get(name) or {}).get("figures", ()))

    # -- What was aimed at --

    def aims(self) -> list[Aim]:
        """Return every aim with what was measured for it."""
        return [*self._decode_aims(), *self._other_aims()]

    def where_we_lose(self) -> Shown:
        """Every aim that was missed, and every peer that was faster, in words and figures."""
        if not self.folder.is_dir():
            return _missing(self.folder)
        missed = [aim.sentence(aim.missed) for aim in self.aims() if aim.missed]
        unmeasured = [aim.what for aim in self.aims() if not aim.cases]
        lines = [f"{_counted(len(missed), 'aim was', 'aims were')} missed{':' if missed else '.'}", ""]
        lines += [f"- {sentence}" for sentence in missed]
        ahead = self._ahead()
        if ahead:
            lines += ["", "Ahead of us, whatever was aimed at:", "", *(f"- {sentence}" for sentence in ahead)]
        if unmeasured:
            lines += ["", "Not measured:", "", *(f"- {what}" for what in unmeasured)]
        return Shown("\n".join(lines))

    def what_was_reached(self) -> Shown:
        """Every aim that was reached, in words and figures."""
        if not self.folder.is_dir():
            return _missing(self.folder)
        sentences = [aim.sentence(aim.reached) for aim in self.aims() if aim.reached]
        return Shown("\n".join(f"- {sentence}" for sentence in sentences) or "No aim was reached.")

    def not_on_a_gpu(self) -> Shown:
        """Say whether anything was measured on a GPU, and show those tables."""
        if not self.folder.is_dir():
            return _missing(self.folder)
        names = sorted(path.stem for path in self.folder.glob("gpu_*.json"))
        if not names:
            return Shown("**No table on this page comes from a GPU.** Nothing here says how fast anything runs on one.")
        return Shown("\n\n".join(f"**{self.get(name)['title']}**\n\n{self.table(name).text}" for name in names))

    def _decode_aims(self) -> list[Aim]:
        small, large = "100 M parameters in float32", "Llama 3.2 1B's shape in bfloat16"
        aims = [
            Aim(
                f"Decoding, {small}, times as fast as transformers",
                1.3,
                False,
                self._against("decode_110m_float32", "transformers"),
            ),
            Aim(f"Decoding, {small}, share of the memory's bandwidth", 0.85, False, self._bandwidth("decode_110m_float32")),
        ]
        for peer in ("openvino", "ctranslate2"):
            what = f"Decoding, {small}, times as fast as {SPELLED[peer]} (0.95 is 5 % slower)"
            aims.append(Aim(what, 0.95, False, self._against("decode_110m_float32", peer)))
        return [
            *aims,
            Aim(
                f"Decoding, {large}, times as fast as transformers",
                1.35,
                False,
                self._against("decode_1b_bfloat16", "transformers"),
            ),
            Aim(f"Decoding, {large}, share of the memory's bandwidth", 0.80, False, self._bandwidth("decode_1b_bfloat16")),
        ]

    def _other_aims(self) -> list[Aim]:
        prefill = "Prefill of 1,024 tokens"
        paged, engine = (
            "A step with a paged cache over one with a contiguous cache, blocks",
            "The engine's tokens per second, times those of",
        )
        return [
            Aim(
                "Overhead per token of `generate` with the bundled model, in transformers over ours",
                6, False, self._one("overhead", "overhead_over_ours", "transformers"),
            ),
            Aim(f"{paged} in one run", 1.05, True, self._one("paged", "over_contiguous", "paged, blocks in one run")),
            Aim(f"{paged} shuffled", 1.10, True, self._one("paged", "over_contiguous", "paged, blocks shuffled")),
            Aim("The time of a whole text with a cache, as a power of its length", 1.15, True, self._scaling_slope()),
            Aim(f"{prefill}, times as fast as transformers", 1.0, False, self._one("prefill", "over_ours", "transformers", tokens=1024)),
            Aim("A step with keys and values in 8 bits over one in float", 1.10, True, self._one("quantised_decode", "over_float", "int8")),
            Aim(f"{engine} one request after the other", 3, False, self._one("engine_throughput", "over_engine", "one by one")),
            Aim(
                f"{engine} transformers' padded batches", 1.5, False,
                self._one("engine_throughput", "over_engine", "transformers, padded batches"),
            ),
        ]  # fmt: skip

    def _against(self, name: str, peer: str) -> list[Case]:
        return [Case(_at(row["context"]), row["over_ours"]) for row in self.figures(name) if row.get("contender") == peer]

    def _bandwidth(self, name: str) -> list[Case]:
        return [Case(_at(row["context"]), row["mbu"]) for row in self.figures(name) if row.get("contender") == OURS]

    def _one(self, name: str, figure: str, who: str, **which: object) -> list[Case]:
        """The figure of one contender, whatever its column is called."""
        return [Case("", row[figure]) for row in self.figures(name) if who in row.values() and which.items() <= row.items()]

    def _scaling_slope(self) -> list[Case]:
        return [Case("", row["cached_slope"]) for row in self.figures("scaling") if "cached_slope" in row]

    def _ahead(self) -> list[str]:
        """A sentence for each peer that was faster than we, with where and by how much."""
        sentences = []
        for name, what in (("decode_110m_float32", "100 M parameters"), ("decode_1b_bfloat16", "1B"), ("prefill", "prefill")):
            rows = [row for row in self.figures(name) if row.get("over_ours", 1) < 1 and row["contender"] not in (OURS, LIMIT)]
            for peer in dict.fromkeys(row["contender"] for row in rows):
                cases = _listed(
                    f"by {1 - row['over_ours']:.0%} {_at(row.get('context', row.get('tokens')))}"
                    for row in rows
                    if row["contender"] == peer
                )
                sentences.append(f"{SPELLED.get(peer, peer)} ({what}) takes less time: {cases}.")
        return sentences

    # -- Tables and plots --

    def machine(self, name: str) -> Shown:
        """Return which machine one table comes from, when, and with which versions."""
        found = self.get(name)
        if found is None:
            return self._none(name)
        versions = dict(found.get("versions", {}))
        when = versions.pop("measured on", "a day that was not noted")
        with_ = ", ".join([found["hardware"], *(f"{what} {version}" for what, version in versions.items())])
        return Shown(f"Measured on {when}: {with_}. `python -m benchmarks.{found.get('command', name)}`")

    def table(self, name: str) -> Shown:
        """Return a benchmark's own table, with its machine."""
        found = self.get(name)
        if found is None:
            return self._none(name)
        heads = [key.replace("_", " ") for key in found["rows"][0]]
        rows = [[_cell(value) for value in row.values()] for row in found["rows"]]
        return Shown(f"{_grid(heads, rows)}\n\n{self.machine(name).text}")

    def decode_table(self, name: str) -> Shown:
        """Return milliseconds per token, a row for each contender, a column for each context; below, our share of the limit."""
        rows = [row for row in self.figures(name) if "median" in row]
        if not rows:
            return self._none(name)
        contexts = sorted({row["context"] for row in rows})
        medians = {(row["contender"], row["context"]): row for row in rows}
        names = list(dict.fromkeys(row["contender"] for row in rows))
        lines = [[SPELLED.get(one, one), *(f"{medians[one, context]['median']:.2f}" for context in contexts)] for one in names]
        lines.append(["MBU of llama3_edu", *(f"{medians[OURS, context]['mbu']:.2f}" for context in contexts)])
        heads = ["ms per token at a context of", *(f"{context:,}" for context in contexts)]
        return Shown(f"{_grid(heads, lines)}\n\n{self.machine(name).text}")

    def decode_plot(self, name: str) -> plots.Picture | Shown:
        """Draw milliseconds per token over the context, and the limit that none can pass."""
        rows = [row for row in self.figures(name) if "median" in row]
        if not rows:
            return self._none(name)
        fig, (axes,) = plots.figure(height=4.0)
        for contender in dict.fromkeys(row["contender"] for row in rows):
            _draw_contender(axes, contender, [row for row in rows if row["contender"] == contender])
        axes.set(xlabel="tokens in the cache", ylabel="ms per token", ylim=(0, None))
        axes.set_xscale("log", base=2)
        _plain_ticks(axes, sorted({row["context"] for row in rows}))
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.18), ncols=2, fontsize=9)
        return plots.show(fig, alt=self._decode_words(rows))

    def _decode_words(self, rows: Sequence[Mapping[str, Any]]) -> str:
        longest = max(row["context"] for row in rows)
        shown = [
            f"{SPELLED.get(row['contender'], row['contender'])} {row['median']:.1f}" for row in rows if row["context"] == longest
        ]
        return f"Milliseconds per token over the tokens in the cache. At {longest:,} tokens: {', '.join(shown)}."

    def scaling_plot(self) -> plots.Picture | Shown:
        """Draw the time of a whole text over its length, with a cache and without, on logarithmic axes."""
        figures = self.figures("scaling")
        if not figures:
            return self._none("scaling")
        points, slopes = [row for row in figures if "tokens" in row], figures[-1]
        lengths = [row["tokens"] for row in points]
        fig, (axes,) = plots.figure()
        for kind, label, color, marker in (("naive", "without a cache", "q", "s"), ("cached", "with a cache", "accent", "o")):
            times = [row[f"{kind}_seconds"] for row in points]
            axes.plot(
                lengths, times, color=plots.COLORS[color], marker=marker, label=f"{label}: slope {slopes[f'{kind}_slope']:.2f}"
            )
        axes.set(xlabel="tokens of the text", ylabel="seconds in all", xscale="log", yscale="log")
        _plain_ticks(axes, lengths[:: max(1, len(lengths) // 6)])
        axes.legend()
        last = points[-1]
        alt = (
            f"Seconds for a whole text over its length, both logarithmic. For {last['tokens']:,} tokens {last['cached_seconds']:.1f} s "
            f"with a cache and {last['naive_seconds']:.0f} s without; the slopes from {slopes['straight_from']} tokens on are "
            f"{slopes['cached_slope']:.2f} and {slopes['naive_slope']:.2f}."
        )
        return plots.show(fig, alt=alt)

    def _none(self, name: str) -> Shown:
        return _missing(self.folder) if not self.folder.is_dir() else Shown(f"*Not measured yet: there is no `{name}.json`.*")


def _draw_contender(axes: Axes, contender: str, rows: Sequence[Mapping[str, Any]]) -> None:
    contexts, medians = [row["context"] for row in rows], [row["median"] for row in rows]
    if contender == LIMIT:
        axes.fill_between(contexts, medians, color=plots.COLORS["muted"], alpha=0.18, linewidth=0)
        axes.plot(
            contexts, medians, color=plots.COLORS["muted"], linestyle="--", linewidth=1.5, label="limit: every byte read once"
        )
        return
    style: dict[str, Any] = {
        "linestyle": ":" if contender in (READABLE, "textbook loop") else "-",
        "zorder": 4 if contender == OURS else 3,
    }
    color = plots.COLORS[COLORS.get(contender, "muted")]
    axes.plot(
        contexts, medians, color=color, marker=MARKERS.get(contender, "."), label=SPELLED.get(contender, contender), **style
    )
    axes.fill_between(contexts, [row["q1"] for row in rows], [row["q3"] for row in rows], color=color, alpha=0.15, linewidth=0)


def _plain_ticks(axes: Axes, at: Sequence[int]) -> None:
    axes.set_xticks(at, [f"{tick:,}" for tick in at])
    axes.minorticks_off()


def _missing(folder: Path) -> Shown:
    return Shown(
        "*The results are no part of the installed package. They are shown on this page of the book's site, and lie in "
        f"`benchmarks/{folder.name}` of its repository.*"
    )


def _at(tokens: int) -> str:
    return f"at {tokens:,} tokens"


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _counted(count: int, one: str, many: str) -> str:
    words = {0: "No", 1: "One", 2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}
    return f"{words.get(count, count)} {one if count in (0, 1) else many}"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line: Callable[[Sequence[str]], str] = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return "\n".join([line(heads), line(["---", *["---:"] * (len(heads) - 1)]), *map(line, rows)])
