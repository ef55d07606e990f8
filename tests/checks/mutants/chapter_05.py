"""Wrong answers to the exercises of chapter 5, each with what its learner must be told."""

from exercise_notebooks import all_written


def solution(name: str, *changes: tuple[str, str]) -> str:
    """Return the solution with some of its code replaced."""
    return changed(all_written()[name][1].solution_code, *changes)


def found(name: str, *changes: tuple[str, str]) -> str:
    """Return the code that is to be repaired, as it was found, with some of it replaced."""
    return changed(all_written()[name][1].stub, ("raise NotImplementedError", "pass"), *changes)


def changed(code: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in code, f"the code has no {old!r}"
        code = code.replace(old, new)
    return code


FROM_0, BYTES, BOUND = (
    ("self.end = 1", "self.end = 0"),
    ("x.numel()", "x.nbytes"),
    ("def keep(k, v)", "def keep(k, v, layer=layer)"),
)

OWN_SCORE = """
def search_beams(model, tokens, cache, num_beams, max_new_tokens):
    found = le.beam_search(model, tokens, num_beams=num_beams, max_new_tokens=max_new_tokens, length_penalty=0.0)
    return found.tokens, found.scores
"""

SAME_TEXT = """
def is_right(make, model):
    prompt = torch.arange(5)[None]
    written = le.generate(model, prompt, max_new_tokens=8, cache=make(1))
    return torch.equal(written, le.generate(model, prompt, max_new_tokens=8))
"""

LOOKS_INSIDE = """
def is_right(make, model):
    cache, other = make(1), le.GrowingCache(model.config, dtype=model.dtype)
    tokens = torch.arange(9)[None]
    cache.reserve(tokens), other.reserve(tokens)
    k = torch.randn(1, 9, model.config.n_kv_heads, model.config.head_dim, dtype=model.dtype)
    came, wanted = cache.update(0, k, k)[0], other.update(0, k, k)[0]
    return came.shape == wanted.shape and torch.equal(came, wanted) and cache.nbytes >= other.nbytes
"""

MUTANTS = {
    "SlotCache": {
        "as it was found": (found("SlotCache"), "seq_lens are [1] before anything was fed"),
        "slot 0 alone": (found("SlotCache", FROM_0), "That is how many numbers there are"),
        "slot 0 and bytes": (found("SlotCache", FROM_0, BYTES), "which layer does each function store into"),
        "all but bytes": (found("SlotCache", FROM_0, BOUND), "That is how many numbers there are"),
        "four bytes whatever the type": (
            found("SlotCache", FROM_0, BOUND, ("x.numel()", "4 * x.numel()")),
            "It counts keys and values of all slots, in bytes",
        ),
        "one more position than tokens": (
            solution("SlotCache", ("torch.arange(self.end,", "torch.arange(self.end + 1,")),
            "reserve returned other positions",
        ),
        "one slot too late": (
            solution(
                "SlotCache",
                ("self.end - k.shape[1] : self.end]", "self.end - k.shape[1] + 1 : self.end + 1]"),
                ("max_seq_len, config", "max_seq_len + 1, config"),
            ),
            "A layer should be handed back what it stored itself",
        ),
        "one tensor for all layers": (
            solution(
                "SlotCache", ("[torch.zeros(shape, **options) for _ in layers]", "[torch.zeros(shape, **options)] * len(layers)")
            ),
            "Those are another layer's",
        ),
        "lengths never change": (
            solution("SlotCache", ("[self.end] * rows", "[0] * rows")),
            "It should count the tokens that came",
        ),
        "values stay": (
            solution("SlotCache", ("        self.values = [x.index_select(0, parents) for x in self.values]", "")),
            "after its rows changed places",
        ),
    },
    "search_beams": {
        "as it was found": (found("search_beams"), "keys of their past stayed behind"),
        "tokens stay": (solution("search_beams", ("tokens[parents]", "tokens")), "and its own text has"),
        "scores start again": (
            solution("search_beams", ("scores[:, None] + logits", "logits")),
            "and its own text has",
        ),
        "parents by remainder": (
            solution("search_beams", ("places // logits.shape[1]", "places % num_beams")),
            "three things follow the beams",
        ),
        "keeps nothing": (OWN_SCORE, "0 tokens were run through the cache"),
        "one step too many": (
            solution("search_beams", ("range(max_new_tokens - 1)", "range(max_new_tokens)")),
            "of shape",
        ),
    },
    "is_right": {
        "always": ("def is_right(make, model):\n    return True", "slot 0 is never written, it said True"),
        "never": ("def is_right(make, model):\n    return False", "it said False, and all promises are kept"),
        "returns nothing": ("def is_right(make, model):\n    make(1)", "it returned None"),
        "reads the text": (SAME_TEXT, "it said True"),
        "compares keys": (LOOKS_INSIDE, "it said True"),
        "a whole prompt": (
            solution(
                "is_right",
                ("(6, 10, *range(11, 20), 22, 25, 28)", "(28,)"),
                ("([5, 2, 3], [1, 4, 2], [1, 1, 1])", "([5, 2, 3],)"),
            ),
            "the mask square",
        ),
        "no single tokens": (
            solution(
                "is_right", ("(6, 10, *range(11, 20), 22, 25, 28)", "(6, 10, 14, 18, 22, 26, 28)"), ("[1, 1, 1]", "[2, 2, 2]")
            ),
            "wrong where a step has one token, it said True",
        ),
        "rows that stay": (solution("is_right", ("if end in moves", "if False")), "stays where it is"),
        "two rows that swap": (
            solution("is_right", ("{14: [1, 2, 0], 18: [1, 0, 2], 22: [0, 0, 2]}", "{14: [1, 0, 2]}")),
            "three rows go round in a ring, it said True",
        ),
        "rows of one length": (
            solution("is_right", (" or fails_when_ragged()", "")),
            "wrong where rows differ in length, it said True",
        ),
        "one row": (
            """
def is_right(make, model):
    tokens, cache = torch.arange(8)[None], make(1)
    came = torch.cat([model(piece, cache) for piece in tokens.split([4, 3, 1], dim=1)], dim=1)
    same = (came - model(tokens)).abs().max() < 1e-9
    cache.reorder(torch.tensor([0, 0])), cache.reorder(torch.tensor([1, 0]))
    return bool(same) and cache.nbytes >= 2 * le.kv_bytes(model.config, seq_len=8, bits=64)
""",
            "stays where it is",
        ),
        "a wide tolerance": (solution("is_right", ("1e-9", "1e-3")), "rounds numbers, it said True"),
        "to the last bit": (solution("is_right", ("> 1e-9", "> 0")), "Is the tolerance above rounding"),
        "counts no bytes": (solution("is_right", (" or cache.nbytes < least", "")), "elements for bytes, it said True"),
        "counts half the bytes": (solution("is_right", ("bits=bits)", "bits=bits // 2)")), "too few bytes, it said True"),
        "expects the plain sum": (
            solution("is_right", ("cache.nbytes < least", "cache.nbytes != least")),
            "all promises are kept",
        ),
        "short texts": (
            solution(
                "is_right",
                ("(3, 28)", "(3, 14)"),
                ("range(11, 20), 22, 25, 28)", "range(11, 15))"),
                ("[28, 28, 28]", "[14, 14, 14]"),
                ("{14: [1, 2, 0], 18: [1, 0, 2], 22: [0, 0, 2]}", "{11: [1, 2, 0], 12: [1, 0, 2], 13: [0, 0, 2]}"),
            ),
            "longer than 16 tokens, it said True",
        ),
        "one cache": (
            """
def is_right(make, model):
    cache, texts, held = make(3), [torch.arange(row, row + 40) ** 3 % 13 for row in range(3)], [0, 0, 0]
    same = []
    moves = {2: [1, 2, 0], 4: [1, 0, 2], 5: [0, 0, 2]}
    for step, new in enumerate(([5, 2, 3], [4, 4, 4], [1, 1, 1], [4, 4, 4], [4, 4, 4], [1, 1, 1], [4, 4, 4])):
        if step and cache.seq_lens.tolist() != held:
            return False
        tokens, positions = le.right_pad([text[n : n + more].tolist() for text, n, more in zip(texts, held, new)])
        positions = torch.where(positions < 0, le.PAD, positions + torch.tensor(held)[:, None])
        logits = model.next_logits(tokens, cache, positions)
        held = [n + more for n, more in zip(held, new)]
        same += [logits[row] - model.next_logits(texts[row][None, : held[row]])[0] for row in range(3)]
        if step in moves:
            cache.reorder(torch.tensor(moves[step]))
            texts, held = ([of[parent] for parent in moves[step]] for of in (texts, held))
    held = int(cache.seq_lens.sum())
    enough = cache.nbytes >= le.kv_bytes(model.config, seq_len=held, bits=64)
    return enough and max(x.abs().max().item() for x in same) < 1e-9
""",
            "a second cache what the first one held, it said True",
        ),
        "does not look before it feeds": (
            solution(
                "is_right",
                (
                    "return cache.seq_lens.tolist() != lengths or cache.nbytes < least",
                    "return sum(lengths) and cache.nbytes < least",
                ),
            ),
            "ask for its `seq_lens` before you feed it",
        ),
    },
}
