"""Other right answers to the exercises of chapter 7."""

VARIANTS = {
    "cache_bytes": [
        "def cache_bytes(config, *, seq_len, batch, bits):\n    return le.kv_bytes(config, seq_len=seq_len, batch=batch, bits=bits)",
        "def cache_bytes(config, **sizes):\n    return le.kv_bytes_per_token(config, bits=sizes['bits']) * sizes['batch'] * sizes['seq_len']",
    ],
    "largest_batch": [
        """
def largest_batch(config, *, seq_len, gib):
    return le.max_batch(config, seq_len=seq_len, memory_bytes=gib * 1024**3)
""",
        """
def largest_batch(config, *, seq_len, gib):
    batch = 0
    while le.weight_bytes(config) + le.kv_bytes(config, seq_len=seq_len, batch=2 * batch + 1) <= gib * 2**30:
        batch = 2 * batch + 1
    while le.weight_bytes(config) + le.kv_bytes(config, seq_len=seq_len, batch=batch + 1) <= gib * 2**30:
        batch += 1
    return batch
""",
    ],
    "rounding_errors": [
        """
def rounding_errors(nbytes, count, *, step):
    early, late = round(nbytes / step) * step * count, round(nbytes * count / step) * step
    return early - nbytes * count, late - nbytes * count
""",
        """
def rounding_errors(nbytes, count, *, step):
    def off(number):
        rest = number % step
        return step - rest if 2 * rest > step else -rest

    return off(nbytes) * count, off(nbytes * count)
""",
    ],
}
