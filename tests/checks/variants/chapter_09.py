"""Other right answers to the exercises of chapter 9."""

VARIANTS = {
    "padded_positions": [
        """
def padded_positions(real, held):
    positions = torch.full(real.shape, -1, device=real.device)
    for row in range(len(real)):
        count = int(held[row])
        for column in range(real.shape[1]):
            if real[row, column]:
                positions[row, column] = count
                count += 1
    return positions
""",
        """
def padded_positions(real, held):
    before = real.long().cumsum(1) - real.long()
    return torch.where(real, before + held.unsqueeze(1), torch.tensor(le.PAD, device=real.device))
""",
    ],
    "batched_next_logits": [
        "def batched_next_logits(run, rows):\n    return run(*le.left_pad(rows, pad_id=5))[:, -1]",
        """
def batched_next_logits(run, rows):
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [7] * (longest - len(row)) for row in rows])
    # A right-padded row needs no -1 behind its last token: nobody who is asked for looks that far.
    logits = run(tokens, torch.arange(longest).repeat(len(rows), 1))
    return torch.stack([logits[i, len(row) - 1] for i, row in enumerate(rows)])
""",
    ],
    "scheduler_step": [
        # the scheduler of the package, over a pool of real blocks
        """
from llama3_edu.engine import NoPrefixCache, Scheduler

def scheduler_step(running, waiting, *, num_blocks, block_size, max_batch):
    shape = le.LlamaConfig(dim=2, n_layers=1, n_heads=1, n_kv_heads=1, hidden_dim=2, vocab_size=2)
    pool = le.BlockPool(shape, num_blocks=num_blocks, block_size=block_size)
    scheduler = Scheduler(pool, NoPrefixCache(), max_batch=max_batch, max_tokens_per_step=10**6)

    def sequence(number, tokens):
        return le.Sequence(id=number, token_ids=[0] * tokens, prompt_len=1, max_new_tokens=99, choose=le.greedy)

    for number, tokens in running:
        one = sequence(number, tokens)
        one.num_cached = tokens - 1
        one.block_table = pool.allocate_many(-(-one.num_cached // block_size))
        scheduler.running.append(one)
    for number, tokens in waiting:
        scheduler.add(sequence(number, tokens))
    chunks = scheduler.schedule()
    assert [chunk.sequence for chunk in chunks] == scheduler.running
    grown = [(one.id, len(one.token_ids) + 1) for one in scheduler.running]
    return grown, [(one.id, len(one.token_ids)) for one in scheduler.waiting]
""",
        """
def scheduler_step(running, waiting, *, num_blocks, block_size, max_batch):
    def blocks(tokens):
        return (tokens + block_size - 1) // block_size

    keep = len(running)
    while sum(blocks(t) for _, t in running[:keep]) > num_blocks:
        keep -= 1
    stay, queue = running[:keep], sorted(running[keep:] + waiting)
    free = num_blocks - sum(blocks(t) for _, t in stay) - len(stay)
    while queue and len(stay) < max_batch and blocks(queue[0][1]) <= free:
        free -= blocks(queue[0][1]) + 1
        stay = stay + [queue[0]]
        queue = queue[1:]
    return [(n, t + 1) for n, t in stay], queue
""",
    ],
}
