"""The step that a CUDA graph holds: without a GPU it is run, not replayed, over the same buffers, and must equal the model."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIG, SHAPES, assert_same, random_model, random_tokens
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llama3_edu import PAD, BlockPool, ContiguousCache, KVCache, Llama, PagedCache, generate, right_pad
from llama3_edu.kernels import forward, graphs, pack
from llama3_edu.kernels.graphs import Steps
from llama3_edu.kernels.step import Operations, PlainOperations

MODELS = {shape: random_model(config) for shape, config in SHAPES.items()}
MODEL = MODELS["grouped"]
ROOM = 40
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class AsksTheHost(AssertionError):
    """Something happened in a step that no graph can hold."""


class NoQuestions(TorchFunctionMode):
    """Refuses what a capture refuses: numbers read by the host, shapes that depend on numbers, tensors made from lists."""

    REFUSED = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select", "tensor", "equal")

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        chosen = args[1] if name in ("__getitem__", "__setitem__") else None
        by_mask = isinstance(chosen, Tensor) and chosen.dtype == torch.bool
        from_host = name == "where" and not all(isinstance(arg, Tensor) for arg in args)
        if name in self.REFUSED or by_mask or from_host:
            raise AsksTheHost(f"{name} cannot be captured")
        return function(*args, **(kwargs or {}))


class Played:
    """Stands in for CUDA graphs: runs the step again where a graph is replayed, into the one tensor that a graph returns."""

    def __init__(self, *, strict: bool = False) -> None:
        self.captures, self.replays, self._strict = 0, 0, strict

    def __call__(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captures += 1
        out = self._run(step)

        def replay() -> Tensor:
            self.replays += 1
            return out.copy_(self._run(step))

        return replay

    def _run(self, step: Callable[[], Tensor]) -> Tensor:
        if not self._strict:
            return step()
        with NoQuestions():
            return step()


def contiguous(model: Llama, batch: int) -> ContiguousCache:
    return ContiguousCache(model.config, batch, max_seq_len=ROOM, dtype=model.dtype, device=model.device)


def paged(model: Llama, batch: int, *, block_size: int = 4) -> PagedCache:
    pool = BlockPool(model.config, num_blocks=batch * ROOM, block_size=block_size, dtype=model.dtype, device=model.device)
    return PagedCache(pool, [[] for _ in range(batch)])


def steps_of(model: Llama, capture: Played, operations: Operations = PlainOperations()) -> Steps:
    return Steps(pack(model), operations=operations, capture=capture)


every_cache = pytest.mark.parametrize("make", [contiguous, paged])


@every_cache
@pytest.mark.parametrize("shape", SHAPES)
def test_one_capture_serves_every_length(make: Callable[..., KVCache], shape: str) -> None:
    model, capture = MODELS[shape], Played()
    steps, cache, tokens = steps_of(model, capture), make(model, 2), random_tokens(2, 25)
    model.next_logits(tokens[:, :5], cache)
    for position in range(5, 25):
        found = steps.next_logits(tokens[:, position, None], cache, torch.full((2, 1), position))
        assert_same(found, model.next_logits(tokens[:, : position + 1]))
    assert (capture.captures, capture.replays) == (1, 20)


@every_cache
def test_rows_of_unequal_length_and_rows_that_rest(make: Callable[..., KVCache]) -> None:
    capture = Played()
    steps, cache, rows = steps_of(MODEL, capture), make(MODEL, 3), [random_tokens(n, seed=n).tolist() for n in (7, 1, 12)]
    MODEL.next_logits(*(right_pad(rows)[0], cache, right_pad(rows)[1]))
    for new in ((3, 4, 5), (None, 6, 7), (None, 8, None), (9, 10, 11)):
        positions = torch.tensor([[PAD if token is None else len(row)] for row, token in zip(rows, new)])
        found = steps.next_logits(torch.tensor([[token or 0] for token in new]), cache, positions)
        for row, token, logits in zip(rows, new, found):
            if token is not None:
                row.append(token)
                assert_same(logits[None], MODEL.next_logits(torch.tensor([row])))
    assert found.isfinite().all() and cache.seq_lens.tolist() == [len(row) for row in rows] and capture.captures == 1


def test_batches_of_a_pool_are_captured_by_powers_of_two() -> None:
    capture, pool = Played(), BlockPool(CONFIG, num_blocks=60, block_size=4, dtype=torch.float64)
    steps, tables, lens = steps_of(MODEL, capture), [[] for _ in range(5)], [0] * 5
    tokens = random_tokens(5, 12)
    for position in range(12):
        rows = range(5) if position < 6 else range(3)
        cache = PagedCache(pool, [tables[row] for row in rows], [lens[row] for row in rows])
        found = steps.next_logits(tokens[: len(rows), position, None], cache, torch.full((len(rows), 1), position))
        lens = cache.seq_lens.tolist() + lens[len(rows) :]
        assert_same(found, MODEL.next_logits(tokens[: len(rows), : position + 1]))
    assert capture.captures == 2  # 8 rows, then 4


@every_cache
def test_what_one_step_returned_stays_when_the_next_one_is_run(make: Callable[..., KVCache]) -> None:
    steps, cache = steps_of(MODEL, Played()), make(MODEL, 1)
    MODEL.next_logits(random_tokens(1, 4), cache)
    first = steps.next_logits(torch.tensor([[5]]), cache, torch.tensor([[4]]))
    kept = first.clone()
    steps.next_logits(torch.tensor([[6]]), cache, torch.tensor([[5]]))
    assert torch.equal(first, kept)


@every_cache
def test_rows_that_change_places_are_found_where_they_went(make: Callable[..., KVCache]) -> None:
    capture = Played()
    steps, cache, tokens = steps_of(MODEL, capture), make(MODEL, 2), random_tokens(2, 9)
    MODEL.next_logits(tokens[:, :7], cache)
    steps.next_logits(tokens[:, 7, None], cache, torch.full((2, 1), 7))
    cache.reorder(torch.tensor([1, 1]))
    found = steps.next_logits(tokens[:, 8, None], cache, torch.full((2, 1), 8))
    assert_same(found, MODEL.next_logits(torch.cat((tokens[[1, 1], :8], tokens[:, 8:]), dim=1)))
    assert capture.captures == (2 if make is contiguous else 1)  # a contiguous cache moves, a block table changes


@every_cache
def test_generation_is_the_same(make: Callable[..., KVCache], monkeypatch: pytest.MonkeyPatch) -> None:
    capture, prompt, model = Played(), random_tokens(2, 6), random_model(seed=8)
    monkeypatch.setattr(graphs, "applies", lambda weights, cache, positions: positions.shape[1] == 1)
    monkeypatch.setattr(forward.graphs, "Steps", lambda weights: Steps(weights, operations=PlainOperations(), capture=capture))
    found = generate(model, prompt, max_new_tokens=12, cache=make(model, 2))
    assert torch.equal(found, generate(model, prompt, max_new_tokens=12, fast=False)) and capture.replays == 11


def test_refused_tokens_and_positions_leave_the_cache_as_it_was() -> None:
    steps, cache = steps_of(MODEL, Played()), contiguous(MODEL, 1)
    for token, position, why in ((61, 0, "vocabulary|token ids"), (3, 2, "next position is 0")):
        with pytest.raises(ValueError, match=why):
            steps.next_logits(torch.tensor([[token]]), cache, torch.tensor([[position]]))
    assert cache.seq_lens.tolist() == [0]


def test_a_step_keeps_no_cache_alive() -> None:
    steps = steps_of(MODEL, Played())
    for _ in range(3):
        cache = contiguous(MODEL, 1)
        steps.next_logits(torch.tensor([[5]]), cache, torch.tensor([[0]]))
        del cache
    assert len(steps._known) == 0


def test_what_a_graph_serves() -> None:
    weights, one = pack(MODEL), torch.zeros(1, 1, dtype=torch.long)
    assert not graphs.applies(weights, contiguous(MODEL, 1), one), "there is no GPU in this tensor's life"
    assert graphs._can_hold(weights, contiguous(MODEL, 1)) and graphs._can_hold(weights, paged(MODEL, 1))
    watched = ContiguousCache(CONFIG, dtype=torch.float64, observer=[].append)
    rounded = PagedCache(BlockPool(CONFIG, num_blocks=9, bits=8, dtype=torch.float64), [[]])
    other_type = ContiguousCache(CONFIG, dtype=torch.float32)
    assert not any(graphs._can_hold(weights, cache) for cache in (watched, rounded, other_type))


# -- With the kernels -------------------------------------------------------------------------------------------------


@pytest.mark.triton
@every_cache
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("captured", [False, *([True] if torch.cuda.is_available() else [])])
def test_a_step_of_kernels_equals_the_model_and_asks_the_host_nothing(
    make: Callable[..., KVCache], batch: int, captured: bool
) -> None:
    model = random_model(SHAPES["explicit head_dim"], dtype=torch.float32, device=DEVICE)
    steps = Steps(pack(model), capture=graphs.cuda_graph if captured else Played(strict=True))
    cache, tokens = make(model, batch), random_tokens(batch, 9).to(DEVICE)
    model.next_logits(tokens[:, :3], cache)
    for position in range(3, 9):
        found = steps.next_logits(tokens[:, position, None], cache, torch.full((batch, 1), position, device=DEVICE))
        assert_same(found, model.next_logits(tokens[:, : position + 1]), tolerance=2e-5)


def test_the_plain_operations_would_be_refused_by_a_capture() -> None:
    steps, cache = steps_of(MODEL, Played(strict=True)), contiguous(MODEL, 1)
    with pytest.raises(AsksTheHost):
        steps.next_logits(torch.tensor([[5]]), cache, torch.tensor([[0]]))


@pytest.mark.triton
@given(
    batch=st.integers(1, 3), dim=st.integers(1, 40), out=st.integers(1, 19), rows=st.sampled_from([1, 4]),
    columns=st.sampled_from([8, 32]), own=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_kernels_do_what_plain_operations_do(
    batch: int, dim: int, out: int, rows: int, columns: int, own: bool, seed: int
) -> None:
    from llama3_edu.kernels import step_triton

    do, plain = step_triton.TritonOperations(reading=step_triton.Reading(rows=rows, columns=columns, own=own)), PlainOperations()
    generator = torch.Generator().manual_seed(seed)
    x, norm, stream = (torch.randn(*shape, generator=generator).to(DEVICE) for shape in ((batch, dim), (dim,), (batch, out)))
    weight, both = (torch.randn(n, dim, generator=generator).to(DEVICE) for n in (out, 2 * out))
    for found, expected in (
        (do.project(x, norm, weight, eps=1e-5), plain.project(x, norm, weight, eps=1e-5)),
        (do.project_gated(x, norm, both, eps=1e-5), plain.project_gated(x, norm, both, eps=1e-5)),
        (do.project_and_add(stream, x, weight), plain.project_and_add(stream, x, weight)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.triton
@given(
    n_heads=st.sampled_from([2, 4, 6]), n_kv_heads=st.integers(1, 2), head_dim=st.sampled_from([2, 12, 64]),
    slots=st.lists(st.integers(-1, 14), min_size=1, max_size=4, unique=True),
)  # fmt: skip
def test_rotation_and_storing_by_kernel(n_heads: int, n_kv_heads: int, head_dim: int, slots: list[int]) -> None:
    from llama3_edu.kernels import step_triton

    generator = torch.Generator().manual_seed(len(slots))
    heads = torch.randn(len(slots), n_heads + 2 * n_kv_heads, head_dim, generator=generator).to(DEVICE)
    cos, sin = torch.randn(2, len(slots), head_dim // 2, generator=generator).to(DEVICE)
    # A block stands before those that are written to: a row that rests has slot -1.
    held = torch.randn(2, 4, 5, n_kv_heads, head_dim, generator=generator).to(DEVICE)
    at = torch.tensor(slots, device=DEVICE)
    found, expected = held.clone(), held.clone()
    q = step_triton.TritonOperations().rotate_and_store(heads, cos, sin, at, *found[:, 1:])
    assert_same(q, PlainOperations().rotate_and_store(heads, cos, sin, at, *expected[:, 1:]), tolerance=1e-6)
    assert_same(found, expected, tolerance=1e-6)


@pytest.mark.triton
def test_half_precision_is_added_up_in_full() -> None:
    from llama3_edu.kernels.step_triton import TritonOperations

    x, weight = torch.ones(1, 1000, dtype=torch.float16), torch.ones(3, 1000, dtype=torch.float16)
    stream = torch.full((1, 3), 24.0, dtype=torch.float16)
    found = TritonOperations().project_and_add(*(t.to(DEVICE) for t in (stream, x, weight)))
    assert found.tolist() == [[1024.0] * 3]


@every_cache
def test_a_step_met_in_inference_mode_goes_on_outside_of_it(make: Callable[..., KVCache]) -> None:
    steps, cache = steps_of(MODEL, Played()), make(MODEL, 1)
    with torch.inference_mode():
        steps.next_logits(torch.tensor([[5]]), cache, torch.tensor([[0]]))
    found = steps.next_logits(torch.tensor([[6]]), cache, torch.tensor([[1]]))
    assert_same(found, MODEL.next_logits(torch.tensor([[5, 6]])))


def test_a_model_of_one_layer_is_no_exception() -> None:
    model = random_model(replace(CONFIG, n_layers=1))
    steps, cache = steps_of(model, Played()), paged(model, 1, block_size=1)
    assert_same(steps.next_logits(torch.tensor([[7]]), cache, torch.tensor([[0]])), model.next_logits(torch.tensor([[7]])))
