"""Our beams against transformers': the same ids and the same scores, best first."""

import pytest
import torch
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from llama3_edu import BlockPool, ContiguousCache, GrowingCache, NoCache, PagedCache, beam_search, load_checkpoint

VOCAB, PROMPT_LEN = 23, 9
SHARPNESS = (0.15, 0.3, 0.6)
"""How large the weights are: from text that wanders to text that repeats itself."""

CACHES = {
    "none": lambda config: NoCache(),
    "growing": GrowingCache,
    "contiguous": ContiguousCache,
    "paged": lambda config: PagedCache(BlockPool(config, num_blocks=200, block_size=4), [[]]),
}


@pytest.fixture(scope="module", params=range(len(SHARPNESS)))
def models(request, tmp_path_factory):
    """One random model, theirs and ours."""
    seed = request.param
    generator = torch.Generator().manual_seed(seed)
    config = TheirConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCAB,
        rms_norm_eps=1e-5, max_position_embeddings=128, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            noise = SHARPNESS[seed] * torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.1 * noise if "norm" in name else noise)
    path = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(path)
    return theirs, load_checkpoint(path)


def prompt_of(seed):
    return torch.randint(VOCAB, (1, PROMPT_LEN), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def their_beams(model, tokens, *, num_beams, max_new_tokens, eos_id, length_penalty):
    """Ids without what is filled up behind an end, and scores. One beam is a greedy search to them: added up here."""
    ends = [] if eos_id is None else [eos_id] if isinstance(eos_id, int) else eos_id
    found = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), num_beams=num_beams, num_return_sequences=num_beams, do_sample=False,
        max_new_tokens=max_new_tokens, eos_token_id=eos_id, pad_token_id=0, length_penalty=length_penalty, early_stopping=False,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    beams = [cut(row, ends) for row in found.sequences.tolist()]
    if num_beams > 1:
        return beams, found.sequences_scores
    new = beams[0][PROMPT_LEN:]
    total = sum(scores[0].log_softmax(dim=-1)[token_id] for scores, token_id in zip(found.scores, new))
    return beams, (total / len(new) ** length_penalty)[None]


def cut(row, ends):
    """A row up to its first end, the prompt aside."""
    end = next((index for index in range(PROMPT_LEN, len(row)) if row[index] in ends), len(row) - 1)
    return row[: end + 1]


def assert_same_beams(models, *, cache="growing", seed=0, **options):
    theirs, ours = models
    expected, expected_scores = their_beams(theirs, prompt_of(seed), **options)
    found = beam_search(ours, prompt_of(seed), cache=CACHES[cache](ours.config), **options)
    eos_id = options["eos_id"]
    ends = [] if eos_id is None else [eos_id] if isinstance(eos_id, int) else eos_id
    assert [cut(row, ends) for row in found.tokens.tolist()] == expected
    assert found.tokens.shape[1] == max(map(len, expected))
    torch.testing.assert_close(found.scores, expected_scores, rtol=0, atol=1e-4)
    return expected


@pytest.mark.parametrize("num_beams", range(1, 7))
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 0.6, 1.0, 2.0])
def test_without_an_end_they_agree(models, num_beams, length_penalty):
    assert_same_beams(models, num_beams=num_beams, max_new_tokens=12, eos_id=None, length_penalty=length_penalty, seed=num_beams)


@pytest.mark.parametrize("num_beams", range(1, 7))
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 0.6, 1.0, 2.0])
def test_with_an_end_they_agree(models, num_beams, length_penalty):
    for eos_id in (3, 11):
        assert_same_beams(
            models, num_beams=num_beams, max_new_tokens=14, eos_id=eos_id, length_penalty=length_penalty, seed=eos_id
        )


@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_with_several_ends_they_agree(models, num_beams, length_penalty):
    options = {"num_beams": num_beams, "max_new_tokens": 14, "length_penalty": length_penalty}
    assert_same_beams(models, eos_id=[2, 7, 19], **options)


@pytest.mark.parametrize("cache", CACHES)
def test_every_cache_agrees(models, cache):
    assert_same_beams(models, num_beams=4, max_new_tokens=15, eos_id=5, length_penalty=1.0, cache=cache)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3])
def test_short_searches_agree(models, max_new_tokens):
    assert_same_beams(models, num_beams=4, max_new_tokens=max_new_tokens, eos_id=9, length_penalty=1.0)


def test_some_beams_end_early_and_some_searches_too(models):
    # Or the comparisons with an end would compare nothing that the ones without do not.
    options = {"num_beams": 4, "max_new_tokens": 14, "length_penalty": 0.0}
    searches = [their_beams(models[0], prompt_of(eos_id), eos_id=eos_id, **options) for eos_id in range(VOCAB)]
    lengths = [len(beam) for beams, _ in searches for beam in beams]
    assert min(lengths) < PROMPT_LEN + 6 and len(set(lengths)) > 4
