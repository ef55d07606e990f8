"""How many bytes a model and its cache take: exact integers from the configuration alone."""

from llama3_edu.config import LlamaConfig

__all__ = ["parameter_count", "weight_bytes", "int8_weight_bytes", "kv_bytes_per_token", "kv_bytes", "max_batch", "format_bytes"]


def parameter_count(config: LlamaConfig) -> int:
    """Return how many numbers training had to find. A tied output projection counts once."""
    embedding = config.vocab_size * config.dim
    attention = 2 * config.dim * config.n_heads * config.head_dim + 2 * config.dim * config.kv_dim
    feed_forward = 3 * config.dim * config.hidden_dim
    norms = 2 * config.dim
    output = 0 if config.tie_embeddings else embedding
    return embedding + config.n_layers * (attention + feed_forward + norms) + config.dim + output


def weight_bytes(config: LlamaConfig, *, bits: int = 16) -> int:
    """Return the bytes all parameters take at `bits` bits each, rounded up to a whole byte."""
    return _bytes(parameter_count(config), bits)


def int8_weight_bytes(config: LlamaConfig, *, bits: int = 16) -> int:
    """Return the bytes of a model loaded with `weight_bits=8`: 8 bits per number of a matrix, `bits` per row's scale and norm.

    A little more than `weight_bytes(config, bits=8)`, which counts no scales: 8,033,793,024 for Llama 3 8B, 0.04 % more.
    """
    norms = (2 * config.n_layers + 1) * config.dim
    rows_per_layer = config.n_heads * config.head_dim + 2 * config.kv_dim + 2 * config.hidden_dim + 2 * config.dim
    rows = config.n_layers * rows_per_layer + config.vocab_size * (1 if config.tie_embeddings else 2)
    return parameter_count(config) - norms + _bytes(rows + norms, bits)


def kv_bytes_per_token(config: LlamaConfig, *, bits: int = 16) -> int:
    """Return the bytes one token's keys and values take: layers × KV heads × head_dim × 2 × bits / 8, rounded up."""
    return _bytes(config.kv_elements_per_token, bits)


def kv_bytes(config: LlamaConfig, *, seq_len: int, batch: int = 1, bits: int = 16) -> int:
    """Return the bytes the keys and values of `batch` rows of `seq_len` tokens take.

    Raises:
        ValueError: `seq_len` or `batch` is below 0, or `bits` below 1.
    """
    _at_least(0, seq_len=seq_len, batch=batch)
    return _bytes(batch * seq_len * config.kv_elements_per_token, bits)


def max_batch(config: LlamaConfig, *, seq_len: int, memory_bytes: int, bits: int = 16, bits_of_weights: int | None = None) -> int:
    """Return how many rows of `seq_len` tokens fit in `memory_bytes` beside the weights; 0 if none do.

    Keys and values take `bits` bits each, and so do the weights unless `bits_of_weights` says otherwise.

    Raises:
        ValueError: `seq_len` is below 1, `memory_bytes` below 0, or `bits` or `bits_of_weights` below 1.
    """
    _at_least(1, seq_len=seq_len)
    _at_least(0, memory_bytes=memory_bytes)
    left = memory_bytes - weight_bytes(config, bits=bits if bits_of_weights is None else bits_of_weights)
    return max(0, left // kv_bytes(config, seq_len=seq_len, bits=bits))


def format_bytes(nbytes: int) -> str:
    """Return a size for people, in binary units and to four digits: `131072` becomes `128 KiB`.

    Raises:
        ValueError: `nbytes` is below 0.
    """
    _at_least(0, nbytes=nbytes)
    size, unit = float(nbytes), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1023.5:  # more than that is written as 1024
            break
        size, unit = size / 1024, bigger
    digits = 0 if size == int(size) else max(0, 3 - len(str(int(size))) + 1)
    return f"{size:.{digits}f} {unit}"


def _bytes(elements: int, bits: int) -> int:
    _at_least(1, bits=bits)
    return -(-elements * bits // 8)


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} should be at least {least}; it is {value}")
