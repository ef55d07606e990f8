"""Other right answers to the exercises of chapter 4."""

VARIANTS = {
    "mask_from_lengths": [
        """def mask_from_lengths(held, new):
    batch, n, m = len(held), int(new.max()), int((held + new).max())
    mask = torch.zeros(batch, n, m, dtype=torch.bool, device=held.device)
    for r in range(batch):
        for i in range(int(new[r])):
            mask[r, i, : int(held[r]) + i + 1] = True
    return mask""",
        """def mask_from_lengths(held, new):
    i = torch.arange(int(new.max()), device=held.device)
    positions = torch.where(i < new[:, None], held[:, None] + i, le.PAD)
    j = torch.arange(int((held + new).max()), device=held.device)
    keys = torch.where(j < (held + new)[:, None], j, le.PAD)
    return le.causal_mask(positions, keys)""",
    ],
    "prefill_in_pieces": [
        """def prefill_in_pieces(model, cache, tokens, room):
    for first in range(int(cache.seq_lens[0]), tokens.shape[1], room):
        logits = model(tokens[:, first : first + room], cache)[:, -1]
    return logits""",
        """def prefill_in_pieces(model, cache, tokens, room):
    n = tokens.shape[1]
    while (held := cache.seq_lens.max().item()) < n:
        end = min(n, held + room)
        positions = torch.arange(held, end, device=tokens.device).expand(len(tokens), -1)
        out = model.forward(tokens[:, held:end], cache, positions=positions)
    return out[:, -1, :]""",
    ],
    "causal_attend": [
        """def causal_attend(q, k, v):
    new_len, kv_len = q.shape[1], k.shape[1]
    positions = torch.arange(kv_len - new_len, kv_len, device=q.device)[None]
    keys = torch.arange(kv_len, device=q.device)[None]
    return le.attend(q, k, v, le.causal_mask(positions, keys).expand(len(q), -1, -1))""",
        """def causal_attend(q, k, v):
    from torch.nn.attention.bias import causal_lower_right
    new_len, kv_len = q.shape[1], k.shape[1]
    n_rep = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, le.repeat_kv(k, n_rep), le.repeat_kv(v, n_rep)))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(new_len, kv_len)).transpose(1, 2)""",
        """def causal_attend(q, k, v):
    new_len, kv_len = q.shape[1], k.shape[1]
    q = torch.cat((q.new_zeros(len(q), kv_len - new_len, *q.shape[2:]), q), dim=1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)[:, kv_len - new_len:]""",
    ],
}
