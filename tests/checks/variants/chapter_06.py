"""Other right answers to the exercises of chapter 6."""

VARIANTS = {
    "repeat_kv": [
        "def repeat_kv(x, n_rep):\n    return x.repeat_interleave(n_rep, dim=2)",
        "def repeat_kv(x, n_rep):\n    return torch.stack([x] * n_rep, dim=3).flatten(2, 3)",
        "def repeat_kv(x, n_rep):\n    return x[:, :, torch.arange(x.shape[2] * n_rep, device=x.device) // n_rep]",
    ],
    "grouped_attend": [
        "def grouped_attend(q, k, v, mask=None):\n    return le.fused_attend(q, k, v, mask)",
        # one query head at a time
        """
def grouped_attend(q, k, v, mask=None):
    n_rep = q.shape[2] // k.shape[2]
    outs = []
    for head in range(q.shape[2]):
        keys, values = k[:, :, head // n_rep], v[:, :, head // n_rep]
        scores = q[:, :, head] @ keys.transpose(1, 2) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores + torch.zeros_like(scores).masked_fill(~mask, torch.finfo(scores.dtype).min)
        outs.append(scores.softmax(dim=-1) @ values)
    return torch.stack(outs, dim=2)
""",
        # the queries of a group stand below one another; computed in float32 at least
        """
def grouped_attend(q, k, v, mask=None):
    batch, new_len, n_heads, head_dim = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    n_kv_heads = k.shape[2]
    q, kind = q.to(wide).view(batch, new_len, n_kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4).flatten(2, 3), q.dtype
    k, v = k.to(wide).transpose(1, 2), v.to(wide).transpose(1, 2)
    scores = q @ k.transpose(2, 3) / head_dim**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.repeat(1, n_heads // n_kv_heads, 1)[:, None], -torch.inf)
    out = (scores.softmax(dim=-1) @ v).unflatten(2, (-1, new_len)).permute(0, 3, 1, 2, 4)
    return out.flatten(2, 3).to(kind)
""",
    ],
    "mean_pool": [
        """
def mean_pool(weight, n_kv_heads, n_groups):
    size, head_dim = n_kv_heads // n_groups, len(weight) // n_kv_heads
    heads = weight.split(head_dim)
    return torch.cat([sum(heads[g * size : (g + 1) * size]) / size for g in range(n_groups)])
""",
        """
def mean_pool(weight, n_kv_heads, n_groups):
    size = n_kv_heads // n_groups
    mixing = torch.eye(n_groups, dtype=weight.dtype, device=weight.device).repeat_interleave(size, dim=1) / size
    mixing = torch.kron(mixing, torch.eye(len(weight) // n_kv_heads, dtype=weight.dtype, device=weight.device))
    return mixing @ weight
""",
    ],
}
