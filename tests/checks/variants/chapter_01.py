"""Right answers to the exercises of chapter 1 that are written otherwise than the solution."""

VARIANTS = {
    "write_greedily": [
        """
def write_greedily(model, tokens, max_new_tokens):
    for _ in range(max_new_tokens):
        tokens = torch.cat((tokens, model.next_logits(tokens).argmax(-1)[:, None]), dim=1)
    return tokens
""",
        # Through probabilities, row by row.
        """
def write_greedily(model, tokens, max_new_tokens):
    rows = []
    for row in tokens:
        text = row.tolist()
        for _ in range(max_new_tokens):
            probabilities = model(torch.tensor([text], device=tokens.device))[0, -1].softmax(-1)
            text.append(int(probabilities.argmax()))
        rows.append(text)
    return torch.tensor(rows, device=tokens.device)
""",
        """
def write_greedily(model, tokens, max_new_tokens):
    if max_new_tokens == 0:
        return tokens
    values, ids = torch.topk(model(tokens)[:, -1], 1)
    return write_greedily(model, torch.hstack([tokens, ids]), max_new_tokens - 1)
""",
    ],
    "count_projections": [
        # Hooks before the module runs, closures from a function.
        """
def count_projections(model, run):
    counts = [0] * len(model.layers)

    def hook_of(layer):
        def hook(module, inputs):
            counts[layer] += inputs[0][..., 0].numel()
        return hook

    handles = [b.attention.wk.register_forward_pre_hook(hook_of(i)) for i, b in enumerate(model.layers)]
    run()
    [handle.remove() for handle in handles]
    return counts
""",
        # Another forward for a while; it counts the keys that come out.
        """
def count_projections(model, run):
    counts = [0] * len(model.layers)
    for layer, block in enumerate(model.layers):
        wk = block.attention.wk
        def forward(x, layer=layer, wk=wk):
            out = torch.nn.functional.linear(x, wk.weight)
            counts[layer] += out.numel() // out.shape[-1]
            return out
        wk.forward = forward
    run()
    for block in model.layers:
        del block.attention.wk.forward
    return counts
""",
    ],
    "naive_work": [
        """
def naive_work(prompt_len, new_tokens):
    lengths = range(prompt_len, prompt_len + new_tokens)
    return sum(lengths), sum(m * (m + 1) // 2 for m in lengths)
""",
        """
def naive_work(prompt_len, new_tokens):
    from math import comb
    p, n = prompt_len, new_tokens
    return comb(p + n, 2) - comb(p, 2), comb(p + n + 1, 3) - comb(p + 1, 3)
""",
        """
def naive_work(prompt_len, new_tokens):
    passes = pairs = 0
    for step in range(new_tokens):
        passes += prompt_len + step
        pairs += (prompt_len + step) * (prompt_len + step + 1) // 2
    return passes, pairs
""",
    ],
}
