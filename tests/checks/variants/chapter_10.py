"""Other right answers to the exercises of chapter 10."""

VARIANTS = {
    "quantise": [
        # as chapter 10 has it: where all numbers of a group are equal, 0 / 0 becomes code 0
        """
def quantise(x, *, bits, dim):
    low, high = x.amin(dim=dim, keepdim=True), x.amax(dim=dim, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    codes = ((x - low) / scale).nan_to_num(0).round().to(torch.uint8)
    return codes, scale, low
""",
        """
def quantise(x, *, bits, dim):
    levels = 2**bits - 1
    low = x.min(dim=dim, keepdim=True).values
    span = x.max(dim=dim, keepdim=True).values - low
    codes = (x - low) * levels / span.clamp_min(1e-30) + 0.5
    return codes.floor().clamp(0, levels).to(torch.uint8), span / levels, low
""",
    ],
    "pack_int4": [
        "from llama3_edu.cache import pack\n\ndef pack_int4(codes):\n    return pack(codes, bits=4)",
        """
def pack_int4(codes):
    out = codes[..., 0::2].clone()
    out[..., : codes.shape[-1] // 2] += 16 * codes[..., 1::2]
    return out
""",
    ],
    "effective_bits": [
        """
def effective_bits(num_rounded, num_whole, *, bits, group_size):
    total = num_rounded * bits + num_rounded // group_size * (16 + 16) + 16 * num_whole
    return total / (num_rounded + num_whole)
""",
        """
from fractions import Fraction

def effective_bits(num_rounded, num_whole, *, bits, group_size):
    share = Fraction(num_rounded, num_rounded + num_whole)
    return float(share * (bits + Fraction(32, group_size)) + (1 - share) * 16)
""",
    ],
    "ResidualWindow": [
        """
class ResidualWindow:
    def __init__(self, *, group_size, residual, round_group):
        self.group_size, self.residual, self.round_group = group_size, residual, round_group
        self.tokens = None
        self.num_rounded = 0

    def append(self, x):
        self.tokens = x.clone() if self.tokens is None else torch.cat((self.tokens, x))
        for first in range(self.num_rounded, len(self.tokens) - self.residual - self.group_size + 1, self.group_size):
            group = slice(first, first + self.group_size)
            self.tokens[group] = self.round_group(self.tokens[group])
            self.num_rounded += self.group_size
        return self.tokens
""",
        """
class ResidualWindow:
    def __init__(self, group_size, residual, round_group):
        self.options = group_size, residual, round_group
        self.old, self.new = [], []

    def append(self, x):
        group_size, residual, round_group = self.options
        self.new.extend(x)
        while len(self.new) - residual >= group_size:
            self.old.extend(round_group(torch.stack(self.new[:group_size])))
            del self.new[:group_size]
        return torch.stack(self.old + self.new)
""",
    ],
}
