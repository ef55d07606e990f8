"""A pool of thousands of blocks and thousands of events: real caches come and go in it, without a model."""

import random
from dataclasses import dataclass, replace
from functools import cache

import torch
from tiny_models import CONFIG

import llama3_edu as le
from llama3_edu.cache.blocks import release_all
from llama3_edu.events import SequenceAdmitted, SequenceFinished

SMALLEST = replace(CONFIG, dim=2, n_layers=1, n_heads=1, n_kv_heads=1, hidden_dim=2, vocab_size=8)


@dataclass(eq=False)
class _Life:
    name: int
    ids: list[int]
    table: list[int]


@cache
def long_life(*, num_blocks: int = 4096, block_size: int = 16, num_events: int = 10_000, running: int = 8) -> le.Trace:
    """What is reported while `running` sequences at a time grow by up to 400 tokens, end, and make room for others like them."""
    chance, trace, lives = random.Random(1), le.Trace(), []
    pool = le.BlockPool(SMALLEST, num_blocks=num_blocks, block_size=block_size, observer=trace)
    prefix = le.PrefixCache(pool, observer=trace)
    name = 0
    while len(trace) < num_events:
        if len(lives) < running:
            ids = [*[chance.randrange(3)] * (16 * chance.randrange(1, 60)), *(chance.randrange(8) for _ in range(1500))]
            table = prefix.acquire(ids)
            trace(SequenceAdmitted(sequence=name, num_cached=len(table) * block_size, num_tokens=len(ids)))
            lives.append(_Life(name, ids[: len(table) * block_size], table))
            name += 1
        _grow(pool, prefix, chance.choice(lives), chance, trace)
        if len(lives) == running and (chance.random() < 0.4 or pool.num_used - len(prefix) > num_blocks // 2):
            ended = lives.pop(0)
            release_all(pool, ended.table)
            trace(SequenceFinished(sequence=ended.name, reason="length", num_tokens=len(ended.ids)))
    return trace


def _grow(pool: le.BlockPool, prefix: le.PrefixCache, life: _Life, chance: random.Random, trace: le.Trace) -> None:
    held, more = len(life.ids), chance.randrange(1, 400)
    cache = le.PagedCache(pool, [life.table], [held], names=[life.name], observer=trace)
    cache.reserve(torch.arange(held, held + more)[None])
    life.ids += [chance.randrange(8) for _ in range(more)]
    prefix.insert(life.ids, life.table)
