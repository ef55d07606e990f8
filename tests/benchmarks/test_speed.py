"""The scripts on speed, rehearsed at tiny sizes: what they compute around the clock is checked, what the clock says is not."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import all as every, decode, models, ours, paged, scaling, speed  # noqa: E402
from benchmarks.peers.transformers_peer import TransformersPeer  # noqa: E402
from benchmarks.report import Report  # noqa: E402
from benchmarks.timing import Timing  # noqa: E402
from benchmarks.workers import PeerFailed, peer  # noqa: E402
from llama3_edu import ContiguousCache, generate  # noqa: E402

SCRIPTS = sorted({command[0] for command in every.RUNS.values()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where models of these tests are written; the number of torch's threads is put back, too."""
    threads, before = torch.get_num_threads(), models.DIRECTORY
    models.DIRECTORY = tmp_path_factory.mktemp("models")
    yield models.DIRECTORY
    models.DIRECTORY = before
    torch.set_num_threads(threads)


@pytest.fixture
def in_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers run in the environment of the tests, which has transformers for its own comparisons."""
    monkeypatch.setattr("benchmarks.workers.PEERS_PYTHON", Path(sys.executable))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_rehearsal_prints_its_table_and_writes_nothing(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Report, "finish", lambda self: pytest.fail("a rehearsal wrote results"))
    importlib.import_module(f"benchmarks.{name}").main(["--quick", "--threads", "1"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("|")][2:]
    assert len(rows) >= 2 and {row.count("|") for row in rows} == {rows[0].count("|")}
    takes_turns = name != "step_profile"  # one contender, taken to pieces
    assert takes_turns == any(line.startswith("- In turns: each round samples every contender once") for line in lines)


def test_beside_transformers_every_contender_chooses_the_same_tokens(
    folder: Path, in_this_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Report] = []
    monkeypatch.setattr(speed, "finish", lambda report, given: reports.append(report))
    decode.main(["--quick", "--threads", "1", "--peers", "transformers", "--contexts", "24", "--steps", "7"])
    figures = {row["contender"]: row for row in reports[0].figures}
    timed = {name: row for name, row in figures.items() if name not in ("limit", "bytes")}
    assert set(timed) == {decode.OURS, decode.REFERENCE, "textbook loop", "transformers"}
    assert {row["same_tokens"] for row in timed.values()} == {8}, "the step that is not timed, and seven that are"
    assert reports[0].versions["transformers"].startswith("5.") and timed["transformers"]["samples"] == 2
    assert figures["limit"]["mbu"] == 1 and all(row["over_ours"] > 0 for row in timed.values())


def test_a_peer_with_other_weights_is_no_peer(folder: Path, in_this_environment: None) -> None:
    model = models.random_model(models.SHAPES["rehearsal"], dtype=torch.float32)
    with peer("transformers", models.directory("rehearsal"), dtype="float32", threads=1) as worker:
        decode._check_same(model, [worker], [1, 2, 3], tolerance=1e-3)
        model.layers[1].feed_forward.w2.weight.data.mul_(1.1)
        with pytest.raises(PeerFailed, match="transformers computes something else: its logits are"):
            decode._check_same(model, [worker], [1, 2, 3], tolerance=1e-3)


def test_padded_batches_give_each_request_its_own_answer(folder: Path) -> None:
    model = models.load("rehearsal", torch.float32)
    prompts, wanted = [[3, 5, 7, 9], [11, 13], [2]], [3, 6, 1]
    found = TransformersPeer(models.directory("rehearsal"), dtype="float32", threads=1).generate(prompts, wanted)["tokens"]
    for prompt, count, answer in zip(prompts, wanted, found):
        assert generate(model, torch.tensor([prompt]), max_new_tokens=count)[0, len(prompt) :].tolist() == answer


def test_decoding_from_what_was_put_back_is_decoding(folder: Path) -> None:
    model, prompt = models.load("rehearsal", torch.float32), [5, 6, 7, 8, 9]
    expected = generate(model, torch.tensor([prompt]), max_new_tokens=5)[0, 5:].tolist()
    layers = ours.prepared(model, prompt)
    makers = paged.caches(model, 10, block_size=2)
    contenders = [
        ours.Ours(name, model, prompt, layers, 4, make, fast=fast) for name, make in makers.items() for fast in (True, False)
    ]
    for contender in [*contenders, ours.Textbook(model, prompt, layers, 4)]:
        for _ in range(2):
            contender.sample()
            assert contender.tokens == expected, contender.name


def test_blocks_lie_in_one_run_or_not(folder: Path) -> None:
    model = models.load("rehearsal", torch.float32)
    tables = {}
    for name, make in paged.caches(model, 64, block_size=4).items():
        cache = ours.put_back(make(), ours.prepared(model, list(range(60))))
        tables[name] = getattr(cache, "block_tables", None)
    assert tables[paged.IN_A_RUN] == [list(range(15))]
    (shuffled,) = tables[paged.SHUFFLED]
    assert len(set(shuffled)) == 15 and sum(b == a + 1 for a, b in zip(shuffled, shuffled[1:])) < 5


def test_the_limit_counts_every_weight_and_key_once(folder: Path) -> None:
    model = models.load("rehearsal", torch.float32)
    config = model.config
    weights = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)  # tied: the embeddings are the output
    kv = ContiguousCache(config, max_seq_len=33, dtype=torch.float32).nbytes
    assert {one.nbytes for one in ours.limits(model, context=33, steps=1)} == {weights * 4 + kv}


def test_every_layer_hands_on_numbers_of_a_usual_size(folder: Path) -> None:
    model = models.random_model(models.SHAPES["rehearsal"], dtype=torch.float32)
    logits = model(torch.arange(40)[None])
    assert 0.3 < logits.std() < 3 and len(logits.argmax(dim=-1).unique()) > 5


def test_the_time_without_a_cache_is_the_area_under_its_steps() -> None:
    assert scaling.summed_up([10, 20, 40], [1.0, 2.0, 4.0]) == [10, 10 + 15, 10 + 15 + 60]


def test_the_slope_is_that_of_a_power() -> None:
    lengths = [16, 512, 1024, 2048]
    assert scaling.slope(lengths, [1e9, *(n**1.25 for n in lengths[1:])]) == pytest.approx(1.25), "short texts do not count"


def test_a_spread_is_a_median_with_quartiles() -> None:
    assert speed.spread(Timing("a", [0.001, 0.002, 0.003, 0.004, 0.005])) == "3.00 (2.00 to 4.00)"


def test_a_report_says_when_and_with_what_it_was_made(folder: Path) -> None:
    given = decode._given(["--quick"])
    report = speed.report(
        given, name="a", script="b", title="T", notes=[], versions=["OpenVINO 1.2", "transformers 5.0, torch 2.0"]
    )
    assert list(report.versions) == ["OpenVINO", "transformers", "Python", "measured on"]
    report.add(what="x")
    assert "OpenVINO 1.2, transformers 5.0, Python" in report.markdown() and "python -m benchmarks.b" in report.markdown()


def test_what_is_measured_stays_until_the_code_changes(tmp_path: Path) -> None:
    for folder in ("llama3_edu", "benchmarks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "llama3_edu" / "a.py").write_text("1")
    first = every.fingerprint(tmp_path)
    (tmp_path / "benchmarks" / "results.json").write_text("1")
    assert every.fingerprint(tmp_path) == first
    (tmp_path / "llama3_edu" / "a.py").write_text("2")
    assert every.fingerprint(tmp_path) != first
