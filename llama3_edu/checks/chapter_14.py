"""Exercises of chapter 14: a small engine."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from llama3_edu.cache.blocks import BlockPool, OutOfBlocks, blocks_for, release_all
from llama3_edu.cache.paged import PagedCache
from llama3_edu.checks.chapter_13 import Watched, counted
from llama3_edu.checks.exercise import Case, Exercise, Solution, Wrong
from llama3_edu.checks.material import random_llama
from llama3_edu.engine import Engine, Sequence
from llama3_edu.generate import generate
from llama3_edu.model import Llama

__all__ = ["EXERCISES"]

FIRST = 40
"""New tokens are 40, 41, …, so that a message shows which one is meant; those of prompts are 1, 2, …"""

END = object()


# -- stream_tokens --


def stream_tokens_cases(generator: torch.Generator) -> Iterator[Case]:
    model = random_llama(generator, vocab_size=64)

    def case(says: str, prompt_lens: list[int], wanted: int, watched: int = 0, **more: Any) -> Case:
        return Case(says, (model, prompt_lens, wanted, watched), extra=more)

    yield case("a prompt of 2 tokens and 1 new one", [2], 1)
    yield case("a prompt of 2 tokens and 3 new ones", [2], 3)
    yield case("a request that has ended, with 2 new tokens", [2], 2, before=2)
    yield case("a request that has 2 of its 4 new tokens already", [2], 4, before=2)
    yield case("a prompt of 5 tokens, computed 2 per step, and 2 new ones", [5], 2, max_tokens_per_step=2)
    yield case("a request that is to stop at token 41", [2], 5, stop=41)
    yield case("a request that is cancelled after its second token", [2], 5, cancel_after=2)
    yield case("an engine that somebody else steps as well", [2], 6, steps_between=2)
    yield case("a request that waits for another one, one at a time", [3, 2], 3, 1, max_batch=1)
    yield case("a request that is preempted on the way", [3, 3], 6, 1, num_blocks=5)


def engine_of(case: Case) -> tuple[Engine, Sequence]:
    """Return the engine that a case describes, and the request to watch in it."""
    model, prompt_lens, wanted, watched = case.args
    options = {"num_blocks": 32, "block_size": 2, "prefix_caching": False}
    options |= {name: case.extra[name] for name in ("num_blocks", "max_batch", "max_tokens_per_step") if name in case.extra}
    engine = Engine(model, **options)
    stop_ids = (case.extra["stop"],) if "stop" in case.extra else ()
    sequences = [
        engine.add(range(1, 1 + length), max_new_tokens=wanted, choose=counting(), stop_ids=stop_ids) for length in prompt_lens
    ]
    for _ in range(case.extra.get("before", 0)):
        engine.step()
    return engine, sequences[watched]


def counting() -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a way of choosing that gives 40, 41, … whatever the logits."""
    numbers = iter(range(FIRST, 64))
    return lambda logits: torch.tensor([next(numbers)])


def judge_stream_tokens(exercise: Exercise, solution: Solution, case: Case) -> None:
    engine, sequence = engine_of(case)
    step, sent = engine.step, []
    is_watched = [True]

    def watched_step() -> None:
        if is_watched[0]:
            check_step(sequence, len(sent))
        step()

    engine.step = watched_step
    engine.stream = refuse_to_stream
    stream = solution(engine, sequence)
    if not hasattr(stream, "__next__"):
        told = f"{type(stream).__name__} came, wanted is a generator"
        raise Wrong(told, hint="Hand over each token with `yield`, and go on when the next one is asked for.")
    while (token := next(stream, END)) is not END:
        check_token(token, sequence, len(sent))
        sent.append(token)
        if case.extra.get("cancel_after") == len(sent):
            engine.cancel(sequence)
        is_watched[0] = False
        for _ in range(case.extra.get("steps_between", 0)):
            engine.step()
        is_watched[0] = True
    if len(sent) < sequence.num_new_tokens or not sequence.finished:
        told = f"it ended after {sent}, the request has {sequence.new_token_ids}"
        if not sequence.finished:
            raise Wrong(f"{told} and goes on", hint="A step may bring this request no token. Go on until it has finished.")
        if not sent and "before" in case.extra:
            raise Wrong(told, hint="It had new tokens before anybody streamed it: those are wanted, too.")
        raise Wrong(told, hint="The last token comes with the step that ends the request: look once more what is not sent yet.")


def check_step(sequence: Sequence, num_sent: int) -> None:
    if num_sent < sequence.num_new_tokens:
        told = f"the engine was stepped while token {sequence.new_token_ids[num_sent]} was there and not sent"
        raise Wrong(told, hint="A reader wants each token as soon as it is there: send first, step when nothing is left to send.")
    if sequence.finished:
        told = "the engine was stepped after the request had ended"
        raise Wrong(
            told, hint="It ends in more ways than one: by length, by a stop token, or cancelled. Ask `sequence.finished`."
        )


def check_token(token: Any, sequence: Sequence, num_sent: int) -> None:
    new = sequence.new_token_ids
    if num_sent < len(new) and type(token) is int and token == new[num_sent]:
        return
    wanted = new[num_sent] if num_sent < len(new) else "the end"
    hint = "Count what you have sent, and send what is behind it, in order."
    if type(token) is int and token < FIRST:
        hint = "That is a token of the prompt. New ones stand behind it, from sequence.prompt_len on."
    elif type(token) is int and token in new[:num_sent]:
        hint = "That one was sent before. Not every step brings this request a token."
    elif type(token) is int and token in new[num_sent + 1 :]:
        hint = "One was left out. More than one may be there: others step the engine too."
    raise Wrong(f"as token number {num_sent + 1}, {token} came, wanted is {wanted}", hint=hint)


def refuse_to_stream(sequence: Sequence) -> Iterator[int]:
    raise Wrong(
        "engine.stream was called", hint="That is what you are to write: from engine.step() and the sequence's own tokens."
    )


STREAM_TOKENS = Exercise(
    name="stream_tokens",
    chapter=14,
    title="Stream tokens",
    stars=2,
    minutes=15,
    cases=stream_tokens_cases,
    look="Is there a token that was not sent, yield it. If not, and the request goes on, step. Else the end.",
    judge=judge_stream_tokens,
)


# -- until_stop --


def until_stop_cases(generator: torch.Generator) -> Iterator[Case]:
    given = [(["a"], "x"), (["x"], "x"), (["ax"], "x"), (["a", "x", "b"], "x"), (["a.b"], "b"), (["ab"], "."), ([], "x")]
    given += [
        (["x", "y"], "xy"),
        (["a", "x"], "xy"),
        (["ax"], "xy"),
        (["x", "z"], "xy"),
        (["a", "", "b"], "xy"),
        (["axyb", "c"], "xy"),
    ]
    given += [(["x", "x", "y", "b"], "xy"), (["a", "a", "a", "b", "c"], "aab"), (["ab", "ab", "ac", "d"], "abac")]
    given += [(["I", " tell", " thee", ", tell", " thee", ". Go", " on"], "tell thee."), (["x", "y"] * 3, "z")]
    for length in (4, 8, 8, 16, 16, 24):
        letters = "".join("ab"[bit] for bit in torch.randint(2, (length,), generator=generator).tolist())
        cuts = torch.randint(1, 4, (length,), generator=generator).cumsum(dim=0).tolist()
        pieces = [letters[first:last] for first, last in zip([0, *cuts], cuts)]
        stop = "".join("ab"[bit] for bit in torch.randint(2, (length // 8 + 2,), generator=generator).tolist())
        given.append(([piece for piece in pieces if piece], stop))
    for pieces, stop in given:
        yield Case(f"pieces = {pieces}, stop = {stop!r}", (pieces, stop))


def may_be_sent(text: str, stop: str) -> str:
    """What can be sent of a text that goes on."""
    if stop in text:
        return text[: text.find(stop)]
    longest = max(length for length in range(len(stop)) if text.endswith(stop[:length]))
    return text[: len(text) - longest]


def judge_until_stop(exercise: Exercise, solution: Solution, case: Case) -> None:
    pieces, stop = case.args
    taken, sent, ended = [], [], []

    def feed() -> Iterator[str]:
        for piece in pieces:
            taken.append(piece)
            yield piece
        ended.append(True)

    stream = solution(feed(), stop)
    if isinstance(stream, str) or not hasattr(stream, "__iter__"):
        raise Wrong(f"{stream!r} came, wanted is a generator of pieces", hint="Send text with `yield` while more is coming.")
    for piece in stream:
        if not isinstance(piece, str):
            raise Wrong(f"{piece!r} was sent, wanted is text", hint="Yield strings.")
        sent.append((len(taken) + len(ended), piece))
    check_sent("".join(piece for _, piece in sent), pieces, stop)
    for count in range(1, len(pieces) + 1):
        check_moment("".join(piece for when, piece in sent if when <= count), pieces[:count], stop)
    needed = next((count for count in range(1, len(pieces) + 1) if stop in "".join(pieces[:count])), len(pieces))
    if len(taken) > needed:
        told = f"{counted(len(taken), 'piece')} taken, the stop string was complete after {needed}"
        raise Wrong(told, hint="Return when it is complete: each further piece is a step of the model, for nobody.")


def check_sent(sent: str, pieces: list[str], stop: str) -> None:
    """Raise unless the right text went out in the end."""
    text = "".join(pieces)
    wanted = may_be_sent(text, stop) if stop in text else text
    if sent == wanted:
        return
    if stop in sent:
        whole = any(stop in piece for piece in pieces)
        hint = (
            "Look for the stop string before you send."
            if whole
            else "It may begin in one piece and end in a later one, or begin again inside a false alarm."
        )
    elif stop in text and sent.startswith(wanted) and not stop.startswith(sent[len(wanted) :]):
        hint = "The text ends where the stop string begins: nothing of what follows is sent."
    elif stop in text and sent.startswith(wanted):
        hint = "The beginning of the stop string went out. What may be its beginning has to wait; nothing sent comes back."
    elif wanted.startswith(sent) and stop in text:
        hint = "What stands before the stop string belongs to the text."
    elif wanted.startswith(sent) and not stop.startswith(wanted[len(sent) :]):
        hint = "The stop string is not in this text. Look for its very letters: `.` is a letter here and no pattern."
    elif wanted.startswith(sent):
        hint = "Nothing follows, so what was held back is text after all: send it."
    else:
        hint = "After a false alarm the letters that waited are text, and the stop string may still begin among them."
    raise Wrong(f"{sent!r} was sent, wanted is {wanted!r}", hint=hint)


def check_moment(sent: str, pieces: list[str], stop: str) -> None:
    """Raise unless what was sent so far is all that can be sent so far."""
    wanted = may_be_sent("".join(pieces), stop)
    if len(sent) > len(wanted):
        hint = "It may be the beginning of the stop string, and nothing sent comes back. Wait for the next piece."
        raise Wrong(f"after {pieces}, {sent!r} was sent, wanted is {wanted!r}", hint=hint)
    if len(sent) < len(wanted):
        hint = "Only what may be the beginning of the stop string has to wait; a reader wants the rest now."
        raise Wrong(f"after {pieces}, {sent!r} was sent, wanted is {wanted!r}", hint=hint)


UNTIL_STOP = Exercise(
    name="until_stop",
    chapter=14,
    title="Add a stop string",
    stars=3,
    minutes=30,
    cases=until_stop_cases,
    look="Keep what may be the beginning of the stop string, put the next piece behind it, and look again.",
    judge=judge_until_stop,
)


# -- make_room --


def make_room_cases(generator: torch.Generator) -> Iterator[Case]:
    def case(running: list[tuple[int, int]], free: int, *, common: int = 0, num_waiting: int = 0, size: int = 2) -> Case:
        rows = ", ".join(f"{held} of {total}" for held, total in running)
        says = f"block_size = {size}, {counted(free, 'block')} free, running requests that hold {rows or 'no'} tokens"
        says += f", {counted(common, 'block')} in all tables" if common else ""
        return Case(says + (f", {num_waiting} waiting" if num_waiting else ""), (running, free, common, num_waiting, size))

    yield case([(2, 3)], 1)
    yield case([(1, 2)], 0)
    yield case([], 0, num_waiting=1)
    yield case([(2, 3), (2, 3)], 2)
    yield case([(2, 3), (2, 3)], 1)
    yield case([(2, 3), (2, 3)], 1, num_waiting=1)
    yield case([(3, 4), (2, 3), (1, 2)], 0)
    yield case([(0, 5), (2, 3)], 3)
    yield case([(4, 5), (3, 4)], 1, size=4)
    yield case([(3, 4), (3, 4)], 1, size=3)
    yield case([(2, 3), (4, 5), (2, 3)], 0)
    yield case([(2, 3), (4, 5), (2, 3)], 0, num_waiting=2)
    yield case([(4, 5), (4, 5), (4, 5)], 0, common=1)
    model = random_llama(generator)
    prompts = [torch.randint(13, (length,), generator=generator).tolist() for length in (3, 5, 2, 4)]
    yield Case("a whole run of 4 requests over 6 blocks", (model, prompts, 6), extra="run")


def judge_make_room(exercise: Exercise, solution: Solution, case: Case) -> None:
    if case.extra == "run":
        return judge_run(solution, *case.args)
    spec, free, common, num_waiting, size = case.args
    watched, running = blocks_and_requests(spec, free, common, size)
    waiting = [request(len(spec) + number, 4) for number in range(num_waiting)]
    before = {s.id: [*s.token_ids] for s in running}
    everybody, had = [*running], {s.id: s.num_cached for s in running}
    stay = num_that_stay(watched.pool, spec, common)
    try:
        solution(watched.pool, running, waiting)
    except IndexError as error:
        if running:
            raise
        raise Wrong(f"all were preempted and there was no room yet ({error})", hint=NOT_RELEASED) from None
    except ValueError as error:
        if "is free" not in str(error):
            raise
        raise Wrong(f"the pool refused: {error}", hint=RELEASED_TWICE) from None
    for sequence in everybody:
        check_kept(sequence, before[sequence.id], was_preempted=sequence not in running)
    watched.check_counts(*(s.block_table for s in everybody), hints=(NOT_RELEASED, RELEASED_TWICE))
    check_lists(everybody, running, waiting, stay, num_waiting)
    for sequence in everybody:
        wanted = had[sequence.id] if sequence in running else 0
        if sequence.num_cached != wanted:
            told = f"request {sequence.id} says that {sequence.num_cached} of its tokens are cached, wanted is {wanted}"
            raise Wrong(told, hint="Without blocks nothing is cached: it must be computed again from its first token.")


NOT_RELEASED = "Whoever is preempted gives its blocks back: each is released to the pool, and its table is empty."
RELEASED_TWICE = "A block was released twice, or one that another request has in its table."


def request(number: int, num_tokens: int) -> Sequence:
    """A request whose tokens, prompt and new ones, say whose they are."""
    token_ids = [10 * number + index % 10 for index in range(num_tokens)]
    return Sequence(id=number, token_ids=token_ids, prompt_len=1, max_new_tokens=99)


def blocks_and_requests(spec: list[tuple[int, int]], free: int, common: int, size: int) -> tuple[Watched, list[Sequence]]:
    """Return a pool with so many free blocks, and requests that hold the others."""
    watched = Watched(block_size=size)
    beginning = watched.pool.allocate_many(common)
    running = []
    for number, (held, total) in enumerate(spec):
        sequence = request(number, total)
        own = blocks_for(held, watched.block_size) - common
        first = watched.shared(beginning) if number else beginning
        sequence.block_table = [*first, *watched.pool.allocate_many(own)]
        sequence.num_cached = held
        running.append(sequence)
    watched.strangers += watched.pool.allocate_many(watched.pool.num_free - free)
    return watched, running


def num_that_stay(pool: BlockPool, spec: list[tuple[int, int]], common: int) -> int:
    """How many can go on: the first so many, for whom there are blocks when the others have given theirs back."""
    for stay in range(len(spec), 0, -1):
        given_back = sum(blocks_for(held, pool.block_size) - common for held, _ in spec[stay:])
        needed = sum(blocks_for(total, pool.block_size) - blocks_for(held, pool.block_size) for held, total in spec[:stay])
        if needed <= pool.num_free + given_back:
            return stay
    return 0


def check_kept(sequence: Sequence, token_ids: list[int], *, was_preempted: bool) -> None:
    if sequence.token_ids != token_ids:
        told = f"request {sequence.id} had tokens {token_ids} and has {sequence.token_ids} now"
        raise Wrong(told, hint="Its tokens are all that is left of it, those it has written included. They stay.")
    if was_preempted and sequence.block_table:
        raise Wrong(f"request {sequence.id} was preempted and still has blocks {sequence.block_table}", hint=NOT_RELEASED)


def check_lists(everybody: list[Sequence], running: list[Sequence], waiting: list[Sequence], stay: int, num_waiting: int) -> None:
    """Raise unless the right ones run and wait, in the right order."""
    runs, waits = [s.id for s in running], [s.id for s in waiting]
    wanted = list(range(stay))
    if runs != wanted:
        hint = "The one that was let in last goes first: it has the least to lose, and the first always gets on."
        if len(runs) > stay:
            hint = "There is still no room for all of them: ask the pool again after each one that goes, and change the list in place."
        elif runs == wanted[: len(runs)]:
            hint = "Nobody goes without need. Each needs the blocks that its tokens fill, less those it has; exactly enough is enough."
        raise Wrong(f"requests {runs} run afterwards, wanted are {wanted}", hint=hint)
    in_line = list(range(stay, len(everybody) + num_waiting))
    if waits != in_line:
        hint = "Who is preempted waits in its place: before those that came later."
        raise Wrong(f"requests {waits} wait afterwards, wanted are {in_line}", hint=hint)


def judge_run(solution: Solution, model: Llama, prompts: list[list[int]], num_blocks: int) -> None:
    """Serve requests over a pool that is too small; each should get what it would get alone."""
    pool = BlockPool(model.config, num_blocks=num_blocks, block_size=2, dtype=model.dtype)
    sequences = [Sequence(id=i, token_ids=[*ids], prompt_len=len(ids), max_new_tokens=5) for i, ids in enumerate(prompts)]
    try:
        serve(model, pool, [*sequences], solution)
    except OutOfBlocks as error:
        raise Wrong(f"a step had no room: {error}", hint="After make_room there must be blocks for all that run.") from None
    for ids, sequence in zip(prompts, sequences):
        alone = generate(model, torch.tensor([ids]), max_new_tokens=5)[0].tolist()
        if sequence.token_ids != alone:
            told = f"request {sequence.id} got {sequence.token_ids}, alone it gets {alone}"
            raise Wrong(told, hint="What is computed again must begin at its first token, and end at its newest.")
    if pool.num_used:
        raise Wrong(f"nobody runs and {pool.num_used} blocks are in use", hint=NOT_RELEASED)


def serve(model: Llama, pool: BlockPool, waiting: list[Sequence], make_room: Solution) -> None:
    """The loop of the chapter, with one forward per request."""
    running: list[Sequence] = []
    while waiting or running:
        make_room(pool, running, waiting)
        while waiting and blocks_missing(pool, [*running, waiting[0]]) <= pool.num_free:
            running.append(waiting.pop(0))
        if not running:
            raise Wrong("nobody runs, and the first in line finds no room", hint=NOT_RELEASED)
        for sequence in running:
            cache = PagedCache(pool, [sequence.block_table], [sequence.num_cached])
            new = torch.tensor([sequence.token_ids[sequence.num_cached :]])
            sequence.append(int(model.next_logits(new, cache).argmax()))
            sequence.num_cached = int(cache.seq_lens[0])
        for sequence in [one for one in running if one.finished]:
            running.remove(sequence)
            release_all(pool, sequence.block_table)


def blocks_missing(pool: BlockPool, sequences: list[Sequence]) -> int:
    return sum(blocks_for(len(s.token_ids), pool.block_size) - len(s.block_table) for s in sequences)


MAKE_ROOM = Exercise(
    name="make_room",
    chapter=14,
    title="Preempt and resume",
    stars=3,
    minutes=25,
    cases=make_room_cases,
    look="While those that run need more blocks than are free, the last of them gives its own back and goes to the head of the line.",
    judge=judge_make_room,
)

EXERCISES: tuple[Exercise, ...] = (STREAM_TOKENS, UNTIL_STOP, MAKE_ROOM)
