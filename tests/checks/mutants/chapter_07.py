"""Wrong answers to the exercises of chapter 7, each with what its learner must be told."""


def product(body: str) -> str:
    return f"def cache_bytes(config, *, seq_len, batch, bits):\n    return {body}"


def fitting(body: str, weights: str = "le.weight_bytes(config)", unit: str = "2**30") -> str:
    return (
        "def largest_batch(config, *, seq_len, gib):\n"
        f"    left = gib * {unit} - {weights}\n"
        f"    return {body.replace('ROW', 'le.kv_bytes(config, seq_len=seq_len)')}"
    )


def apart(early: str, late: str, body: str = "early - exact, late - exact") -> str:
    return (
        "def rounding_errors(nbytes, count, *, step):\n"
        "    exact = nbytes * count\n"
        f"    early = {early}\n"
        f"    late = {late}\n"
        f"    return {body}"
    )


NUMBERS = "batch * seq_len * config.n_layers * config.n_kv_heads * config.head_dim * 2"
EARLY, LATE = "round(nbytes / step) * step * count", "round(exact / step) * step"

MUTANTS = {
    "cache_bytes": {
        "no values": (product(f"{NUMBERS} * bits // 8 // 2"), "there is a factor of 2"),
        "query heads": (product(f"{NUMBERS.replace('n_kv_heads', 'n_heads')} * bits // 8"), "not `n_heads` and not `dim`"),
        "the width of the model": (
            product("2 * batch * seq_len * config.n_layers * config.n_heads * config.dim // config.n_heads * bits // 8"),
            "not `n_heads` and not `dim`",
        ),
        "one layer": (product(f"{NUMBERS.replace('config.n_layers * ', '')} * bits // 8"), "`n_layers` is missing"),
        "one row": (product(f"{NUMBERS.replace('batch * ', '')} * bits // 8"), "`batch` is missing"),
        "bits": (product(f"{NUMBERS} * bits"), "A byte has 8 of them"),
        "elements": (product(NUMBERS), "how many numbers there are"),
        "always 16 bits": (product(f"{NUMBERS} * 2"), "takes two bytes for every number"),
        "whole bytes per number": (product(f"{NUMBERS} * (bits // 8)"), "is 0 for 4 bits"),
        "a float": (product(f"{NUMBERS} * bits / 8"), "divide with `//`"),
        "in GiB": (product(f"{NUMBERS} * bits // 8 / 2**30"), "Multiply one factor at a time"),
        "one token too many": (
            product(f"{NUMBERS.replace('seq_len', '(seq_len + 1)')} * bits // 8"),
            "Multiply one factor at a time",
        ),
    },
    "largest_batch": {
        "no weights": (fitting("left // ROW", weights="0"), "take them off first"),
        "GB": (fitting("max(0, left // ROW)", unit="10**9"), "10 ** 9 are a GB"),
        "rounded up": (fitting("max(0, -(-left // ROW))"), "round down"),
        "parameters for bytes": (fitting("max(0, left // ROW)", weights="le.parameter_count(config)"), "two bytes"),
        "less than none": (fitting("left // ROW"), "that is 0, not less"),
        "a float": (fitting("left / ROW"), "divide with `//`"),
        "one too few": (fitting("max(0, left // ROW - 1)"), "Take the weights from the memory"),
        "one token each": (
            fitting("max(0, left // le.kv_bytes_per_token(config))"),
            "Take the weights from the memory",
        ),
    },
    "rounding_errors": {
        "late first": (apart(EARLY, LATE, "late - exact, early - exact"), "rounding before the product comes first"),
        "signs": (apart(EARLY, LATE, "exact - early, exact - late"), "counts above 0"),
        "no signs": (apart(EARLY, LATE, "abs(early - exact), abs(late - exact)"), "keep the sign"),
        "down": (apart("nbytes // step * step * count", "exact // step * step"), "always rounds down"),
        "not multiplied": (apart("round(nbytes / step) * step", LATE, "early - nbytes, late - exact"), "a single one of them"),
        "the products themselves": (apart(EARLY, LATE, "early, late"), "From each take the exact product"),
        "up": (apart("-(-nbytes // step) * step * count", "-(-exact // step) * step"), "From each take the exact product"),
        "floats": (apart(EARLY, LATE, "float(early - exact), float(late - exact)"), "(float) came"),
    },
}
