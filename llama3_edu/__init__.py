"""Llama 3 and its KV cache, small enough to read and fast enough to use."""

from llama3_edu import checks
from llama3_edu.attention import attend, attention_weights, fused_attend, repeat_kv
from llama3_edu.beam import BeamResult, beam_search
from llama3_edu.cache import (
    BlockPool,
    ContiguousCache,
    FloatStore,
    GrowingCache,
    KVCache,
    NoCache,
    OutOfBlocks,
    PagedCache,
    PrefixCache,
    QuantizedCache,
    QuantizedStore,
    paged_attention,
)
from llama3_edu.checkpoint import load_checkpoint, load_tiny, save_checkpoint, stop_ids
from llama3_edu.config import LlamaConfig, RopeScaling
from llama3_edu.engine import Engine, Sequence
from llama3_edu.frames import shape_frames
from llama3_edu.frames_bugs import bug_frames
from llama3_edu.frames_mask import mask_frames, perturbation_frames
from llama3_edu.generate import generate, stream
from llama3_edu.hardware import default_device
from llama3_edu.int8 import Int8Embedding, Int8Linear
from llama3_edu.memory import (
    format_bytes,
    int8_weight_bytes,
    kv_bytes,
    kv_bytes_per_token,
    max_batch,
    parameter_count,
    weight_bytes,
)
from llama3_edu.memory_recorder import MemoryRecorder
from llama3_edu.memory_use import MemoryReading, MemorySample, memory_frames, read_memory
from llama3_edu.model import Attention, Block, FeedForward, Llama, RMSNorm
from llama3_edu.positions import PAD, causal_mask, left_pad, right_pad
from llama3_edu.quantisation_frames import quantisation_frames
from llama3_edu.roofline import MACHINES, Cost, Machine, forward_cost, measure_machine
from llama3_edu.roofline_frames import MeasuredPass, roofline_frames, roofline_words
from llama3_edu.rope import rope_angles, rope_frequencies, rotate
from llama3_edu.sampling import greedy, sampler
from llama3_edu.sizes import calculator_frames, head_group_frames
from llama3_edu.stored import CheckpointError
from llama3_edu.thinning import thinned
from llama3_edu.tokenizer import Tokenizer
from llama3_edu.trace import Trace, growth_frames, recompute_frames
from llama3_edu.trace_blocks import beam_frames, block_frames, block_state, block_states
from llama3_edu.trace_prefix import prefix_frames
from llama3_edu.trace_schedule import schedule_frames
