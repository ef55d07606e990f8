"""Right answers to the exercises of chapter 3 that are written otherwise than the solution."""

VARIANTS = {
    "append": [
        """
def append(storage, held, new):
    new_len = new.size(1)
    storage.narrow(1, held, new_len).copy_(new)
    return storage.narrow(1, 0, held + new_len)
""",
        """
def append(storage, held, new):
    slots = torch.arange(held, held + new.shape[1], device=storage.device)
    storage.index_copy_(1, slots, new)
    return storage[:, :held + new.shape[1], :, :]
""",
        """
def append(storage, held, new):
    for step in range(new.shape[1]):
        storage[:, held] = new[:, step]
        held += 1
    return storage[:, :held]
""",
    ],
    "attend": [
        # Matrices behind heads, hidden with minus infinity.
        """
def attend(q, k, v, mask=None):
    n_rep = q.shape[2] // k.shape[2]
    q = q.transpose(1, 2)
    k, v = (x.repeat_interleave(n_rep, dim=2).transpose(1, 2) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask.unsqueeze(1).logical_not(), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)
""",
        # The queries scaled, and grouped instead of the keys repeated.
        """
def attend(q, k, v, mask=None):
    batch, new_len, n_heads, head_dim = q.shape
    grouped = (q * head_dim ** -0.5).unflatten(2, (k.shape[2], -1))
    scores = torch.einsum("bqgrd,bkgd->bgrqk", grouped, k)
    if mask is not None:
        scores = torch.where(mask[:, None, None], scores, torch.finfo(scores.dtype).min)
    return torch.einsum("bgrqk,bkgd->bqgrd", scores.softmax(-1), v).flatten(2, 3)
""",
        # Query by query, head by head.
        """
def attend(q, k, v, mask=None):
    batch, new_len, n_heads, head_dim = q.shape
    out = torch.empty_like(q)
    for row in range(batch):
        for head in range(n_heads):
            shared = head // (n_heads // k.shape[2])
            for t in range(new_len):
                seen = slice(None) if mask is None else mask[row, t]
                keys, values = k[row, seen, shared], v[row, seen, shared]
                weights = (keys @ q[row, t, head] / head_dim ** 0.5).softmax(0)
                out[row, t, head] = weights @ values
    return out
""",
        """
def attend(q, k, v, mask=None):
    return le.fused_attend(q, k, v, mask)
""",
    ],
    "reserve": [
        """
def reserve(held, new, max_seq_len):
    after = [has + more for has, more in zip(held, new)]
    for row in range(len(after)):
        if after[row] > max_seq_len:
            raise ValueError(f"held: {held[row]}, given: {new[row]}, room: {max_seq_len}")
    held[:] = after
""",
        """
def reserve(held, new, max_seq_len):
    class NoRoom(ValueError):
        pass

    too_long = [row for row, has in enumerate(held) if max_seq_len - has < new[row]]
    if too_long:
        raise NoRoom(f"{new[too_long[0]]} more than {held[too_long[0]]} do not fit into {max_seq_len}")
    for row in range(len(held)):
        held[row] += new[row]
    return held
""",
        """
def reserve(held, new, max_seq_len):
    for row in range(len(held)):
        if held[row] + new[row] > max_seq_len:
            raise ValueError(f"rows hold {held}, were given {new}, and have room for {max_seq_len}")
    for row in range(len(held)):
        held[row] = held[row] + new[row]
""",
    ],
}
