"""Exercises of chapter 0: the decoder."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong, by_value
from llama3_edu.checks.material import TOLERANCES, kinds
from llama3_edu.config import PRESETS, LlamaConfig
from llama3_edu.memory import parameter_count
from llama3_edu.model import Llama
from llama3_edu.rope import rope_angles
from llama3_edu.rope import rotate as turned_by

__all__ = ["EXERCISES"]

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def rms(x: Tensor, eps: float) -> Tensor:
    return (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def rms_norm_cases(generator: torch.Generator) -> Iterator[Case]:
    for x, weight, eps in (
        ([[1, 7]], [1, 1], 0.0),
        ([[1, 7]], [1, 10], 0.0),
        ([[1, 7]], [1, 10], 11.0),
        ([[1, 7], [2, 2]], [1, 10], 11.0),
    ):
        says = f"x = {x}, weight = {weight}, eps = {eps:g}"
        x, weight = torch.tensor(x, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64)
        yield Case(says, (x, weight, eps), weight * x / rms(x, eps), tolerance=1e-5)
    for shape in ((1, 1, 4), (2, 3, 4), (2, 5, 64)):
        for dtype, device in kinds(*FLOATS):
            # Large numbers: their squares are beyond what float16 can hold.
            x = (torch.randn(shape, generator=generator) + 2).mul(100).to(dtype).to(device)
            weight = (1 + torch.rand(shape[-1], generator=generator)).to(dtype).to(device)
            wide, wide_weight = x.cpu().double(), weight.cpu().double()
            wanted = (wide_weight * wide / rms(wide, 1e-5)).to(dtype).to(device)
            says = f"x of shape {list(shape)} in {dtype} on {device}, numbers in the hundreds"
            # Loose in float64 too: to compute in float32 throughout is what Meta's own code does.
            yield Case(says, (x, weight, 1e-5), wanted, tolerance=max(1e-5, TOLERANCES[dtype]))


def widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


RMS_NORM = Exercise(
    name="rms_norm",
    chapter=0,
    title="Bring vectors to a common size",
    stars=1,
    minutes=10,
    cases=rms_norm_cases,
    look="Square, mean over the last axis, add eps, root; divide x by that, then scale by the weight.",
    suspects=(
        Suspect(
            "float16 ends at 65,504, and some of the squares lie beyond it. Widen x to float32 before you square it.",
            lambda x, w, eps: w * x / rms(x, eps),
        ),
        Suspect(
            "That subtracts the mean, as LayerNorm does. RMSNorm leaves it in.",
            lambda x, w, eps: w * (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt(),
        ),
        Suspect(
            "That divides by the root of the sum. It is the root of the mean: divide the sum by the vector's length.",
            lambda x, w, eps: w * x / (x.square().sum(-1, keepdim=True) + eps).sqrt(),
        ),
        Suspect(
            "That divides by the mean square. Its root is missing.",
            lambda x, w, eps: w * x / (x.square().mean(-1, keepdim=True) + eps),
        ),
        Suspect("The learned weight is missing.", lambda x, w, eps: x / rms(x, eps)),
        Suspect(
            "That adds eps to the root. It belongs under the root, beside the mean square.",
            lambda x, w, eps: w * x / (rms(x, 0.0) + eps),
        ),
        Suspect(
            "That takes one mean over all tokens. Each token's vector has a mean of its own: dim=-1, keepdim=True.",
            lambda x, w, eps: w * x / (x.square().mean() + eps).sqrt(),
        ),
        Suspect(
            "To compute in float32 is right. What comes back should have the dtype of x again.",
            lambda x, w, eps: w * (widened(x) / rms(widened(x), eps)),
        ),
    ),
)


def turned(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    return turned_by(x, *rope_angles(frequencies, positions, x.dtype))


def rotate_cases(generator: torch.Generator) -> Iterator[Case]:
    quarter, half = math.pi / 2, math.pi
    for x, position, frequencies, in_words in (
        ([1, 2], 0, [quarter], "frequency π/2"),
        ([1, 2], 1, [quarter], "frequency π/2"),
        ([1, 2], 3, [quarter], "frequency π/2"),
        ([1, 2, 3, 4], 1, [quarter, half], "frequencies π/2 and π"),
    ):
        says = f"one head {x} at position {position}, {in_words}"
        given = torch.tensor(x, dtype=torch.float64).view(1, 1, 1, -1), torch.tensor([[position]]), torch.tensor(frequencies)
        yield Case(says, given, turned(*given).round() + 0.0, tolerance=1e-3)
    for shape in ((1, 3, 1, 4), (2, 4, 3, 8)):
        batch, new_len, _, head_dim = shape
        for dtype, device in kinds(*FLOATS):
            positions = (257 + torch.randint(500, (batch, new_len), generator=generator)).to(device)
            frequencies = (500_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)).to(device)
            x = torch.randn(shape, generator=generator).to(dtype).to(device)
            wanted = turned(x.cpu().double(), positions.cpu(), frequencies.cpu()).to(dtype).to(device)
            says = f"x of shape {list(shape)} in {dtype} on {device}, positions {positions[0].tolist()} in row 0"
            yield Case(says, (x, positions, frequencies), wanted, tolerance=max(1e-3, TOLERANCES[dtype]))


def turned_with(
    combine: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], *, narrow: bool = False
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a rotation that makes its two halves in another way."""

    def rotate(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        angles = positions[:, :, None, None] * frequencies
        angles = angles.to(x.dtype) if narrow else angles
        return torch.cat(combine(first, second, angles.cos().to(x.dtype), angles.sin().to(x.dtype)), dim=-1)

    return rotate


def turned_side_by_side(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    angles = positions[:, :, None, None] * frequencies
    even, odd, cos, sin = x[..., 0::2], x[..., 1::2], angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def columns(positions: Tensor) -> Tensor:
    return torch.arange(positions.shape[1], device=positions.device).expand(positions.shape)


ROTATE = Exercise(
    name="rotate",
    chapter=0,
    title="Turn pairs by their position",
    stars=2,
    minutes=20,
    cases=rotate_cases,
    look="The pair (a, b) becomes (a·cos − b·sin, b·cos + a·sin), with the angle position × frequency, taken in float32.",
    suspects=(
        Suspect(
            "That turns the other way. Swap the signs of the two terms with sin.",
            turned_with(lambda a, b, cos, sin: (a * cos + b * sin, b * cos - a * sin)),
        ),
        Suspect(
            "A turn keeps the length of a pair, and this does not: one of the two terms with sin is subtracted.",
            turned_with(lambda a, b, cos, sin: (a * cos + b * sin, b * cos + a * sin)),
        ),
        Suspect(
            "The halves come back in the wrong order.",
            turned_with(lambda a, b, cos, sin: (b * cos + a * sin, a * cos - b * sin)),
        ),
        Suspect(
            "That pairs neighbours. Here the partner of a number in the first half stands in the second half.",
            turned_side_by_side,
        ),
        Suspect(
            "The angle does not come from the column a token stands in. It comes from `positions`, which need not begin at 0.",
            lambda x, positions, frequencies: turned(x, columns(positions), frequencies),
        ),
        Suspect(
            "The angles were rounded to the dtype of x. Take angle, cosine and sine in float32 and round those two.",
            turned_with(lambda a, b, cos, sin: (a * cos - b * sin, b * cos + a * sin), narrow=True),
        ),
    ),
)


def swiglu_cases(generator: torch.Generator) -> Iterator[Case]:
    one = torch.ones(1, 1, dtype=torch.float64)
    for x, w1, w2, w3 in ((0, 1, 1, 1), (1, 1, 1, 1), (1, 2, 1, 3), (-2, 1, 1, 3), (1, 2, 5, 3)):
        says = f"one number x = {x}, w1 = {w1}, w2 = {w2}, w3 = {w3}"
        given = tuple(number * one for number in (x, w1, w2, w3))
        yield Case(says, given, swiglu(*given), tolerance=1e-9)
    for batch, new_len, dim, hidden_dim in ((1, 1, 2, 2), (1, 2, 2, 2), (1, 3, 4, 8), (2, 5, 16, 40)):
        for dtype, device in kinds(torch.float64, torch.float32, torch.bfloat16):
            shapes = (batch, new_len, dim), (hidden_dim, dim), (dim, hidden_dim), (hidden_dim, dim)
            given = tuple(torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes)
            wanted = swiglu(*(tensor.cpu().double() for tensor in given)).to(dtype).to(device)
            says = f"x of shape {list(shapes[0])} in {dtype} on {device}, hidden_dim = {hidden_dim}"
            yield Case(says, given, wanted, tolerance=TOLERANCES[dtype])


def swiglu(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    return (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T


SWIGLU = Exercise(
    name="swiglu",
    chapter=0,
    title="Let one projection gate another",
    stars=1,
    minutes=10,
    cases=swiglu_cases,
    look="Project x with w1 and with w3, put the first through SiLU, multiply the two, project the product with w2.",
    suspects=(
        Suspect(
            "SiLU sits on the wrong branch: w1 makes the gate, w3 what is gated.",
            lambda x, w1, w2, w3: swiglu(x, w3, w2, w1),
        ),
        Suspect(
            "That gates with a sigmoid alone. SiLU is z · sigmoid(z).",
            lambda x, w1, w2, w3: ((x @ w1.T).sigmoid() * (x @ w3.T)) @ w2.T,
        ),
        Suspect(
            "That gates with GELU. Llama uses SiLU: z · sigmoid(z).",
            lambda x, w1, w2, w3: (F.gelu(x @ w1.T) * (x @ w3.T)) @ w2.T,
        ),
        Suspect(
            "That puts the product through SiLU. Only the gate goes through it, before the product.",
            lambda x, w1, w2, w3: F.silu((x @ w1.T) * (x @ w3.T)) @ w2.T,
        ),
        Suspect(
            "That adds the two branches. A gate multiplies.",
            lambda x, w1, w2, w3: (F.silu(x @ w1.T) + x @ w3.T) @ w2.T,
        ),
        Suspect("w3 is missing: the gate has nothing to let through.", lambda x, w1, w2, w3: F.silu(x @ w1.T) @ w2.T),
        Suspect(
            "The matrices are stored [out, in], as nn.Linear stores them: multiply by the transpose.",
            lambda x, w1, w2, w3: (F.silu(x @ w1) * (x @ w3)) @ w2,
        ),
    ),
)


def count_cases(generator: torch.Generator) -> Iterator[Case]:
    small = LlamaConfig(dim=6, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=2, hidden_dim=5, vocab_size=7)
    shapes = [
        small,
        replace(small, n_kv_heads=2),
        replace(small, n_kv_heads=2, tie_embeddings=True),
        random_shape(generator),
        replace(random_shape(generator), tie_embeddings=True),
    ]
    for shape in shapes:
        yield Case(in_words(shape), (shape,), parameter_count(shape))
    for name, shape in PRESETS.items():
        yield Case(name, (shape,), parameter_count(shape))


def random_shape(generator: torch.Generator) -> LlamaConfig:
    dim, layers, n_kv_heads, n_rep, half, hidden_dim, vocab_size = (
        int(torch.randint(low, high, (1,), generator=generator))
        for low, high in ((5, 50), (2, 9), (1, 5), (2, 5), (1, 9), (3, 99), (7, 999))
    )
    return LlamaConfig(
        dim=dim, n_layers=layers, n_heads=n_kv_heads * n_rep, n_kv_heads=n_kv_heads, head_dim=2 * half,
        hidden_dim=hidden_dim, vocab_size=vocab_size,
    )  # fmt: skip


def in_words(config: LlamaConfig) -> str:
    names = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "tie_embeddings")
    return "the shape " + ", ".join(f"{name}={getattr(config, name)}" for name in names)


def judge_count(exercise: Exercise, solution: Solution, case: Case) -> None:
    """No model may be built: the largest of these would take the memory of the whole machine."""
    build = Llama.__init__

    def refuse(model: Llama, *args: object, **kwargs: object) -> None:
        raise Wrong("it built a model to count", hint="The last of these shapes has 405 billion parameters. Calculate.")

    Llama.__init__ = refuse
    try:
        by_value(exercise, solution, case)
    finally:
        Llama.__init__ = build


COUNT_PARAMETERS = Exercise(
    name="count_parameters",
    chapter=0,
    title="Count the parameters of a Llama",
    stars=2,
    minutes=15,
    cases=count_cases,
    look="In a cell of its own, build le.Llama(config) for that shape and list the shapes of its named_parameters().",
    judge=judge_count,
    suspects=(
        Suspect(
            "That gives keys and values as many heads as queries. They have n_kv_heads.",
            lambda c: parameter_count(replace(c, n_kv_heads=c.n_heads)),
        ),
        Suspect(
            "That takes n_heads × head_dim to be dim. It often is, but the configuration says both.",
            lambda c: parameter_count(c) - 2 * c.n_layers * c.dim * (c.n_heads * c.head_dim - c.dim),
        ),
        Suspect(
            "A tied model has one table: what comes in through it goes out through it. Count it once.",
            lambda c: parameter_count(replace(c, tie_embeddings=False)),
        ),
        Suspect(
            "An untied model has two tables, one for the embedding and one for the logits.",
            lambda c: parameter_count(replace(c, tie_embeddings=True)),
        ),
        Suspect("One norm is missing: the last, behind all the blocks.", lambda c: parameter_count(c) - c.dim),
        Suspect(
            "A block has two norms, and each has a weight per dimension.",
            lambda c: parameter_count(c) - c.n_layers * c.dim,
        ),
        Suspect(
            "The norms are missing. They are small, and the count is to be exact.",
            lambda c: parameter_count(c) - (2 * c.n_layers + 1) * c.dim,
        ),
        Suspect(
            "That is one block. There are n_layers of them.",
            lambda c: parameter_count(replace(c, n_layers=1)),
        ),
        Suspect(
            "The feed-forward has three matrices: gate, gated, and back.",
            lambda c: parameter_count(c) - c.n_layers * c.dim * c.hidden_dim,
        ),
        Suspect(
            "The output of attention has a matrix too: wo, as large as wq.",
            lambda c: parameter_count(c) - c.n_layers * c.dim * c.n_heads * c.head_dim,
        ),
    ),
)

EXERCISES: tuple[Exercise, ...] = (RMS_NORM, ROTATE, SWIGLU, COUNT_PARAMETERS)
