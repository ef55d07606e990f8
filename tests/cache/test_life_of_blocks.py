"""Thousands of random steps in a pool of seven blocks: nothing is miscounted, overwritten, mixed up or leaked."""

from block_life import LifeOfBlocks, LifeOfQuantizedBlocks
from hypothesis import settings

TestLifeOfBlocks = LifeOfBlocks.TestCase
TestLifeOfBlocks.settings = settings(max_examples=100, stateful_step_count=30)

TestLifeOfQuantizedBlocks = LifeOfQuantizedBlocks.TestCase
TestLifeOfQuantizedBlocks.settings = settings(max_examples=30, stateful_step_count=20)
