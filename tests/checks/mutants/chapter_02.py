"""Wrong answers to the exercises of chapter 2, each with what its learner must be told."""

from textwrap import dedent


def change(
    past: str = "[:, :at]",
    size: str = ".abs().max()",
    watch: str = "zip(then.k + then.v, now.k + now.v)",
    place: str = "at",
    others: str = "tokens.clone()",
    give: str = "max(found)",
) -> str:
    return dedent(f"""
        def change_of_the_past(model, tokens, at, replacement):
            then = probe.look_inside(model, tokens)
            others = {others}
            others[:, {place}] = replacement
            now = probe.look_inside(model, others)
            found = [(new - old){past}{size}.item() for old, new in {watch}]
            return {give}
    """)


def move(by: str, k: str = "k") -> str:
    return dedent(f"""
        def move_keys(k, old_positions, new_positions, frequencies):
            old, new = old_positions, new_positions
            cos, sin = le.rope_angles(frequencies, {by}, k.dtype)
            return le.rotate({k}, cos, sin)
    """)


def following(expression: str) -> str:
    return f"def next_positions(seq_lens, new_len):\n    steps = torch.arange(new_len, device=seq_lens.device)\n    return {expression}\n"


MUTANTS = {
    "change_of_the_past": {
        "the replaced token too": (change("[:, :at + 1]"), "The past ends at"),
        "all tokens": (change(""), "bound to change"),
        "later tokens": (change("[:, at:]"), "those behind it"),
        "signed": (change(size=".max()"), "Take abs() before max()"),
        "keys alone": (change(watch="zip(then.k, now.k)"), "keys alone"),
        "values alone": (change(watch="zip(then.v, now.v)"), "values alone"),
        "first layer": (change(watch="zip(then.k[:1] + then.v[:1], now.k[:1] + now.v[:1])"), "first layer alone"),
        "last layer": (change(watch="zip(then.k[-1:] + then.v[-1:], now.k[-1:] + now.v[-1:])"), "last layer alone"),
        "row 0": (change("[:1, :at]"), "row 0 of the batch"),
        "the token before": (change("[:, at - 1]"), "A leak may reach further back"),
        "token 0": (change("[:, 0]"), "token 0 alone"),
        "mean": (change(size=".abs().mean()", give="sum(found) / len(found)"), "That is a mean"),
        "always 0": ("def change_of_the_past(model, tokens, at, replacement):\n    return 0.0\n", "proves nothing"),
        "never replaces": (change(place="at:at"), "proves nothing"),
        "forgets to copy": (change(others="tokens"), "changed argument 2 in place"),
        "replaces the last token": (change(place="-1"), "take the largest |difference|"),
        "leaves its attention": (
            change().replace("return", "model.use_attention(lambda q, k, v, mask=None: le.attend(q, k, v, mask))\n    return"),
            "left with another attention",
        ),
        "a list": (change(give="found"), "came, wanted is 0"),
    },
    "move_keys": {
        "turns once more": (move("new"), "comes on top of that"),
        "turns back and stops": (move("-old"), "where position 0 is"),
        "the other way": (move("old - new"), "turns the other way"),
        "both ways on": (move("old + new"), "has to be undone"),
        "nothing": ("def move_keys(k, old, new, frequencies):\n    return k\n", "as they came"),
        "as far as the first": (move("(new - old)[:, :1].expand(old.shape)"), "moved as far as its first"),
        "as far as row 0": (move("(new - old)[:1].expand(old.shape)"), "By how much more must it turn"),
    },
    "next_positions": {
        "from 0": (following("steps.expand(len(seq_lens), new_len)"), "begins at 0 again"),
        "one too far": (following("seq_lens[:, None] + 1 + steps"), "one too far"),
        "one too near": (following("seq_lens[:, None] - 1 + steps"), "one too near"),
        "the longest": (following("seq_lens.max() + steps.expand(len(seq_lens), new_len)"), "where the longest ends"),
        "row 0": (following("seq_lens[0] + steps.expand(len(seq_lens), new_len)"), "where row 0 ends"),
        "standing still": (following("seq_lens[:, None].expand(len(seq_lens), new_len)"), "one behind the other"),
        "transposed": (following("seq_lens + steps[:, None]"), "Rows and columns are exchanged"),
        "floats": (following("seq_lens[:, None] + steps.float()"), "a tensor of torch.float32 came"),
        "one row": (following("seq_lens[0] + steps"), "a tensor of shape [1] came"),
        "moves the cache": (
            following("seq_lens[:, None] + steps").replace("return", "came =") + "    seq_lens += new_len\n    return came\n",
            "changed argument 1 in place",
        ),
    },
}
