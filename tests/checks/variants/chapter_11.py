"""Other right answers to the exercises of chapter 11."""

VARIANTS = {
    "FreeList": [
        # the pool of the package
        """
class FreeList:
    def __init__(self, num_blocks):
        shape = le.LlamaConfig(dim=2, n_layers=1, n_heads=1, n_kv_heads=1, hidden_dim=2, vocab_size=2)
        self.pool = le.BlockPool(shape, num_blocks=num_blocks, block_size=1)

    @property
    def num_free(self):
        return self.pool.num_free

    def allocate(self, count):
        return self.pool.allocate_many(count)

    def release(self, blocks):
        if len(set(blocks)) != len(blocks) or any(self.pool.ref_count(block) == 0 for block in blocks):
            raise ValueError(blocks)
        for block in blocks:
            self.pool.release(block)
""",
        """
class FreeList:
    def __init__(self, num_blocks):
        self.is_free = [True] * num_blocks
        self.num_free = num_blocks

    def allocate(self, count):
        found = [block for block, free in enumerate(self.is_free) if free][:count]
        if len(found) < count:
            raise le.OutOfBlocks(needed=count, free=len(found))
        for block in found:
            self.is_free[block] = False
        self.num_free -= count
        return found

    def release(self, blocks):
        for index, block in enumerate(blocks):
            if block not in range(len(self.is_free)) or self.is_free[block] or block in blocks[:index]:
                raise ValueError(f"block {block} is not held")
        for block in blocks:
            self.is_free[block] = True
        self.num_free += len(blocks)
""",
    ],
    "slot_mapping": [
        """
def slot_mapping(block_tables, positions, *, block_size):
    rows = [
        [-1 if p < 0 else table[p // block_size] * block_size + p % block_size for p in row]
        for table, row in zip(block_tables.tolist(), positions.tolist())
    ]
    return torch.tensor(rows, device=positions.device)
""",
        """
def slot_mapping(block_tables, positions, *, block_size):
    # all slots of each row side by side, then the one at each position
    inside = torch.arange(block_size, device=block_tables.device)
    slots = (block_tables[:, :, None] * block_size + inside).flatten(1)
    return slots.gather(1, positions.clamp(min=0)).masked_fill(positions < 0, -1)
""",
    ],
    "paged_attend": [
        """
def paged_attend(q, k_pool, v_pool, block_table, *, num_tokens):
    k, v = (pool[block_table].flatten(0, 1)[None, :num_tokens] for pool in (k_pool, v_pool))
    return le.fused_attend(q[None, None], k, v)[0, 0]
""",
        # empty slots kept and hidden, with zeros put where anything may lie
        """
def paged_attend(q, k_pool, v_pool, block_table, *, num_tokens):
    k, v = (pool[block_table].flatten(0, 1) for pool in (k_pool, v_pool))
    real = torch.arange(len(k), device=k.device) < num_tokens
    k, v = (torch.where(real[:, None, None], x, 0) for x in (k, v))
    return le.attend(q[None, None], k[None], v[None], real[None, None])[0, 0]
""",
        # head by head, with a running softmax
        """
def paged_attend(q, k_pool, v_pool, block_table, *, num_tokens):
    block_size, n_kv_heads = k_pool.shape[1:3]
    out = torch.empty_like(q)
    for head in range(len(q)):
        kv_head = head // (len(q) // n_kv_heads)
        largest, total, gathered = None, 0.0, 0.0
        left = num_tokens
        for block in block_table:
            k, v = k_pool[block, :left, kv_head], v_pool[block, :left, kv_head]
            left -= len(k)
            scores = k @ q[head] / q.shape[1] ** 0.5
            larger = scores.max() if largest is None else torch.maximum(largest, scores.max())
            shrink = 0.0 if largest is None else (largest - larger).exp()
            weights = (scores - larger).exp()
            total, gathered = total * shrink + weights.sum(), gathered * shrink + weights @ v
            largest = larger
        out[head] = gathered / total
    return out
""",
    ],
}
