"""Wrong answers to the exercises of chapter 3, each with what its learner must be told."""

from textwrap import dedent


def append(*lines: str) -> str:
    first = "end = held + new.shape[1]"
    return "def append(storage, held, new):\n" + "".join(f"    {line}\n" for line in (first, *lines))


STORES = "storage[:, held:end] = new"


def attend(
    scale: str = "/ q.shape[-1] ** 0.5",
    keys: str = "k.repeat_interleave(n_rep, dim=2)",
    values: str = "v.repeat_interleave(n_rep, dim=2)",
    hide: str = "scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)",
    weights: str = "scores.softmax(dim=-1)",
) -> str:
    return dedent(f"""
        def attend(q, k, v, mask=None):
            n_rep = q.shape[2] // k.shape[2]
            scores = torch.einsum("bqhd,bkhd->bhqk", q, {keys}) {scale}
            if mask is not None:
                scores = {hide}
            return torch.einsum("bhqk,bkhd->bqhd", {weights}, {values})
    """)


def reserve(*lines: str) -> str:
    return "def reserve(held, new, max_seq_len):\n" + "".join(f"    {line}\n" for line in lines)


ROWS = "for row in range(len(held)):"
TOO_MUCH = "    if held[row] + new[row] > max_seq_len:"
REFUSES = "        raise ValueError(f'room for {max_seq_len}; row {row} holds {held[row]} and was given {new[row]} more')"
GROWS = "    held[row] += new[row]"

MUTANTS = {
    "append": {
        "what was held before": (append(STORES, "return storage[:, :held]"), "what was held before"),
        "every slot": (append(STORES, "return storage"), "all slots, filled or not"),
        "the new ones": (append(STORES, "return storage[:, held:end]"), "the new tokens alone"),
        "over the first": (append("storage[:, :new.shape[1]] = new", "return storage[:, :end]"), "over older ones"),
        "one slot late": (
            append(
                "kept = torch.cat((storage, storage[:, :1]), dim=1)",
                "kept[:, held + 1:end + 1] = new",
                "storage.copy_(kept[:, :-1])",
                "return storage[:, :end]",
            ),
            "one slot too late",
        ),
        "one slot early": (
            append("start = max(held - 1, 0)", "storage[:, start:start + new.shape[1]] = new", "return storage[:, :end]"),
            "one slot too early",
        ),
        "concatenates": (append("return torch.cat((storage[:, :held], new), dim=1)"), "storage is as it was"),
        "copies what it hands back": (append(STORES, "return storage[:, :end].clone()"), "tensor of its own"),
        "concatenates what it hands back": (
            append("old = storage[:, :held]", STORES, "return torch.cat((old, new), dim=1)"),
            "tensor of its own",
        ),
        "clears the rest": (append(STORES, "storage[:, end:] = 0", "return storage[:, :end]"), "keep what they hold"),
        "along the batch": (append("storage[held:end] = new", "return storage[:end]"), "append: for storage"),
        "hands back nothing": (append(STORES), "Is a `return` missing?"),
        "spoils the new": (append(STORES, "new.zero_()", "return storage[:, :end]"), "changed `new`"),
    },
    "attend": {
        "no scale": (attend(scale=""), "are not scaled"),
        "no root": (attend(scale="/ q.shape[-1]"), "divided by head_dim"),
        "multiplies": (attend(scale="* q.shape[-1] ** 0.5"), "are multiplied"),
        "softmax over queries": (attend(weights="scores.softmax(dim=-2)"), "over the queries"),
        "softmax over heads": (attend(weights="scores.softmax(dim=1)"), "over the heads"),
        "no softmax": (attend(weights="scores"), "The softmax is missing"),
        "tiled heads": (attend(keys="k.repeat(1, 1, n_rep, 1)", values="v.repeat(1, 1, n_rep, 1)"), "order 0 1 0 1"),
        "tiled values": (attend(values="v.repeat(1, 1, n_rep, 1)"), "values in another"),
        "no mask": (attend(hide="scores"), "The mask is not used"),
        "mask turned round": (attend(hide="scores.masked_fill(mask[:, None], -1e9)"), "turned round"),
        "mask turned round, without end": (attend(hide="scores.masked_fill(mask[:, None], -torch.inf)"), "turned round"),
        "hidden scores are 0": (attend(hide="scores * mask[:, None]"), "set to 0"),
        "one head for all": (attend(keys="k[:, :, :1].expand(*q.shape[:0], -1, -1, q.shape[2], -1)"), "attend: for q of shape"),
        "scales the queries in place": (
            attend().replace("scores = torch", "q /= 1\n    q *= 2\n    scores = 0.5 * torch", 1),
            "changed argument 1",
        ),
    },
    "reserve": {
        "one too careful": (reserve(ROWS, TOO_MUCH.replace(">", ">="), REFUSES, ROWS, GROWS), "may become exactly full"),
        "one too careless": (reserve(ROWS, TOO_MUCH.replace("len:", "len + 1:"), REFUSES, ROWS, GROWS), "nothing was raised"),
        "grows while it looks": (reserve(ROWS, TOO_MUCH, REFUSES, GROWS), "before you change the first"),
        "grows, then looks": (
            reserve(ROWS, GROWS, ROWS, "    if held[row] > max_seq_len:", REFUSES),
            "before you change the first",
        ),
        "drops what is too much": (reserve(ROWS, "    held[row] = min(held[row] + new[row], max_seq_len)"), "nothing was raised"),
        "begins again": (
            reserve(
                ROWS, "    total = held[row] + new[row]", "    held[row] = total if total <= max_seq_len else total % max_seq_len"
            ),
            "nothing was raised",
        ),
        "asserts": (reserve(ROWS, "    assert held[row] + new[row] <= max_seq_len", ROWS, GROWS), "`python -O`"),
        "says nothing": (
            reserve(ROWS, TOO_MUCH, "        raise ValueError('the cache is full')", ROWS, GROWS),
            "how many tokens a row has room for",
        ),
        "says too little": (
            reserve(
                ROWS, TOO_MUCH, "        raise ValueError(f'{held[row] + new[row]} is more than {max_seq_len}')", ROWS, GROWS
            ),
            "how many more it was given",
        ),
        "makes a list of its own": (
            reserve(ROWS, TOO_MUCH, REFUSES, "held = [h + n for h, n in zip(held, new)]"),
            "a new list is lost",
        ),
        "looks at row 0 alone": (
            reserve("row = 0", TOO_MUCH[4:], REFUSES[4:], ROWS, GROWS),
            "nothing was raised",
        ),
        "looks at what is new alone": (
            reserve(ROWS, "    if new[row] > max_seq_len:", REFUSES, ROWS, GROWS),
            "row 0 would hold 9",
        ),
        "grows all rows alike": (reserve(ROWS, TOO_MUCH, REFUSES, ROWS, "    held[row] += max(new)"), "its own new tokens"),
        "names another row": (
            reserve("if any(h + n > max_seq_len for h, n in zip(held, new)):", "    row = 0", REFUSES[4:], ROWS, GROWS),
            "without 5 and 4",
        ),
    },
}
