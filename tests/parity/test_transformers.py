"""Our model against transformers' on random weights: same files, same logits, same text."""

import json
from dataclasses import dataclass, field, replace
from importlib import resources

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama3_edu.attention import attend, fused_attend
from llama3_edu.cache import ContiguousCache, GrowingCache, NoCache
from llama3_edu.checkpoint import load_checkpoint, load_tiny, save_checkpoint
from llama3_edu.config import LlamaConfig
from llama3_edu.generate import generate
from llama3_edu.positions import PAD, left_pad, right_pad
from llama3_edu.rope import rope_frequencies

VOCAB, PROMPT_LEN = 61, 72
SPLITS = [[72], [1] * 72, [40, 32], [5, 1, 30, 36], [71, 1]]
CACHES = [GrowingCache, ContiguousCache]


def llama3_rope(factor, theta=100.0, original=32):
    """Scaled RoPE, so small that the prompt reaches far beyond the original context and few pairs cover all kinds of scaling."""
    return {
        "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One shape, and how it is written to disk."""

    name: str
    heads: int
    kv_heads: int
    tied: bool = False
    head_dim: int | None = None
    dim: int = 48
    layers: int = 3
    rope: dict = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 500_000.0})
    shard_size: str = "1GB"
    old_form: bool = False


CASES = [
    Case("every head its own", heads=4, kv_heads=4),
    Case("one for all, tied", heads=6, kv_heads=1, tied=True),
    Case("grouped", heads=6, kv_heads=2, rope=llama3_rope(8.0)),
    Case("grouped, tied, factor 32", heads=8, kv_heads=2, dim=64, tied=True, rope=llama3_rope(32.0)),
    Case("wide heads, factor 8", heads=4, kv_heads=2, head_dim=20, tied=True, rope=llama3_rope(8.0, theta=10_000.0)),
    Case("narrow heads, plain", heads=4, kv_heads=2, head_dim=6, rope={"rope_type": "default", "rope_theta": 10_000.0}),
    Case("sharded, factor 32", heads=4, kv_heads=1, rope=llama3_rope(32.0, theta=1000.0), shard_size="20KB"),
    Case("sharded, tied", heads=4, kv_heads=4, tied=True, shard_size="20KB", rope=llama3_rope(8.0)),
    Case("old form, scaled", heads=4, kv_heads=2, rope=llama3_rope(32.0), old_form=True),
    Case("old form, plain", heads=4, kv_heads=2, head_dim=16, old_form=True),
    Case("deep and narrow", heads=2, kv_heads=1, dim=16, layers=8, rope=llama3_rope(8.0)),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture
def theirs(case, generator):
    return make_theirs(case, generator)


@pytest.fixture
def directory(case, theirs, tmp_path):
    return save_theirs(theirs, case, tmp_path)


@pytest.fixture
def tokens(generator):
    return torch.randint(VOCAB, (2, PROMPT_LEN), generator=generator)


def make_theirs(case, generator):
    config = TheirConfig(
        hidden_size=case.dim, intermediate_size=2 * case.dim + 4, num_hidden_layers=case.layers, vocab_size=VOCAB,
        num_attention_heads=case.heads, num_key_value_heads=case.kv_heads, head_dim=case.head_dim, rms_norm_eps=1e-5,
        tie_word_embeddings=case.tied, rope_parameters=case.rope, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Large enough for logits of several units and for sharp attention: a mistake anywhere shows.
            noise = 0.2 * torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + noise if "norm" in name else noise)
    return model


def save_theirs(model, case, path):
    model.save_pretrained(path, max_shard_size=case.shard_size)
    fields = json.loads((path / "config.json").read_text())
    assert "rope_parameters" in fields
    assert (len(list(path.glob("*.safetensors"))) > 1) == (case.shard_size != "1GB")
    if case.old_form:
        rope = fields.pop("rope_parameters")
        fields["rope_theta"] = rope.pop("rope_theta")
        fields["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        (path / "config.json").write_text(json.dumps(fields))
    return path


@torch.inference_mode()
def logits_of(model, tokens, cache, split):
    """Feed a prompt in pieces; return the logits of every token."""
    parts, start = [], 0
    for length in split:
        parts.append(model(tokens[:, start : start + length], cache))
        start += length
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("case", [case for case in CASES if "factor" in case.rope], ids=lambda case: case.name)
def test_scaled_cases_keep_blend_and_stretch(case, directory):
    # Or the comparisons below would leave a part of the scaling untried.
    config = load_checkpoint(directory).config
    plain, scaled = rope_frequencies(replace(config, rope_scaling=None)), rope_frequencies(config)
    shares = (plain / scaled).tolist()
    factor = config.rope_scaling.factor
    assert shares[0] == 1 and shares[-1] == pytest.approx(factor)
    assert any(1.01 < share < 0.99 * factor for share in shares)


@torch.inference_mode()
def test_logits_agree_without_a_cache(directory, theirs, tokens, agree):
    ours = load_checkpoint(directory)
    expected = theirs(tokens).logits
    for function in (attend, fused_attend):
        ours.use_attention(function)
        agree(ours(tokens, NoCache()), expected)
    for length in (1, 7, 40):
        agree(ours.next_logits(tokens[:, :length], NoCache()), expected[:, length - 1])


@pytest.mark.parametrize("make_cache", CACHES)
@torch.inference_mode()
def test_logits_agree_for_every_cache_and_split(make_cache, directory, theirs, tokens, agree):
    ours = load_checkpoint(directory)
    expected = theirs(tokens).logits
    for split in SPLITS:
        agree(logits_of(ours, tokens, make_cache(ours.config, 2), split), expected)


@torch.inference_mode()
def test_greedy_text_agrees(directory, theirs, tokens):
    ours, prompt = load_checkpoint(directory), tokens[:, :40]
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False, pad_token_id=0)
    for cache in (NoCache(), GrowingCache(ours.config, 2), ContiguousCache(ours.config, 2)):
        assert torch.equal(generate(ours, prompt, max_new_tokens=30, cache=cache), expected)


@pytest.mark.parametrize("pad", [left_pad, right_pad])
@torch.inference_mode()
def test_ragged_batches_agree(pad, directory, theirs, tokens, agree):
    ours = load_checkpoint(directory)
    padded, positions = pad([tokens[0].tolist(), tokens[1, :29].tolist(), [3]])
    real = positions != PAD
    expected = theirs(padded, attention_mask=real.long(), position_ids=positions.clamp(min=0)).logits
    for cache in (NoCache(), GrowingCache(ours.config, 3), ContiguousCache(ours.config, 3)):
        agree(ours(padded, cache, positions)[real], expected[real])


@torch.inference_mode()
def test_greedy_text_of_ragged_batches_agrees(directory, theirs, tokens):
    ours = load_checkpoint(directory)
    padded, positions = left_pad([tokens[0].tolist(), tokens[1, :29].tolist()])
    mask = (positions != PAD).long()
    expected = theirs.generate(padded, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
    for cache in (NoCache(), GrowingCache(ours.config, 2), ContiguousCache(ours.config, 2)):
        assert torch.equal(generate(ours, padded, positions=positions, max_new_tokens=12, cache=cache), expected)


@pytest.mark.parametrize("shards", [1, 3])
@torch.inference_mode()
def test_they_load_what_we_save(shards, directory, theirs, tokens, tmp_path, agree):
    save_checkpoint(load_checkpoint(directory), tmp_path / "ours", shards=shards)
    again, report = LlamaForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    agree(again(tokens).logits, theirs(tokens).logits)


def swap_heads(tensors, name):
    weight = tensors[name]
    tensors[name] = torch.cat((weight[8:16], weight[:8], weight[16:]))


def neighbours_as_pairs(tensors, name):
    tensors[name] = tensors[name].unflatten(0, (-1, 2, 4)).transpose(1, 2).flatten(0, 2)


MISTAKES = {
    "heads in another order": lambda tensors: swap_heads(tensors, "model.layers.1.self_attn.q_proj.weight"),
    "RoPE over neighbours": lambda tensors: [
        neighbours_as_pairs(tensors, f"model.layers.{layer}.self_attn.{x}_proj.weight") for layer in range(3) for x in "qk"
    ],
    "gate and up exchanged": lambda tensors: tensors.update({
        "model.layers.0.mlp.gate_proj.weight": tensors["model.layers.0.mlp.up_proj.weight"].clone(),
        "model.layers.0.mlp.up_proj.weight": tensors["model.layers.0.mlp.gate_proj.weight"].clone(),
    }),
    "norms exchanged": lambda tensors: tensors.update({
        "model.layers.2.input_layernorm.weight": tensors["model.layers.2.post_attention_layernorm.weight"].clone(),
    }),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.inference_mode()
def test_a_mistake_in_the_weights_would_be_seen(mistake, tokens, tmp_path, generator):
    case = CASES[2]
    theirs = make_theirs(case, generator)
    save_theirs(theirs, case, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    MISTAKES[mistake](tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    assert (load_checkpoint(tmp_path)(tokens) - theirs(tokens).logits).abs().max().item() > 1e-2


@pytest.mark.parametrize("key, wrong", [("factor", 32.0), ("low_freq_factor", 1.5), ("original_max_position_embeddings", 64)])
@torch.inference_mode()
def test_a_mistake_in_the_rope_scaling_would_be_seen(key, wrong, tokens, tmp_path, generator):
    case = CASES[2]
    theirs = make_theirs(case, generator)
    save_theirs(theirs, case, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["rope_parameters"][key] = wrong
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert (load_checkpoint(tmp_path)(tokens) - theirs(tokens).logits).abs().max().item() > 1e-2


@pytest.mark.parametrize("preset", ["llama3-8b", "llama3.1-8b", "llama3.1-405b", "llama3.2-1b", "llama3.2-3b"])
def test_rope_frequencies_of_the_released_models_agree(preset):
    ours = LlamaConfig.from_preset(preset)
    theirs = TheirConfig(**{key: value for key, value in ours.to_hugging_face().items() if key != "architectures"})
    assert theirs.rope_parameters.get("factor") == (ours.rope_scaling and ours.rope_scaling.factor)
    expected = LlamaRotaryEmbedding(theirs).inv_freq
    torch.testing.assert_close(rope_frequencies(ours), expected, rtol=1e-6, atol=0)
    if ours.rope_scaling:
        computed, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
        assert attention_factor == 1.0
        torch.testing.assert_close(rope_frequencies(ours), computed, rtol=1e-6, atol=0)


@torch.inference_mode()
def test_the_bundled_model_agrees(agree):
    with resources.as_file(resources.files("llama3_edu") / "tiny") as directory:
        theirs = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
        their_tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    ours, tokenizer = load_tiny()
    text = "ROMEO:\nBut soft, what light through yonder window breaks?\nIt is the east.\n"
    token_ids = tokenizer.encode(text)
    assert token_ids == their_tokenizer.encode(text, add_special_tokens=False)
    tokens = torch.tensor([[tokenizer.bos_id, *token_ids]])
    agree(ours(tokens), theirs(tokens).logits)
    expected = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=40, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert torch.equal(generate(ours, tokens, max_new_tokens=40, cache=ContiguousCache(ours.config)), expected)
