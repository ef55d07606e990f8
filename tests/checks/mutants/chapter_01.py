"""Wrong answers to the exercises of chapter 1, each with what its learner must be told."""

from textwrap import dedent


def write(
    choose: str = "model(tokens)[:, -1].argmax(dim=-1, keepdim=True)",
    steps: str = "max_new_tokens",
    append: str = "torch.cat((tokens, chosen), dim=1)",
    give: str = "tokens",
) -> str:
    return dedent(f"""
        def write_greedily(model, tokens, max_new_tokens):
            prompt = tokens
            for _ in range({steps}):
                chosen = {choose}
                tokens = {append}
            return {give}
    """)


def count(
    size: str = "inputs[0].shape[0] * inputs[0].shape[1]",
    layer: str = "layer=layer",
    watched: str = "enumerate(model.layers)",
    give: str = "counts",
    run: str = "run()",
    remove: str = "hook.remove()",
) -> str:
    return dedent(f"""
        def count_projections(model, run):
            counts = [0] * len(model.layers)
            hooks = []
            for layer, block in {watched}:
                def add(module, inputs, output, {layer}):
                    counts[layer] += {size}
                hooks.append(block.attention.wk.register_forward_hook(add))
            {run}
            for hook in hooks:
                {remove}
            return {give}
    """)


def work(
    m: str = "range(p, p + n)", pairs: str = "m * (m + 1) // 2", passes: str = "m", give: str = "sum(passes), sum(pairs)"
) -> str:
    return dedent(f"""
        def naive_work(p, n):
            passes, pairs = [], []
            for m in {m}:
                passes.append({passes})
                pairs.append({pairs})
            return {give}
    """)


MUTANTS = {
    "write_greedily": {
        "first row": (write("model(tokens)[:, 0].argmax(dim=-1, keepdim=True)"), "the first row of logits"),
        "newest token alone": (
            write("model(tokens[:, -1:])[:, -1].argmax(dim=-1, keepdim=True)"),
            "feeds the newest token alone",
        ),
        "prompt again and again": (write("model(prompt)[:, -1].argmax(dim=-1, keepdim=True)"), "over the prompt each time"),
        "keeps the prompt to itself": (write(give="tokens[:, prompt.shape[1]:]"), "The prompt is missing"),
        "one too many": (write(steps="max_new_tokens + 1"), "one token too many"),
        "one too few": (write(steps="max_new_tokens - 1"), "one token too few"),
        "first row chooses for all": (
            write("model(tokens)[:1, -1].argmax(dim=-1, keepdim=True).expand(len(tokens), 1)"),
            "chooses for itself",
        ),
        "least likely": (write("model(tokens)[:, -1].argmin(dim=-1, keepdim=True)"), "least likely"),
        "forgets to append": (write(append="tokens"), "a tensor of shape [1, 2] came, wanted is [1, 4]"),
        "puts it in front": (write(append="torch.cat((chosen, tokens), dim=1)"), "take the last row of logits"),
    },
    "count_projections": {
        "counts calls": (count("1"), "That counts calls"),
        "one row of the batch": (count("inputs[0].shape[1]"), "has tokens of its own"),
        "rows of the batch": (count("inputs[0].shape[0]"), "counts rows of the batch"),
        "numbers": (count("inputs[0].numel()"), "That counts numbers"),
        "layer 0 for all": (count(give="[counts[0]] * len(counts)"), "layer 0's count for every layer"),
        "all layers together": (count(give="[sum(counts)] * len(counts)"), "adds the layers up"),
        "binds late": (
            count().replace(", layer=layer)", ")"),
            "a function made in a loop",
        ),
        "runs too early": (count(watched="[run()] and enumerate(model.layers)", run="pass"), "Has run() been called"),
        "leaves its hooks": (count(remove="pass"), "goes on counting"),
        "one number": (count(give="sum(counts)"), "wanted is a list"),
        "runs twice": (count(run="run(), run()"), "call run() once"),
    },
    "naive_work": {
        "one step late": (work("range(p + 1, p + n + 1)"), "one step late"),
        "one step too many": (work("range(p, p + n + 1)"), "One step too many"),
        "nothing repeated": (
            "def naive_work(p, n):\n    return p + n - 1, (p + n - 1) * (p + n) // 2\n",
            "when nothing is repeated",
        ),
        "from one token": (
            "def naive_work(p, n):\n    return n * (n + 1) // 2, n * (n + 1) * (n + 2) // 6\n",
            "starts from a single token",
        ),
        "no mask": (work(pairs="m * m"), "without the mask"),
        "not with itself": (work(pairs="m * (m - 1) // 2"), "each token with itself"),
        "pairs of the last step": (work(give="sum(passes), pairs[-1]"), "those of the last step"),
        "one pass over the text": (
            "def naive_work(p, n):\n    return p + n, (p + n) * (p + n + 1) // 2\n",
            "the whole text at once",
        ),
        "floats": (work(pairs="m * (m + 1) / 2", passes="m / 1"), "`//` stays"),
        "rounded": (
            dedent("""
                def naive_work(p, n):
                    end = p + n - 1
                    cubes = int(end * (end + 1) * (end + 2) / 6) - (p - 1) * p * (p + 1) // 6
                    return n * p + n * (n - 1) // 2, cubes
            """),
            "for prompt_len = 8192, new_tokens = 1000003",
        ),
        "a list": (work(give="[sum(passes), sum(pairs)]"), "wanted is a tuple"),
    },
}
