"""Continuous batching: requests of any length share one model and one pool of blocks."""

from llama3_edu.engine.engine import Engine
from llama3_edu.engine.scheduler import Chunk, NoPrefixCache, Scheduler
from llama3_edu.engine.sequence import Sequence
from llama3_edu.engine.statistics import MemoryUse, StepStatistics, memory_use
from llama3_edu.engine.text import GrowingText

__all__ = [
    "Engine",
    "Sequence",
    "Scheduler",
    "Chunk",
    "NoPrefixCache",
    "StepStatistics",
    "MemoryUse",
    "memory_use",
    "GrowingText",
]
