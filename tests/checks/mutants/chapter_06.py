"""Wrong answers to the exercises of chapter 6, each with what its learner must be told."""

from exercise_notebooks import all_written


def changed(name: str, *changes: tuple[str, str]) -> str:
    """Return the solution with some of its code replaced."""
    code = all_written()[name][1].solution_code
    for old, new in changes:
        assert old in code, f"the solution of {name} has no {old!r}"
        code = code.replace(old, new)
    return code


REPEATS_FIRST = """
def grouped_attend(q, k, v, mask=None):
    n_rep = q.shape[2] // k.shape[2]
    return le.fused_attend(q, le.repeat_kv(k, n_rep), le.repeat_kv(v, n_rep), mask)
"""

EXPANDS = """
def grouped_attend(q, k, v, mask=None):
    batch, new_len, n_heads, head_dim = q.shape
    n_kv_heads = k.shape[2]
    q = q.unflatten(2, (n_kv_heads, -1)).permute(0, 2, 3, 1, 4)
    k, v = (x.transpose(1, 2)[:, :, None].expand(-1, -1, n_heads // n_kv_heads, -1, -1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / head_dim**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return (scores.softmax(dim=-1) @ v).permute(0, 3, 1, 2, 4).flatten(2, 3)
"""

MUTANTS = {
    "repeat_kv": {
        "tiles the heads": ("def repeat_kv(x, n_rep):\n    return x.repeat(1, 1, n_rep, 1)", "0 1 0 1"),
        "repeats tokens": ("def repeat_kv(x, n_rep):\n    return x.repeat_interleave(n_rep, dim=1)", "repeats tokens"),
        "repeats numbers": ("def repeat_kv(x, n_rep):\n    return x.repeat_interleave(n_rep, dim=3)", "numbers in each head"),
        "repeats nothing": ("def repeat_kv(x, n_rep):\n    return x", "no head was repeated"),
        "expands alone": (
            "def repeat_kv(x, n_rep):\n    return x[:, :, :, None].expand(-1, -1, -1, n_rep, -1)",
            "join the two with `reshape`",
        ),
        "the new axis before the heads": (
            "def repeat_kv(x, n_rep):\n    return x[:, :, None].expand(-1, -1, n_rep, -1, -1).flatten(2, 3)",
            "0 1 0 1",
        ),
        "once too often": (
            "def repeat_kv(x, n_rep):\n    return x.repeat_interleave(n_rep + 1, dim=2)",
            "wanted is [1, 1, 1, 1]",
        ),
        "destroys its input": (
            "def repeat_kv(x, n_rep):\n    came = x.repeat_interleave(n_rep, dim=2)\n    x.zero_()\n    return came",
            "changed argument 1 in place",
        ),
    },
    "grouped_attend": {
        "repeats first": (
            REPEATS_FIRST,
            "32,768 numbers was written on the way, and k has 8,192",
        ),
        "expands and multiplies": (EXPANDS, "the result is right, but a tensor of 32,768 numbers was written"),
        "no scale": (changed("grouped_attend", (" / head_dim**0.5", "")), "divide by the square root"),
        "no mask": (changed("grouped_attend", ("if mask is not None", "if False")), "The mask is not used"),
        "every n_rep-th head": (
            changed(
                "grouped_attend",
                ("q = q.unflatten(2, (k.shape[2], -1))", "q = q.unflatten(2, (-1, k.shape[2])).transpose(2, 3)"),
                ("out.flatten(2, 3)", "out.transpose(2, 3).flatten(2, 3)"),
            ),
            "neighbours should share one",
        ),
        "heads of the groups in turn": (
            changed("grouped_attend", ("out.flatten(2, 3)", "out.transpose(2, 3).flatten(2, 3)")),
            "their order is not",
        ),
        "the mask inverted": (changed("grouped_attend", ("~mask", "mask")), "nan came"),
        "softmax over queries": (changed("grouped_attend", ("softmax(dim=-1)", "softmax(dim=-2)")), "softmax over the keys"),
        "groups not joined": (changed("grouped_attend", ("out.flatten(2, 3)", "out")), "a tensor of shape [1, 1, 1, 2, 2] came"),
    },
    "mean_pool": {
        "heads far apart": (
            "def mean_pool(weight, n_kv_heads, n_groups):\n"
            "    return weight.unflatten(0, (-1, n_groups, len(weight) // n_kv_heads)).mean(dim=0).flatten(0, 1)",
            "not neighbours",
        ),
        "sum": (changed("mean_pool", (".mean(", ".sum(")), "wanted is the mean"),
        "first head": (changed("mean_pool", (".mean(dim=1)", "[:, 0]")), "drops the others"),
        "rows of one head": (
            "def mean_pool(weight, n_kv_heads, n_groups):\n"
            "    return weight.unflatten(0, (-1, n_kv_heads // n_groups)).mean(dim=1)",
            "Give the heads an axis of their own",
        ),
        "columns": (
            "def mean_pool(weight, n_kv_heads, n_groups):\n"
            "    return weight.unflatten(1, (-1, n_kv_heads // n_groups)).mean(dim=2)",
            "it raised RuntimeError",
        ),
        "one head for all": (changed("mean_pool", ("(n_groups, n_kv_heads // n_groups, -1)", "(1, n_kv_heads, -1)")), "of shape"),
        "heads not joined": (changed("mean_pool", (".flatten(0, 1)", "")), "of shape [1, 1, 1] came"),
        "in place": (
            changed("mean_pool", ("    heads =", "    weight += 0.5\n    heads ="), (".flatten(0, 1)", ".flatten(0, 1) - 0.5")),
            "changed argument 1 in place",
        ),
    },
}
