"""Exercises of chapter 1: naive generation."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llama3_edu.cache.growing import GrowingCache
from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong, by_value
from llama3_edu.checks.material import devices, random_llama
from llama3_edu.generate import generate
from llama3_edu.model import Llama

__all__ = ["EXERCISES"]


def random_tokens(generator: torch.Generator, batch: int, new_len: int, vocab_size: int = 13) -> Tensor:
    return torch.randint(vocab_size, (batch, new_len), generator=generator)


def count_projections_cases(generator: torch.Generator) -> Iterator[Case]:
    def case(says: str, make_run: Callable[[Llama], Callable[[], Any]], wanted: list[int]) -> Case:
        model = random_llama(generator, n_layers=len(wanted))
        return Case(
            f"a Llama of {len(wanted)} layer{'s' if wanted[1:] else ''} and run = {says}", (model, make_run(model)), wanted
        )

    def forward(batch: int, new_len: int) -> Callable[[Llama], Callable[[], Any]]:
        tokens = random_tokens(generator, batch, new_len)
        return lambda model: lambda: model(tokens)

    prompt = random_tokens(generator, 1, 2)
    yield case("model(…) on [1, 1] tokens", forward(1, 1), [1])
    yield case("model(…) on [2, 3] tokens", forward(2, 3), [6, 6])
    yield case(
        "le.generate(…), 2 tokens of prompt, 3 new ones, no cache",
        lambda model: lambda: generate(model, prompt, max_new_tokens=3),
        [9, 9],
    )
    yield case(
        "le.generate(…), 2 tokens of prompt, 3 new ones, with a cache",
        lambda model: lambda: generate(model, prompt, max_new_tokens=3, cache=GrowingCache(model.config, dtype=model.dtype)),
        [4, 4],
    )
    x = torch.randn(1, 5, 16, generator=generator, dtype=torch.float64)
    yield case("layer 1's wk alone, called on [1, 5, 16]", lambda model: lambda: model.layers[1].attention.wk(x), [0, 5, 0])


def judge_count(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Besides the count: `run` is called once, and the model is left as it was."""
    model, run = case.args
    runs = []

    def counted_run() -> Any:
        runs.append(1)
        return run()

    found = [block.attention.wk for block in model.layers]
    by_value(exercise, solution, Case(case.says, (model, counted_run), case.wanted))
    for layer, (block, wk) in enumerate(zip(model.layers, found)):
        if block.attention.wk is not wk or wk._forward_hooks or wk._forward_pre_hooks or "forward" in vars(wk):
            raise Wrong(
                f"the counts are right, but wk of layer {layer} is left changed and goes on counting",
                hint="Keep what register_forward_hook returns, and call its remove() when the run is over.",
            )


def hooked_count(size: Callable[[Tensor], int]) -> Callable[[Llama, Callable[[], Any]], list[int]]:
    """Return an answer that adds up something else about what goes into each `wk`."""

    def count(model: Llama, run: Callable[[], Any]) -> list[int]:
        counts = [0] * len(model.layers)

        def hook_of(layer: int) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
            def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
                counts[layer] += size(inputs[0])

            return hook

        hooks = [block.attention.wk.register_forward_hook(hook_of(layer)) for layer, block in enumerate(model.layers)]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
        return counts

    return count


def vectors(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def first_for_all(model: Llama, run: Callable[[], Any]) -> list[int]:
    counts = hooked_count(vectors)(model, run)
    return counts[:1] * len(counts)


def summed_for_all(model: Llama, run: Callable[[], Any]) -> list[int]:
    counts = hooked_count(vectors)(model, run)
    return [sum(counts)] * len(counts)


COUNT_PROJECTIONS = Exercise(
    name="count_projections",
    chapter=1,
    title="Count how many keys a run computes",
    stars=2,
    minutes=20,
    cases=count_projections_cases,
    look="Hang a hook on every block.attention.wk, let it add up how many vectors come in, call run() once.",
    judge=judge_count,
    suspects=(
        Suspect(
            "That counts calls. One call of wk projects the vectors of many tokens: look at the shape of what comes in.",
            hooked_count(lambda x: 1),
        ),
        Suspect(
            "Each row of a batch has tokens of its own: [batch new_len dim] holds batch × new_len vectors.",
            hooked_count(lambda x: x.shape[-2]),
        ),
        Suspect("That counts rows of the batch. Tokens are the axis behind it.", hooked_count(lambda x: x.shape[0])),
        Suspect("That counts numbers. A vector is dim of them.", hooked_count(lambda x: x.numel())),
        Suspect("That is layer 0's count for every layer. Each layer has a wk of its own to watch.", first_for_all),
        Suspect("That adds the layers up. Each layer has a count of its own.", summed_for_all),
        Suspect(
            "Every hook counts for the last layer: a function made in a loop finds the loop's last value. Give each its own.",
            lambda model, run: [0] * (len(model.layers) - 1) + [sum(hooked_count(vectors)(model, run))],
        ),
        Suspect("Nothing was counted. Has run() been called, and while the hooks hung?", lambda m, run: [0] * len(m.layers)),
    ),
)


def write_greedily_cases(generator: torch.Generator) -> Iterator[Case]:
    for batch, prompt_len, max_new_tokens in ((1, 2, 2), (2, 3, 2), (1, 1, 0), (1, 1, 1), (1, 4, 8), (3, 4, 12)):
        model, tokens = telling(generator, batch, prompt_len, max_new_tokens)
        wanted = generate(model, tokens, max_new_tokens=max_new_tokens)
        says = f"tokens {tokens.tolist()}, max_new_tokens = {max_new_tokens}"
        yield Case(says, (model, tokens, max_new_tokens), wanted)
    for device in devices()[1:]:
        model = random_llama(generator).to(torch.float32).to(device)
        tokens = random_tokens(generator, 1, 4).to(device)
        yield Case(f"a prompt of 4 tokens on {device}", (model, tokens, 3), generate(model, tokens, max_new_tokens=3))


def telling(generator: torch.Generator, batch: int, prompt_len: int, max_new_tokens: int) -> tuple[Llama, Tensor]:
    """Draw models and prompts until no two of the known wrong loops write the same, where they can differ."""
    while True:
        model, tokens = random_llama(generator), random_tokens(generator, batch, prompt_len)
        loops = [loop(), *(suspect.imitate for suspect in WRITE_GREEDILY.suspects)]
        if batch == 1:
            loops.remove(for_all_rows)
        written = {str(write(model, tokens, max_new_tokens).tolist()) for write in loops}
        if prompt_len == 1 or len(written) == len(loops):
            return model, tokens


def loop(
    choose: Callable[[Tensor], Tensor] = lambda logits: logits[:, -1].argmax(dim=-1, keepdim=True),
    feed: Callable[[Tensor, int], Tensor] = lambda tokens, prompt_len: tokens,
    give: Callable[[Tensor, int], Tensor] = lambda tokens, prompt_len: tokens,
    more: int = 0,
) -> Callable[[Llama, Tensor, int], Tensor]:
    """Return the greedy loop with one part of it exchanged."""

    def write(model: Llama, tokens: Tensor, max_new_tokens: int) -> Tensor:
        prompt_len = tokens.shape[1]
        for _ in range(max_new_tokens + more):
            next_token = choose(model(feed(tokens, prompt_len)))
            tokens = torch.cat((tokens, next_token), dim=1)
        return give(tokens, prompt_len)

    return write


def one_for_all_rows(logits: Tensor) -> Tensor:
    return logits[:1, -1].argmax(dim=-1, keepdim=True).expand(len(logits), 1)


for_all_rows = loop(one_for_all_rows)

WRITE_GREEDILY = Exercise(
    name="write_greedily",
    chapter=1,
    title="Write greedy decoding",
    stars=1,
    minutes=10,
    cases=write_greedily_cases,
    look="Run the model over all tokens, take the last row of logits, choose its largest, append, again.",
    suspects=(
        Suspect(
            "That chooses from the first row of logits. What follows the last token stands in the last row: logits[:, -1].",
            loop(lambda logits: logits[:, 0].argmax(dim=-1, keepdim=True)),
        ),
        Suspect(
            "That feeds the newest token alone. Nothing is kept here, so the model must be given every token, every time.",
            loop(feed=lambda tokens, prompt_len: tokens[:, -1:]),
        ),
        Suspect(
            "That runs the model over the prompt each time. What was written has to be fed as well.",
            loop(feed=lambda tokens, prompt_len: tokens[:, :prompt_len]),
        ),
        Suspect("The prompt is missing from what came back.", loop(give=lambda tokens, prompt_len: tokens[:, prompt_len:])),
        Suspect("That writes one token too many.", loop(more=1)),
        Suspect("That writes one token too few.", loop(more=-1)),
        Suspect("Every row of a batch chooses for itself: argmax(dim=-1).", for_all_rows),
        Suspect("That is the least likely token.", loop(lambda logits: logits[:, -1].argmin(dim=-1, keepdim=True))),
    ),
)


def naive_work_cases(generator: torch.Generator) -> Iterator[Case]:
    given = [(1, 2), (1, 1), (1, 3), (2, 1), (2, 2), (3, 4), (8, 56)]
    given += [tuple(torch.randint(1, 999, (2,), generator=generator).tolist()), (8192, 1_000_003)]
    for prompt_len, new_tokens in given:
        yield Case(
            f"prompt_len = {prompt_len}, new_tokens = {new_tokens}", (prompt_len, new_tokens), work(prompt_len, new_tokens)
        )


def work(p: int, n: int) -> tuple[int, int]:
    """Passes and pairs: the sum of m, and of m(m+1)/2, over m from p to p + n − 1."""
    return n * p + n * (n - 1) // 2, pyramid(p + n - 1) - pyramid(p - 1)


def pyramid(m: int) -> int:
    return m * (m + 1) * (m + 2) // 6


def squares(m: int) -> int:
    return m * (m + 1) * (2 * m + 1) // 6


NAIVE_WORK = Exercise(
    name="naive_work",
    chapter=1,
    title="Predict the work of the naive loop",
    stars=2,
    minutes=20,
    cases=naive_work_cases,
    look="Write down the length of the text in each step: the first runs over prompt_len tokens, the last over one less than it ends with.",
    suspects=(
        Suspect(
            "Both are one step late: the first step runs over the prompt alone, and the last new token is never run.",
            lambda p, n: work(p + 1, n),
        ),
        Suspect(
            "One step too many is counted: the token that the last step chooses is never run.",
            lambda p, n: work(p, n + 1),
        ),
        Suspect(
            "That is the work when nothing is repeated. The naive loop runs over every token in every step.",
            lambda p, n: (p + n - 1, work(1, p + n - 1)[0]),
        ),
        Suspect("That starts from a single token. Count from prompt_len.", lambda p, n: work(1, n)),
        Suspect(
            "The pairs are counted without the mask: of m × m, a query sees the keys up to its own, m(m + 1)/2 in all.",
            lambda p, n: (work(p, n)[0], squares(p + n - 1) - squares(p - 1)),
        ),
        Suspect(
            "The pairs leave out each token with itself. A query sees its own key too: m(m + 1)/2 in a step over m tokens.",
            lambda p, n: (work(p, n)[0], work(p, n)[1] - work(p, n)[0]),
        ),
        Suspect(
            "The pairs are those of the last step. Every step has its own.",
            lambda p, n: (work(p, n)[0], (p + n - 1) * (p + n) // 2),
        ),
        Suspect(
            "That is the run of the whole text at once. The naive loop has new_tokens steps.",
            lambda p, n: (p + n, (p + n) * (p + n + 1) // 2),
        ),
        Suspect("`/` makes a float, exact up to 2^53 and no further. `//` stays with whole numbers.", lambda p, n: halved(p, n)),
    ),
)


def halved(p: int, n: int) -> tuple[float, float]:
    passes, pairs = work(p, n)
    return passes / 1, pairs / 1


EXERCISES: tuple[Exercise, ...] = (WRITE_GREEDILY, COUNT_PROJECTIONS, NAIVE_WORK)
