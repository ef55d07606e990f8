"""Wrong answers to the exercises of chapter 10, each with what its learner must be told."""

QUANTISE = """
def quantise(x, *, bits, dim):
    zero, high = x.aminmax(dim=dim, keepdim=True)
    scale = (high - zero) / (2**bits - 1)
    step = torch.where(scale == 0, 1, scale)
    codes = ((x - zero) / step).round().to(torch.uint8)
    return codes, scale, zero
"""

WINDOW = """
class ResidualWindow:
    def __init__(self, *, group_size, residual, round_group):
        self.group_size, self.residual, self.round_group = group_size, residual, round_group
        self.rounded, self.whole = [], None

    def append(self, x):
        self.whole = x if self.whole is None else torch.cat((self.whole, x))
        while len(self.whole) >= self.group_size + self.residual:
            self.rounded.append(self.round_group(self.whole[: self.group_size]))
            self.whole = self.whole[self.group_size :]
        return torch.cat((*self.rounded, self.whole))
"""


def instead(code: str, *changes: tuple[str, str]) -> str:
    """Return the code with some of it replaced. What is to be replaced has to be there."""
    for before, after in changes:
        assert before in code, before
        code = code.replace(before, after)
    return code


def packed(returned: str) -> str:
    return f"""
def pack_int4(codes):
    fill = torch.zeros_like(codes[..., : codes.shape[-1] % 2])
    even = torch.cat((codes, fill), dim=-1)
    return {returned}
"""


def effective(returned: str) -> str:
    return f"""
def effective_bits(num_rounded, num_whole, *, bits, group_size):
    tokens = num_rounded + num_whole
    return {returned}
"""


LOW_FIRST = "even[..., 0::2] | even[..., 1::2] << 4"

MUTANTS = {
    "quantise": {
        "as many gaps as levels": (instead(QUANTISE, ("(2**bits - 1)", "2**bits")), "one gap fewer"),
        "as many gaps as levels, clamped": (
            instead(QUANTISE, ("(2**bits - 1)", "2**bits"), (".round()", ".round().clamp(0, 2**bits - 1)")),
            "one gap fewer",
        ),
        "cuts the fraction off": (instead(QUANTISE, (".round()", "")), "cuts the fraction off"),
        "about zero": (
            instead(
                QUANTISE,
                ("zero, high = x.aminmax(dim=dim, keepdim=True)", "high = x.abs().amax(dim=dim, keepdim=True)\n    zero = -high"),
            ),
            "evenly about zero",
        ),
        "no zero": (instead(QUANTISE, ("    scale =", "    zero = torch.zeros_like(zero)\n    scale =")), "begin at zero"),
        "one scale for all": (instead(QUANTISE, ("dim=dim, keepdim=True", "")), "for the whole tensor"),
        "always the last axis": (instead(QUANTISE, ("dim=dim", "dim=-1")), "The numbers along `dim` are one group"),
        "always the first axis": (instead(QUANTISE, ("dim=dim", "dim=0")), "The numbers along `dim` are one group"),
        "all axes but that one": (
            instead(
                QUANTISE,
                (
                    "zero, high = x.aminmax(dim=dim, keepdim=True)",
                    "other = [a for a in range(x.ndim) if a != dim % x.ndim]\n    zero = x.amin(other, keepdim=True)\n"
                    "    high = x.amax(other, keepdim=True)",
                ),
            ),
            "The numbers along `dim` are one group",
        ),
        "loses the axis": (
            instead(QUANTISE, ("return codes, scale, zero", "return codes, scale.squeeze(dim), zero.squeeze(dim)")),
            "should keep the axis",
        ),
        "codes that take eight bytes": (instead(QUANTISE, ("torch.uint8", "torch.int64")), "torch.int64 came"),
        "subtracts in place": (
            instead(QUANTISE, ("    codes =", "    zero = zero.clone()\n    x -= zero\n    codes ="), ("(x - zero)", "x")),
            "changed argument 1 in place",
        ),
    },
    "pack_int4": {
        "first code above": (packed("even[..., 0::2] << 4 | even[..., 1::2]"), "should be in the lower"),
        "first half with second": (
            packed("even[..., : even.shape[-1] // 2] | even[..., even.shape[-1] // 2 :] << 4"),
            "Neighbours should share a byte",
        ),
        "loses the odd one": (
            packed("codes[..., 0::2][..., : codes.shape[-1] // 2] | codes[..., 1::2] << 4"),
            "of odd length is lost",
        ),
        "fills up in front": (
            instead(packed(LOW_FIRST), ("(codes, fill)", "(fill, codes)")),
            "not before the first",
        ),
        "rows run on": (
            "def pack_int4(codes):\n    flat = codes.flatten()\n    if len(flat) % 2:\n"
            "        flat = torch.cat((flat, flat.new_zeros(1)))\n    return flat[0::2] | flat[1::2] << 4",
            "rows run into each other",
        ),
        "pairs along the first axis": (
            "def pack_int4(codes):\n    if len(codes) % 2:\n        codes = torch.cat((codes, torch.zeros_like(codes[:1])))\n"
            "    return codes[0::2] | codes[1::2] << 4",
            "pairs along the first axis",
        ),
        "never odd": (
            "def pack_int4(codes):\n    return codes[..., 0::2] | codes[..., 1::2] << 4",
            "at [1], 23 came, wanted is 7",
        ),
        "in eight bytes": (packed("even[..., 0::2].long() + 16 * even[..., 1::2].long()"), "torch.int64 came"),
        "shifts in place": (
            "def pack_int4(codes):\n    high = codes[..., 1::2]\n    high <<= 4\n    low = codes[..., 0::2].clone()\n"
            "    low[..., : high.shape[-1]] |= high\n    return low",
            "changed argument 1 in place",
        ),
        "shifts by three": (packed("even[..., 0::2] | even[..., 1::2] << 3"), "in the four lower bits"),
    },
    "effective_bits": {
        "codes alone": (effective("(num_rounded * bits + num_whole * 16) / tokens"), "Scale and zero are left out"),
        "no zero": (effective("(num_rounded * (bits + 16 / group_size) + num_whole * 16) / tokens"), "one of them is missing"),
        "bytes for bits": (effective("(num_rounded * (bits + 4 / group_size) + num_whole * 16) / tokens"), "those are bytes"),
        "a scale for each number": (effective("(num_rounded * (bits + 32) + num_whole * 16) / tokens"), "A group shares them"),
        "forgets what is whole": (effective("bits + 32 / group_size"), "They take 16 bits per number"),
        "mean of two widths": (effective("(bits + 32 / group_size + 16) / 2"), "weigh them"),
        "a scale for what is whole": (
            effective("(num_rounded * bits + num_whole * 16) / tokens + 32 / group_size"),
            "has neither scale nor zero",
        ),
        "in bytes": (effective("(num_rounded * (bits + 32 / group_size) + num_whole * 16) / tokens / 8"), "Add up all bits"),
        "divides by the rounded alone": (
            effective("(num_rounded * (bits + 32 / group_size) + num_whole * 16) / num_rounded"),
            "raised ZeroDivisionError",
        ),
    },
    "ResidualWindow": {
        "no window": (instead(WINDOW, ("self.group_size + self.residual", "self.group_size")), "is rounded, wanted is whole"),
        "one token late": (instead(WINDOW, (">= self", "> self")), "is whole, wanted is rounded"),
        "one token early": (instead(WINDOW, (">= self.group_size", ">= self.group_size - 1")), "takes one full group at a time"),
        "one group per piece": (instead(WINDOW, ("while len", "if len")), "One piece may bring several groups"),
        "what does not fill a group": (
            instead(
                WINDOW, ("while len(self.whole) >= self.group_size + self.residual", "while len(self.whole) > self.residual")
            ),
            "takes one full group at a time",
        ),
        "all groups at once": (
            instead(
                WINDOW,
                (
                    "while len(self.whole) >= self.group_size + self.residual:",
                    "n = max(0, len(self.whole) - self.residual) // self.group_size * self.group_size\n        if n:",
                ),
                ("[: self.group_size]", "[:n]"),
                ("[self.group_size :]", "[n:]"),
            ),
            "takes one full group at a time",
        ),
        "rounds again": (
            instead(
                WINDOW,
                ("while len", "self.rounded = [self.round_group(group) for group in self.rounded]\n        while len"),
            ),
            "given a rounded group again",
        ),
        "rounds anew each time": (
            "class ResidualWindow:\n    def __init__(self, *, group_size, residual, round_group):\n"
            "        self.size, self.residual, self.round_group = group_size, residual, round_group\n        self.held = None\n\n"
            "    def append(self, x):\n        self.held = x if self.held is None else torch.cat((self.held, x))\n"
            "        n = max(0, len(self.held) - self.residual) // self.size * self.size\n"
            "        groups = [self.round_group(group) for group in self.held[:n].split(self.size)] if n else []\n"
            "        return torch.cat((*groups, self.held[n:]))",
            "A group is rounded once",
        ),
        "the newest group": (
            instead(
                WINDOW,
                ("self.whole[: self.group_size]", "self.whole[-self.group_size :]"),
                ("self.whole[self.group_size :]", "self.whole[: -self.group_size]"),
            ),
            "The oldest tokens that are whole go first",
        ),
        "returns what it was": (
            instead(
                WINDOW,
                ("        while", "        came = torch.cat((*self.rounded, self.whole))\n        while"),
                ("return torch.cat((*self.rounded, self.whole))", "return came"),
            ),
            "is whole, wanted is rounded",
        ),
        "whole ones first": (
            instead(WINDOW, ("(*self.rounded, self.whole)", "(self.whole, *self.rounded)")),
            "Tokens stay in their order",
        ),
        "the window alone": (
            instead(WINDOW, ("torch.cat((*self.rounded, self.whole))", "self.whole")),
            "returns all tokens so far",
        ),
        "rounds what it was given": (
            instead(
                WINDOW,
                (
                    "self.rounded.append(self.round_group(self.whole[: self.group_size]))",
                    "group = self.whole[: self.group_size]\n            group.copy_(self.round_group(group))\n"
                    "            self.rounded.append(group)",
                ),
            ),
            "changed what it was given",
        ),
        "one store for all windows": (
            instead(
                WINDOW,
                ("    def __init__", "    rounded = []\n\n    def __init__"),
                ("self.rounded, self.whole = [], None", "self.whole = None"),
            ),
            "returns all tokens so far",
        ),
    },
}
