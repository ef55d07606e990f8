"""Wrong answers to the exercises of chapter 6, each with what its learner must be told."""

MUTANTS = {
    "repeat_kv": {
        "tiles the heads": ("def repeat_kv(x, n_rep):\n    return x.repeat(1, 1, n_rep, 1)", "0 1 0 1"),
        "repeats tokens": ("def repeat_kv(x, n_rep):\n    return x.repeat_interleave(n_rep, dim=1)", "repeats tokens"),
        "repeats numbers": ("def repeat_kv(x, n_rep):\n    return x.repeat_interleave(n_rep, dim=3)", "numbers in each head"),
        "repeats nothing": ("def repeat_kv(x, n_rep):\n    return x", "no head was repeated"),
        "once too often": ("def repeat_kv(x, n_rep):\n    return x.repeat_interleave(n_rep + 1, dim=2)", "wanted is [1, 1, 1, 1]"),
        "destroys its input": (
            "def repeat_kv(x, n_rep):\n    came = x.repeat_interleave(n_rep, dim=2)\n    x.zero_()\n    return came",
            "changed argument 1 in place",
        ),
    },
}
