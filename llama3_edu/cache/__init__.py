"""Every way of keeping keys and values, behind one contract: `KVCache`."""

from llama3_edu.cache.base import KVCache, NoCache
from llama3_edu.cache.blocks import BlockPool, OutOfBlocks
from llama3_edu.cache.contiguous import ContiguousCache
from llama3_edu.cache.growing import GrowingCache
from llama3_edu.cache.paged import PagedCache, paged_attention
from llama3_edu.cache.prefix import PrefixCache, chain_hash
from llama3_edu.cache.quantized import QuantizedCache
from llama3_edu.cache.store import FloatStore, QuantizedStore, dequantize, pack, quantize, unpack

__all__ = [
    "KVCache",
    "NoCache",
    "GrowingCache",
    "ContiguousCache",
    "BlockPool",
    "OutOfBlocks",
    "PagedCache",
    "PrefixCache",
    "chain_hash",
    "QuantizedCache",
    "FloatStore",
    "QuantizedStore",
    "quantize",
    "dequantize",
    "pack",
    "unpack",
    "paged_attention",
]
