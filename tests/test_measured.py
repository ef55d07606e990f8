"""The page of results: what it says follows from the files, whichever way the figures turn out."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama3_edu.measured import Aim, Case, Results, Shown
from llama3_edu.plots import Picture


def write(folder: Path, name: str, figures: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    found = {
        "title": name, "hardware": "a machine", "command": name, "versions": {"transformers": "5.0", "measured on": "2026-11-22"},
        "rows": [{"what": "x", "ms_per_token": "1.00 (0.90 to 1.10)", "rejected": 1234, "ratio": 1.23456}], "figures": figures,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


def decode_rows(context: int, *, ours: float, limit: float, **peers: float) -> list[dict[str, Any]]:
    times = {"llama3_edu": ours, **peers, "limit": limit}
    return [
        {"context": context, "contender": name, "median": ms, "q1": ms, "q3": ms, "over_ours": ms / ours, "mbu": limit / ms}
        for name, ms in times.items()
    ]


def decode_results(folder: Path) -> Results:
    rows = decode_rows(128, ours=10.0, limit=9.0, transformers=20.0, openvino=9.0, ctranslate2=12.0)
    rows += decode_rows(2048, ours=16.0, limit=12.0, transformers=20.0, openvino=15.9, ctranslate2=16.0)
    write(folder, "decode_110m_float32", [*rows, {"context": 128, "contender": "bytes", "nbytes": 1}])
    return Results(folder)


def test_what_was_missed_is_said_with_where_and_by_how_much(tmp_path: Path) -> None:
    text = decode_results(tmp_path).where_we_lose().text
    assert text.startswith("Three aims were missed:")
    assert "times as fast as transformers: at least 1.30 was the aim, measured 1.25 at 2,048 tokens." in text
    assert "bandwidth: at least 0.85 was the aim, measured 0.75 at 2,048 tokens." in text
    assert "OpenVINO (0.95 is 5 % slower): at least 0.95 was the aim, measured 0.90 at 128 tokens." in text
    assert "OpenVINO (100 M parameters) takes less time: by 10% at 128 tokens and by 1% at 2,048 tokens." in text
    assert "CTranslate2 (100" not in text, "as fast as we are is not faster"
    assert text.index("missed") < text.index("Ahead of us") < text.index("Not measured")


def test_what_was_reached_is_the_rest(tmp_path: Path) -> None:
    text = decode_results(tmp_path).what_was_reached().text
    assert "times as fast as transformers: at least 1.30 was the aim, measured 2.00 at 128 tokens." in text
    assert (
        "CTranslate2 (0.95 is 5 % slower): at least 0.95 was the aim, measured 1.20 at 128 tokens and 1.00 at 2,048 tokens."
        in text
    )
    assert "not measured" not in text and "1.25" not in text


def test_every_aim_is_missed_reached_or_not_measured(tmp_path: Path) -> None:
    results = decode_results(tmp_path)
    lost, reached = results.where_we_lose().text, results.what_was_reached().text
    for aim in results.aims():
        said = [aim.sentence(aim.missed) in lost and bool(aim.missed), aim.sentence(aim.reached) in reached and bool(aim.reached)]
        assert any(said) != (f"- {aim.what}\n" in lost + "\n")
        assert any(said) == bool(aim.cases)


@pytest.mark.parametrize(("name", "figures", "aim", "met"), [
    ("paged", [{"cache": "paged, blocks shuffled", "over_contiguous": 1.11}], "blocks shuffled", False),
    ("paged", [{"cache": "paged, blocks in one run", "over_contiguous": 1.05}], "blocks in one run", True),
    ("overhead", [{"contender": "transformers", "overhead_over_ours": 5.9}], "bundled model", False),
    ("scaling", [{"tokens": 512, "cached_seconds": 1.0}, {"cached_slope": 1.2, "naive_slope": 2.0}], "as a power", False),
    ("prefill", [{"contender": "transformers", "tokens": 256, "over_ours": 0.5}], "1,024 tokens", None),
    ("prefill", [{"contender": "transformers", "tokens": 1024, "over_ours": 1.5}], "1,024 tokens", True),
    ("quantised_decode", [{"cache": "int4", "over_float": 9.0}, {"cache": "int8", "over_float": 1.0}], "8 bits", True),
    ("engine_throughput", [{"requests": "one by one", "over_engine": 2.0}], "one request after", False),
    ("engine_throughput", [{"requests": "transformers, padded batches", "over_engine": 2.0}], "padded", True),
])  # fmt: skip
def test_each_aim_reads_its_own_figure(
    tmp_path: Path, name: str, figures: list[dict[str, Any]], aim: str, met: bool | None
) -> None:
    write(tmp_path, name, figures)
    (found,) = [one for one in Results(tmp_path).aims() if aim in one.what]
    assert [met for _ in found.reached] + [met for _ in found.missed] == ([] if met is None else [met])
    assert bool(found.reached) == (met is True) and bool(found.missed) == (met is False)


def test_a_figure_that_just_misses_does_not_look_as_if_it_had_not() -> None:
    aim = Aim("A", 1.3, False, [Case("", 1.2996), Case("", 1.5)])
    assert aim.sentence(aim.missed) == "A: at least 1.30 was the aim, measured 1.2996."
    assert Aim("A", 1.1, True, ()).sentence(()) == "A: at most 1.10 was the aim; not measured."


def test_tables_and_plots_show_the_figures(tmp_path: Path) -> None:
    results = decode_results(tmp_path)
    lines = results.decode_table("decode_110m_float32").text.splitlines()
    assert lines[0] == "| ms per token at a context of | 128 | 2,048 |"
    assert "| OpenVINO | 9.00 | 15.90 |" in lines and "| MBU of llama3_edu | 0.90 | 0.75 |" in lines
    assert lines[-1] == "Measured on 2026-11-22: a machine, transformers 5.0. `python -m benchmarks.decode_110m_float32`"
    assert "| x | 1.00 (0.90 to 1.10) | 1,234 | 1.23 |" in results.table("decode_110m_float32").text
    picture = results.decode_plot("decode_110m_float32")
    assert isinstance(picture, Picture) and "At 2,048 tokens: llama3_edu 16.0, transformers 20.0" in picture.alt
    assert "limit: every byte read once" in picture.svg


def test_the_plot_of_whole_texts_names_both_slopes(tmp_path: Path) -> None:
    points = [{"tokens": n, "cached_seconds": n / 100, "naive_seconds": n**2 / 1e4} for n in (64, 512, 2048)]
    write(tmp_path, "scaling", [*points, {"cached_slope": 1.0, "naive_slope": 2.0, "straight_from": 512}])
    picture = Results(tmp_path).scaling_plot()
    assert (
        "without a cache: slope 2.00" in picture.svg and "For 2,048 tokens 20.5 s with a cache and 419 s without" in picture.alt
    )


def test_without_a_result_its_place_says_so(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for shown in (
        results.table("paged"),
        results.decode_table("x"),
        results.decode_plot("x"),
        results.scaling_plot(),
        results.machine("x"),
    ):
        assert isinstance(shown, Shown) and "Not measured yet" in shown.text
    assert results.where_we_lose().text.startswith("No aim was missed.") and "Not measured:" in results.where_we_lose().text


def test_where_only_the_package_is_installed_every_part_says_where_the_results_are(tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    parts = [
        results.where_we_lose(),
        results.what_was_reached(),
        results.table("paged"),
        results.decode_plot("x"),
        results.scaling_plot(),
        results.not_on_a_gpu(),
    ]
    assert all("benchmarks/results" in part.text and "site" in part.text for part in parts)


def test_the_page_says_that_no_gpu_was_measured_until_one_was(tmp_path: Path) -> None:
    results = decode_results(tmp_path)
    assert "No table on this page comes from a GPU" in results.not_on_a_gpu().text
    write(tmp_path, "gpu_decode", [])
    shown = results.not_on_a_gpu().text
    assert "No table" not in shown and "**gpu_decode**" in shown and "| x |" in shown
