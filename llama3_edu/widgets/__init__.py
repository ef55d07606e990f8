"""Pictures that move: each takes frames made from a real run and draws them step by step, in Jupyter and on a static page."""

from llama3_edu.widgets.base import FrameWidget
from llama3_edu.widgets.beam_tree import BeamTree
from llama3_edu.widgets.block_stepper import BlockStepper
from llama3_edu.widgets.bug_hunt import BugHunt
from llama3_edu.widgets.cache_growth import CacheGrowth
from llama3_edu.widgets.causal_mask import CausalMask
from llama3_edu.widgets.decoder_shapes import DecoderShapes
from llama3_edu.widgets.head_groups import HeadGroups
from llama3_edu.widgets.memory_calculator import MemoryCalculator
from llama3_edu.widgets.memory_monitor import MemoryMonitor
from llama3_edu.widgets.prefix_tree import PrefixTree
from llama3_edu.widgets.quantisation_error import QuantisationError
from llama3_edu.widgets.recompute_triangle import RecomputeTriangle
from llama3_edu.widgets.roofline import Roofline
from llama3_edu.widgets.scheduler_timeline import SchedulerTimeline

__all__ = [
    "FrameWidget",
    "RecomputeTriangle",
    "CausalMask",
    "CacheGrowth",
    "BugHunt",
    "DecoderShapes",
    "HeadGroups",
    "MemoryCalculator",
    "MemoryMonitor",
    "Roofline",
    "SchedulerTimeline",
    "QuantisationError",
    "BlockStepper",
    "PrefixTree",
    "BeamTree",
]
