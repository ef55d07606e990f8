"""Right answers to the exercises of chapter 2 that are written otherwise than the solution."""

VARIANTS = {
    "change_of_the_past": [
        # A tensor of one number, and all layers in one stack.
        """
def change_of_the_past(model, tokens, at, replacement):
    def kept(tokens):
        inside = probe.look_inside(model, tokens)
        return torch.stack(inside.k + inside.v)[:, :, :at]

    columns = torch.arange(tokens.shape[1], device=tokens.device)
    return (kept(tokens) - kept(torch.where(columns == at, replacement, tokens))).abs().amax()
""",
        # An attention that listens, put back afterwards.
        """
def change_of_the_past(model, tokens, at, replacement):
    before = [block.attention.attend for block in model.layers]

    def listen(tokens):
        heard = []
        def attend(q, k, v, mask=None):
            heard.append((k, v))
            return le.fused_attend(q, k, v, mask)
        model.use_attention(attend)
        with torch.no_grad():
            model(tokens)
        for block, attend in zip(model.layers, before):
            block.attention.attend = attend
        return heard

    others = tokens.clone()
    others[:, at:at + 1] = replacement
    largest = 0.0
    for (k, v), (new_k, new_v) in zip(listen(tokens), listen(others)):
        for old, new in ((k, new_k), (v, new_v)):
            largest = max(largest, float((old[:, :at] - new[:, :at]).abs().max()))
    return largest
""",
    ],
    "move_keys": [
        # Back, then forward.
        """
def move_keys(k, old_positions, new_positions, frequencies):
    k = le.rotate(k, *le.rope_angles(frequencies, -old_positions, k.dtype))
    return le.rotate(k, *le.rope_angles(frequencies, new_positions, k.dtype))
""",
        # Undone with the other sign of the sine.
        """
def move_keys(k, old_positions, new_positions, frequencies):
    cos, sin = le.rope_angles(frequencies, old_positions, k.dtype)
    before = le.rotate(k, cos, -sin)
    cos, sin = le.rope_angles(frequencies, new_positions, k.dtype)
    return le.rotate(before, cos, sin)
""",
        """
def move_keys(k, old_positions, new_positions, frequencies):
    angles = (new_positions - old_positions)[:, :, None, None] * frequencies
    a, b = k.chunk(2, dim=-1)
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1).to(k.dtype)
""",
    ],
    "next_positions": [
        """
def next_positions(seq_lens, new_len):
    rows = [list(range(held, held + new_len)) for held in seq_lens.tolist()]
    return torch.tensor(rows, device=seq_lens.device)
""",
        """
def next_positions(seq_lens, new_len):
    return torch.stack([seq_lens + step for step in range(new_len)], dim=1)
""",
        """
def next_positions(seq_lens, new_len):
    return torch.ones(len(seq_lens), new_len, dtype=torch.long, device=seq_lens.device).cumsum(1) - 1 + seq_lens.unsqueeze(1)
""",
    ],
}
