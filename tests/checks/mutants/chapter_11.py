"""Wrong answers to the exercises of chapter 11, each with what its learner must be told."""

FREE_LIST = """
class FreeList:
    def __init__(self, num_blocks):
        self.free, self.held = list(range(num_blocks)), set()

    @property
    def num_free(self):
        return len(self.free)

    def allocate(self, count):
        if count > len(self.free):
            raise le.OutOfBlocks(needed=count, free=len(self.free))
        given = [self.free.pop() for _ in range(count)]
        self.held.update(given)
        return given

    def release(self, blocks):
        if len(set(blocks)) != len(blocks) or not set(blocks) <= self.held:
            raise ValueError(f"only blocks that are held can come back; {blocks} came")
        self.held.difference_update(blocks)
        self.free.extend(blocks)
"""

PAGED = """
def paged_attend(q, k_pool, v_pool, block_table, *, num_tokens):
    n_heads, head_dim = q.shape
    k = k_pool[block_table].flatten(0, 1)[:num_tokens]
    v = v_pool[block_table].flatten(0, 1)[:num_tokens]
    n_rep = n_heads // k.shape[1]
    k, v = k.repeat_interleave(n_rep, dim=1), v.repeat_interleave(n_rep, dim=1)
    scores = torch.einsum("hd,khd->hk", q, k) / head_dim**0.5
    return torch.einsum("hk,khd->hd", scores.softmax(dim=-1), v)
"""

RUNNING = """
def paged_attend(q, k_pool, v_pool, block_table, *, num_tokens):
    n_heads, head_dim = q.shape
    block_size, n_kv_heads = k_pool.shape[1:3]
    n_rep = n_heads // n_kv_heads
    largest = q.new_full((n_heads,), -torch.inf)
    total, gathered = q.new_zeros(n_heads), torch.zeros_like(q)
    for index, block in enumerate(block_table):
        filled = min(block_size, num_tokens - index * block_size)
        k = k_pool[block, :filled].repeat_interleave(n_rep, dim=1)
        v = v_pool[block, :filled].repeat_interleave(n_rep, dim=1)
        scores = torch.einsum("hd,khd->hk", q, k) / head_dim**0.5
        larger = torch.maximum(largest, scores.amax(dim=1))
        weights = (scores - larger[:, None]).exp()
        shrink = (largest - larger).exp()
        total = total * shrink + weights.sum(dim=1)
        gathered = gathered * shrink[:, None] + torch.einsum("hk,khd->hd", weights, v)
        largest = larger
    return gathered / total[:, None]
"""


def instead(code: str, *changes: tuple[str, str]) -> str:
    """Return the code with some of it replaced. What is to be replaced has to be there."""
    for before, after in changes:
        assert before in code, before
        code = code.replace(before, after)
    return code


def slots(returned: str) -> str:
    return f"""
def slot_mapping(block_tables, positions, *, block_size):
    rows, real = torch.arange(len(positions))[:, None], positions >= 0
    blocks = block_tables[rows, positions.clamp_min(0) // block_size]
    places = positions % block_size
    return {returned}
"""


MUTANTS = {
    "FreeList": {
        "never used again": (
            instead(FREE_LIST, ("        self.free.extend(blocks)\n", "")),
            "counts the blocks that nobody holds",
        ),
        "counted from 1": (instead(FREE_LIST, ("range(num_blocks)", "range(1, num_blocks + 1)")), "Blocks are numbered from 0"),
        "one block, not a list": (instead(FREE_LIST, ("return given", "return given[0]")), "It returns a list"),
        "handed out twice": (
            instead(
                FREE_LIST,
                ("[self.free.pop() for _ in range(count)]", "self.free[:count]"),
                ("return len(self.free)", "return len(self.free) - len(self.held)"),
            ),
            "is not free any more",
        ),
        "as many as there are": (
            instead(
                FREE_LIST,
                ("            raise le.OutOfBlocks(needed=count, free=len(self.free))", "            count = len(self.free)"),
            ),
            "take none and raise le.OutOfBlocks",
        ),
        "an error of its own": (
            instead(
                FREE_LIST,
                ("        if count > len(self.free):\n            raise le.OutOfBlocks(needed=count, free=len(self.free))\n", ""),
            ),
            "raised IndexError, wanted is OutOfBlocks",
        ),
        "takes, then looks": (
            instead(
                FREE_LIST,
                (
                    "        if count > len(self.free):\n            raise le.OutOfBlocks(needed=count, free=len(self.free))\n"
                    "        given = [self.free.pop() for _ in range(count)]\n",
                    "        given = []\n        for _ in range(count):\n            if not self.free:\n"
                    "                raise le.OutOfBlocks(needed=count, free=0)\n            given.append(self.free.pop())\n",
                ),
            ),
            "all or nothing",
        ),
        "one is always kept": (
            instead(FREE_LIST, ("if count > len(self.free)", "if count >= len(self.free)")),
            "raised OutOfBlocks",
        ),
        "takes back anything": (
            instead(FREE_LIST, ("if len(set(blocks)) != len(blocks) or not set(blocks) <= self.held", "if False")),
            "gives it away twice",
        ),
        "forgets who is held": (
            instead(FREE_LIST, ("        self.held.difference_update(blocks)\n", "")),
            "gives it away twice",
        ),
        "takes back what it does not have": (
            instead(FREE_LIST, ("not set(blocks) <= self.held", "set(blocks) & set(self.free)")),
            "has blocks 0 to num_blocks - 1",
        ),
        "half of it done": (
            instead(
                FREE_LIST,
                (
                    "        if len(set(blocks)) != len(blocks) or not set(blocks) <= self.held:\n"
                    '            raise ValueError(f"only blocks that are held can come back; {blocks} came")\n'
                    "        self.held.difference_update(blocks)\n        self.free.extend(blocks)",
                    "        for block in blocks:\n            if block not in self.held:\n                raise ValueError(block)\n"
                    "            self.held.remove(block)\n            self.free.append(block)",
                ),
            ),
            "Look before anything is changed",
        ),
        "twice at once": (instead(FREE_LIST, ("len(set(blocks)) != len(blocks) or ", "")), "stands twice in that list"),
        "counts the lists it handed out": (
            instead(
                FREE_LIST,
                (
                    "self.free, self.held = list(range(num_blocks)), set()",
                    "self.n, self.free, self.held, self.given = num_blocks, list(range(num_blocks)), set(), []",
                ),
                ("return len(self.free)", "return self.n - sum(map(len, self.given))"),
                ("        return given", "        self.given.append(given)\n        return given"),
            ),
            "Lists that were handed out belong to others",
        ),
    },
    "slot_mapping": {
        "the block": (slots("torch.where(real, blocks, -1)"), "number of the block"),
        "the block is not multiplied": (slots("torch.where(real, blocks + places, -1)"), "`block * block_size`"),
        "no place in the block": (slots("torch.where(real, blocks * block_size, -1)"), "place in its block is missing"),
        "the whole position": (slots("torch.where(real, blocks * block_size + positions, -1)"), "whole position was added"),
        "no table": (slots("positions"), "blocks lay one behind the other"),
        "the first row's table": (
            instead(slots("torch.where(real, blocks * block_size + places, -1)"), ("block_tables[rows, ", "block_tables[0][")),
            "the first row's table",
        ),
        "padding in the last block": (
            instead(slots("blocks * block_size + places"), ("positions.clamp_min(0)", "positions")),
            "Padding has no slot",
        ),
        "padding in the first slot": (
            instead(slots("blocks * block_size + places"), ("positions % block_size", "positions.clamp_min(0) % block_size")),
            "Padding has no slot",
        ),
        "divides into fractions": (
            instead(
                slots("torch.where(real, blocks * block_size + places, -1)"),
                ("[rows, positions.clamp_min(0) // block_size]", "[rows, (positions.clamp_min(0) / block_size).round().long()]"),
            ),
            "says which entry of the row's table",
        ),
        "changes the positions": (
            instead(
                slots("torch.where(real, blocks * block_size + places, -1)"),
                ("    places", "    positions += 0 * rows + block_size\n    places"),
            ),
            "changed argument 2 in place",
        ),
    },
    "paged_attend": {
        "empty slots too": (instead(PAGED, ("[:num_tokens]", "")), "leave them out"),
        "empty slots masked, not left out": (
            instead(
                PAGED,
                ("[:num_tokens]", ""),
                ("    return", "    scores[:, num_tokens:] = -torch.inf\n    return"),
            ),
            "nan came",
        ),
        "the pool from its start": (instead(PAGED, ("[block_table]", "")), "from its start"),
        "in the order of the pool": (instead(PAGED, ("[block_table]", "[sorted(block_table)]")), "in the order of the pool"),
        "not scaled": (instead(PAGED, (" / head_dim**0.5", "")), "not divided by the square root"),
        "heads in turn": (
            instead(
                PAGED,
                ("k.repeat_interleave(n_rep, dim=1)", "k.repeat(1, n_rep, 1)"),
                ("v.repeat_interleave(n_rep, dim=1)", "v.repeat(1, n_rep, 1)"),
            ),
            "Neighbouring query heads share one",
        ),
        "a softmax per block": (
            instead(
                RUNNING,
                (
                    'gathered * shrink[:, None] + torch.einsum("hk,khd->hd", weights, v)',
                    'gathered + torch.einsum("hk,khd->hd", scores.softmax(dim=1), v)',
                ),
                ("gathered / total[:, None]", "gathered / len(block_table)"),
            ),
            "a softmax per block",
        ),
        "never scaled down": (
            instead(RUNNING, ("total * shrink", "total"), ("gathered * shrink[:, None]", "gathered")),
            "was not scaled down",
        ),
        "no largest score": (
            instead(PAGED, ("scores.softmax(dim=-1)", "scores.exp() / scores.exp().sum(dim=-1, keepdim=True)")),
            "Subtract the largest score",
        ),
        "one token short": (instead(PAGED, ("[:num_tokens]", "[: num_tokens - 1]")), "which of them differs"),
        "writes into the pool": (
            instead(
                PAGED, ("    n_heads, head_dim", "    k_pool.nan_to_num_(0)\n    v_pool.nan_to_num_(0)\n    n_heads, head_dim")
            ),
            "in place",
        ),
        "all heads at once": (
            instead(PAGED, ("    return", "    scores = scores.mean(dim=0, keepdim=True).expand_as(scores)\n    return")),
            "which of them differs",
        ),
    },
}
