"""Every way of keeping keys and values, behind one contract: `KVCache`."""

from llama3_edu.cache.base import KVCache, NoCache
from llama3_edu.cache.contiguous import ContiguousCache
from llama3_edu.cache.growing import GrowingCache

__all__ = ["KVCache", "NoCache", "GrowingCache", "ContiguousCache"]
