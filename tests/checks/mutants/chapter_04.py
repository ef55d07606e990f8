"""Wrong answers to the exercises of chapter 4, each with what its learner must be told."""


def lengths(body: str) -> str:
    start = "def mask_from_lengths(held, new):\n    i = torch.arange(new.max())[None, :, None]\n    j = torch.arange((held + new).max())\n"
    return f"{start}    held, new = held[:, None, None], new[:, None, None]\n    return {body}"


def pieces(body: str, first: str = "cache.seq_lens[0]") -> str:
    lines = "\n".join(f"        {line}" for line in body.split("\n"))
    return f"def prefill_in_pieces(model, cache, tokens, room):\n    for first in range({first}, tokens.shape[1], room):\n{lines}\n    return logits"


def attending(mask: str, how: str = "attn_mask=mask, ") -> str:
    return (
        "def causal_attend(q, k, v):\n"
        "    new_len, kv_len = q.shape[1], k.shape[1]\n"
        "    q, k, v = (x.transpose(1, 2) for x in (q, k, v))\n"
        f"    mask = {mask}\n"
        f"    return F.scaled_dot_product_attention(q, k, v, {how}enable_gqa=True).transpose(1, 2)"
    )


ONES = "torch.ones(new_len, kv_len, dtype=torch.bool)"

MUTANTS = {
    "mask_from_lengths": {
        "upper left corner": (lengths("(j <= i) & (i < new)"), "upper left corner"),
        "not itself": (lengths("(j < held + i) & (i < new)"), "does not see itself"),
        "one too many": (lengths("(j <= held + i + 1) & (i < new)"), "one key too many"),
        "padding sees": (lengths("j <= held + i"), "Padding sees keys"),
        "hidden is True": (lengths("~((j <= held + i) & (i < new))"), "wrong way round"),
        "one corner for all": (
            lengths("(j <= (held + new).max() - new.max() + i) & (i < new)"),
            "equally long",
        ),
        "everything real": (lengths("(j < held + new) & (i < new)"), "False"),
        "turned": (lengths("((j <= held + i) & (i < new)).transpose(1, 2)"), "a query sees itself and all before it"),
        "numbers": (lengths("((j <= held + i) & (i < new)).int()"), "a tensor of torch.int32 came, wanted is torch.bool"),
    },
    "prefill_in_pieces": {
        "from the start": (
            pieces("logits = model.next_logits(tokens[:, first:first + room], cache)", first="0"),
            "were missing from the cache",
        ),
        "whole at once": (
            "def prefill_in_pieces(model, cache, tokens, room):\n    return model.next_logits(tokens[:, cache.seq_lens[0]:], cache)",
            "a piece of 2 tokens was fed, with room for 1",
        ),
        "one too many": (pieces("logits = model.next_logits(tokens[:, first:first + room + 1], cache)"), "with room for"),
        "drops the rest": (
            "def prefill_in_pieces(model, cache, tokens, room):\n"
            "    missing = tokens[:, cache.seq_lens[0]:]\n"
            "    for piece in missing[:, : missing.shape[1] // room * room].split(room, dim=1):\n"
            "        logits = model.next_logits(piece, cache)\n"
            "    return logits",
            "The last may be shorter",
        ),
        "no cache": (pieces("logits = model.next_logits(tokens[:, first:first + room])"), "without the cache that was given"),
        "keeps the first logits": (
            pieces("came = model.next_logits(tokens[:, first:first + room], cache)\nlogits = came if first == 0 else logits"),
            "Return what the last piece gave",
        ),
        "all logits": (pieces("logits = model(tokens[:, first:first + room], cache)"), "Only the logits behind the last token"),
        "the last tokens": (
            pieces("logits = model.next_logits(tokens[:, -1:].expand(-1, min(room, tokens.shape[1] - first)), cache)"),
            "but others, or in another order",
        ),
        "returns nothing": (
            pieces("logits = model.next_logits(tokens[:, first:first + room], cache)").replace("return logits", "pass"),
            "`return`",
        ),
    },
    "causal_attend": {
        "as it was found": (attending("None", "is_causal=True, "), "upper left corner"),
        "upper left corner": (attending(f"{ONES}.tril()"), "upper left corner"),
        "no mask": (attending("None"), "Every query sees every key"),
        "one too many": (attending(f"{ONES}.tril(kv_len - new_len + 1)"), "one key too many"),
        "not its own": (attending(f"{ONES}.tril(kv_len - new_len - 1)"), "does not see its own key"),
        "no mask in decode alone": (attending("None", "is_causal=new_len > 1, "), "upper left corner"),
        "upper triangle": (attending(f"{ONES}.triu(kv_len - new_len)"), "it sees every key"),
    },
}
