"""Wrong answers to the exercises of chapter 9, each with what its learner must be told."""


def positions(returned: str) -> str:
    return f"def padded_positions(real, held):\n    counted = real.cumsum(dim=1)\n    return {returned}\n"


def batched(body: str) -> str:
    """An answer that pads on the right by itself; `body` goes on from tokens, positions and lengths."""
    return f"""
def batched_next_logits(run, rows):
    lengths = [len(row) for row in rows]
    tokens, positions = le.right_pad(rows)
    on_the_left, left_positions = le.left_pad(rows)
    columns = torch.arange(tokens.shape[1]).expand(tokens.shape)
    every = range(len(rows))
    {body}
"""


STEP = """
def scheduler_step(running, waiting, *, num_blocks, block_size, max_batch):
    def blocks(sequences):
        return sum(-(-tokens // block_size) for _, tokens in sequences)

    running, waiting = list(running), list(waiting)
    while blocks(running) > num_blocks:
        waiting.insert(0, running.pop())
    while waiting and len(running) < max_batch:
        if blocks([*running, waiting[0]]) + len(running) > num_blocks:
            break
        running.append(waiting.pop(0))
    return [(number, tokens + 1) for number, tokens in running], waiting
"""


def step(*changes: tuple[str, str]) -> str:
    """Return the step with some of it replaced. What is to be replaced has to be there."""
    code = STEP
    for before, after in changes:
        assert before in code, before
        code = code.replace(before, after)
    return code


MUTANTS = {
    "padded_positions": {
        "columns": (positions("(torch.arange(real.shape[1]) + held[:, None]).masked_fill(~real, -1)"), "Those are columns"),
        "columns everywhere": (positions("torch.arange(real.shape[1]) + held[:, None]"), "Those are columns"),
        "begins at 1": (positions("(counted + held[:, None]).masked_fill(~real, -1)"), "stands at 0"),
        "padding keeps the count": (positions("counted - 1 + held[:, None]"), "has to stand at -1"),
        "padding at 1": (positions("(counted - 1 + held[:, None]).masked_fill(~real, 1)"), "has to stand at -1"),
        "padding at 0": (positions("(counted - 1 + held[:, None]) * real"), "has to stand at -1"),
        "forgets what is held": (positions("(counted - 1).masked_fill(~real, -1)"), "holds `held` tokens already"),
        "moves the padding": (positions("(counted - 1).masked_fill(~real, -1) + held[:, None]"), "moves the padding too"),
        "counts down": (
            positions("(real.cumsum(dim=0) - 1 + held[:, None]).masked_fill(~real, -1)"),
            "counts down the columns",
        ),
        "lengths along the row": (positions("(counted - 1 + held).masked_fill(~real, -1)"), "raised RuntimeError"),
        "changes what it was given": (
            positions("(counted - held.neg_()[:, None] - 1).masked_fill(~real, -1)"),
            "changed argument 2 in place",
        ),
    },
    "batched_next_logits": {
        "last column, padded on the right": (batched("return run(tokens, positions)[:, -1]"), "in the longest rows alone"),
        "padding as text": (batched("return run(on_the_left, columns)[:, -1]"), "the padding is read as text"),
        "padding at 0": (batched("return run(on_the_left, left_positions.clamp_min(0))[:, -1]"), "Padding at position 0"),
        "own length, padded on the left": (
            batched("return run(on_the_left, left_positions)[every, [n - 1 for n in lengths]]"),
            "does not end in column",
        ),
        "the first token": (batched("return run(tokens, positions)[:, 0]"), "each row's first token"),
        "one before the last": (
            batched("return run(tokens, positions)[every, [max(0, n - 2) for n in lengths]]"),
            "one token before the last",
        ),
        "one row after the other": (
            batched("return torch.stack([run(torch.tensor([row]), torch.arange(len(row))[None])[0, -1] for row in rows])"),
            "the model ran 2 times, wanted is once",
        ),
        "all logits": (batched("return run(tokens, positions)"), "a tensor of shape [1, 1, 512] came"),
        "a list": (batched("return list(run(on_the_left, left_positions)[:, -1])"), "wanted is a tensor of shape"),
        "pads the rows themselves": (
            batched(
                "[row.extend([0] * (max(lengths) - len(row))) for row in rows]; "
                "return run(tokens, positions)[every, [n - 1 for n in lengths]]"
            ),
            "changed argument 2 in place",
        ),
    },
    "scheduler_step": {
        "no spare block": (step((" + len(running) >", " >")), "without a spare block"),
        "a spare for the newcomer": (step((" + len(running) >", " + len(running) + 1 >")), "not for the newcomer"),
        "the first gives way": (step(("running.pop())", "running.pop(0))")), "The last one let in gives way"),
        "to the end of the queue": (
            step(("waiting.insert(0, running.pop())", "waiting.append(running.pop())")),
            "waits at its old place",
        ),
        "only one gives way": (step(("while blocks(running)", "if blocks(running)")), "those who are left still need more"),
        "a token before it goes": (
            step(("waiting.insert(0, running.pop())", "number, tokens = running.pop(); waiting.insert(0, (number, tokens + 1))")),
            "gets no token in this step",
        ),
        "lets the short ones pass": (
            step(
                ("while waiting and len(running) < max_batch:", "for one in list(waiting):"),
                (
                    "if blocks([*running, waiting[0]]) + len(running) > num_blocks:\n            break",
                    "if len(running) == max_batch or blocks([*running, one]) + len(running) > num_blocks:\n            continue",
                ),
                ("running.append(waiting.pop(0))", "waiting.remove(one); running.append(one)"),
            ),
            "somebody behind it was let in",
        ),
        "one row too many": (step(("len(running) < max_batch", "len(running) <= max_batch")), "than `max_batch` allows"),
        "rounds blocks down": (step(("-(-tokens // block_size)", "tokens // block_size")), "a block that is begun is taken"),
        "room for the next token": (
            step(("-(-tokens // block_size)", "-(-(tokens + 1) // block_size)")),
            "is stored in the next",
        ),
        "nobody grows": (step(("tokens + 1) for number", "tokens) for number")), "then a token for everybody who runs"),
        "changes the lists it was given": (step(("    running, waiting = list(running), list(waiting)\n", "")), "in place"),
    },
}
