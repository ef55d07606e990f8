"""Wrong answers to the exercises of chapter 0, each with what its learner must be told."""

from textwrap import dedent


def rms_norm(*lines: str) -> str:
    return "def rms_norm(x, weight, eps):\n" + "".join(f"    {line}\n" for line in lines)


def rotate(first: str, second: str, angles: str = "positions[:, :, None, None] * frequencies", wide: str = "") -> str:
    return dedent(f"""
        def rotate(x, positions, frequencies):
            a, b = x.chunk(2, dim=-1)
            angles = {angles}
            cos, sin = angles.cos(){wide or ".to(x.dtype)"}, angles.sin(){wide or ".to(x.dtype)"}
            return torch.cat(({first}, {second}), dim=-1)
    """)


def swiglu(expression: str) -> str:
    return f"def swiglu(x, w1, w2, w3):\n    silu = torch.nn.functional.silu\n    return {expression}\n"


def count(
    table: str = "c.vocab_size * c.dim",
    tables: str = "(1 if c.tie_embeddings else 2)",
    q: str = "c.n_heads * c.head_dim",
    kv: str = "c.n_kv_heads * c.head_dim",
    ffn: str = "3",
    wide: str = "2",
    norms: str = "2",
    last: str = "c.dim",
    layers: str = "c.n_layers",
) -> str:
    block = f"c.dim * ({wide} * {q} + 2 * {kv}) + {ffn} * c.dim * c.hidden_dim + {norms} * c.dim"
    return f"def count_parameters(c):\n    return {tables} * {table} + {layers} * ({block}) + {last}\n"


WIDE = "wide = x.float()"

MUTANTS = {
    "rms_norm": {
        "is LayerNorm": (
            rms_norm("y = x - x.mean(-1, keepdim=True)", "return weight * y / (y.square().mean(-1, keepdim=True) + eps).sqrt()"),
            "LayerNorm",
        ),
        "root of the sum": (rms_norm("return weight * x / (x.square().sum(-1, keepdim=True) + eps).sqrt()"), "root of the mean"),
        "no root": (rms_norm("return weight * x / (x.square().mean(-1, keepdim=True) + eps)"), "Its root is missing"),
        "no weight": (rms_norm("return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()"), "weight is missing"),
        "eps outside": (rms_norm("return weight * x / (x.square().mean(-1, keepdim=True).sqrt() + eps)"), "under the root"),
        "one mean for all": (rms_norm("return weight * x / (x.square().mean() + eps).sqrt()"), "mean of its own"),
        "mean over tokens": (rms_norm("return weight * x / (x.square().mean(0, keepdim=True) + eps).sqrt()"), "last axis"),
        "squares overflow": (rms_norm("return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()"), "65,504"),
        "stays wide": (
            rms_norm(
                "wide = x.to(torch.promote_types(x.dtype, torch.float32))",
                "return weight * (wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt())",
            ),
            "the dtype of x again",
        ),
        "works in place": (
            rms_norm(WIDE, "x /= (wide.square().mean(-1, keepdim=True) + eps).sqrt()", "return weight * x"),
            "changed argument 1 in place",
        ),
    },
    "rotate": {
        "turns the other way": (rotate("a * cos + b * sin", "b * cos - a * sin"), "the other way"),
        "no minus": (rotate("a * cos + b * sin", "b * cos + a * sin"), "keeps the length"),
        "halves swapped": (rotate("b * cos + a * sin", "a * cos - b * sin"), "wrong order"),
        "pairs neighbours": (
            dedent("""
                def rotate(x, positions, frequencies):
                    angles = positions[:, :, None, None] * frequencies
                    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
                    a, b = x[..., 0::2], x[..., 1::2]
                    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
            """),
            "That pairs neighbours",
        ),
        "counts positions from 0": (
            rotate(
                "a * cos - b * sin",
                "b * cos + a * sin",
                "torch.arange(x.shape[1], device=x.device)[None, :, None, None] * frequencies",
            ),
            "which need not begin at 0",
        ),
        "angles in half precision": (
            rotate("a * cos - b * sin", "b * cos + a * sin", "(positions[:, :, None, None] * frequencies).to(x.dtype)"),
            "were rounded to the dtype of x",
        ),
        "forgets the position": (
            rotate("a * cos - b * sin", "b * cos + a * sin", "frequencies.expand(*positions.shape, 1, -1)"),
            "position × frequency",
        ),
        "becomes wide": (
            rotate("a * cos - b * sin", "b * cos + a * sin", wide=".float()"),
            "a tensor of torch.float32 came, wanted is torch.bfloat16",
        ),
        "heads take the place of tokens": (
            rotate("a * cos - b * sin", "b * cos + a * sin", "positions[:, None, :, None] * frequencies"),
            "a tensor of shape [1, 3, 3, 4] came",
        ),
    },
    "swiglu": {
        "gates the other branch": (swiglu("((x @ w1.T) * silu(x @ w3.T)) @ w2.T"), "wrong branch"),
        "gates with a sigmoid": (swiglu("((x @ w1.T).sigmoid() * (x @ w3.T)) @ w2.T"), "sigmoid alone"),
        "gates with GELU": (swiglu("(torch.nn.functional.gelu(x @ w1.T) * (x @ w3.T)) @ w2.T"), "gates with GELU"),
        "gates with ReLU": (swiglu("((x @ w1.T).relu() * (x @ w3.T)) @ w2.T"), "put the first through SiLU"),
        "SiLU of the product": (swiglu("silu((x @ w1.T) * (x @ w3.T)) @ w2.T"), "before the product"),
        "adds": (swiglu("(silu(x @ w1.T) + x @ w3.T) @ w2.T"), "A gate multiplies"),
        "no w3": (swiglu("silu(x @ w1.T) @ w2.T"), "w3 is missing"),
        "not transposed": (swiglu("(silu(x @ w1) * (x @ w3)) @ w2"), "stored [out, in]"),
        "stays in the hidden width": (swiglu("silu(x @ w1.T) * (x @ w3.T)"), "project the product with w2"),
    },
    "count_parameters": {
        "as many KV heads as heads": (count(kv="c.n_heads * c.head_dim"), "They have n_kv_heads"),
        "heads make dim": (count(q="c.dim"), "the configuration says both"),
        "two tables though tied": (count(tables="2"), "Count it once"),
        "one table though untied": (count(tables="1"), "two tables"),
        "no last norm": (count(last="0"), "behind all the blocks"),
        "one norm a block": (count(norms="1"), "A block has two norms"),
        "no norms": (count(norms="0", last="0"), "The norms are missing"),
        "one block": (count(layers="1"), "That is one block"),
        "two matrices in the feed-forward": (count(ffn="2"), "three matrices"),
        "no wo": (count(wide="1"), "as large as wq"),
        "biases as well": (count(norms="4"), "named_parameters"),
        "in floats": (count() + "count = count_parameters\ncount_parameters = lambda c: count(c) / 1", "(float) came"),
        "builds it": (
            "def count_parameters(c):\n    return sum(w.numel() for w in le.Llama(c).parameters())\n",
            "405 billion",
        ),
        "8B by heart": ("def count_parameters(c):\n    return 8_030_261_248\n", "8030261248 came"),
    },
}
