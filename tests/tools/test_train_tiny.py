"""The training script on a text of its own, and the checkpoint it left in the package."""

import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_models import assert_same, random_tokens
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaForCausalLM

from llama3_edu import Llama, Tokenizer, attend, causal_mask, load_tiny

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "llama3_edu" / "tiny"
sys.path.append(str(ROOT / "tools"))

import train_tiny  # noqa: E402
from train_tiny import (  # noqa: E402
    Batches,
    Dropout,
    Recipe,
    Training,
    encode_forgetfully,
    nats_per_character,
    read_corpus,
    split,
    train,
)

SMALL = Recipe(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, vocab_size=300, window=16, long_window=32, horizon=10, cooldown=4,
    batch_tokens=128, steps=8, warmup=2, reencode_every=3,
)  # fmt: skip
WORDS = "the a king queen fool walks sings to castle garden night and never ROMEO: JULIET: O, sweet good my lord\n".split(" ")


def made_up(words: int, *, seed: int = 5) -> str:
    chance = random.Random(seed)
    return " ".join(chance.choice(WORDS) for _ in range(words))


TEXT = made_up(2000)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tiny.train_tokenizer(TEXT, SMALL.vocab_size)


def everything(training: Training) -> dict[str, torch.Tensor]:
    averaged = {f"averaged {name}": weight for name, weight in training.averaged.state_dict().items()}
    return training.model.state_dict() | averaged


def assert_identical(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


# Training


def test_training_lowers_the_loss(tokenizer):
    recipe = replace(SMALL, steps=40, horizon=60, cooldown=10, forget=0.0, matrix_lr=1e-2, vector_lr=1e-2)
    training, batches = Training(recipe), Batches(tokenizer, TEXT, recipe)
    losses = [training.learn(*batches[step]) for step in range(recipe.steps)]
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


def test_stopped_and_resumed_is_the_same_as_uninterrupted(tmp_path, monkeypatch):
    uninterrupted = train(TEXT, SMALL, tmp_path / "whole")
    learn = Training.learn

    def learn_until_asked_to_stop(training: Training, *batch: torch.Tensor) -> float:
        if training.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(training, *batch)

    monkeypatch.setattr(Training, "learn", learn_until_asked_to_stop)
    assert train(TEXT, SMALL, tmp_path / "parts").step == 4  # the step it was in is finished
    monkeypatch.undo()
    assert_identical(everything(train(TEXT, SMALL, tmp_path / "parts")), everything(uninterrupted))


def test_the_end_of_the_text_teaches_nothing(tmp_path):
    trained_on, held_out = split(TEXT)
    assert len(held_out) == pytest.approx(len(TEXT) / 10, abs=1) and trained_on + held_out == TEXT
    other = trained_on + "z" * len(held_out)
    one, two = train(TEXT, SMALL, tmp_path / "one"), train(other, SMALL, tmp_path / "two")
    assert_identical(everything(one), everything(two))
    checkpoints = (tmp_path / "one" / "checkpoint", tmp_path / "two" / "checkpoint")
    assert len({(checkpoint / "tokenizer.json").read_text() for checkpoint in checkpoints}) == 1


def test_a_state_of_another_recipe_is_refused(tmp_path):
    Training(SMALL).save(tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"another recipe.*'seed': 1623.*wanted.*'seed': 7"):
        train(TEXT, replace(SMALL, seed=7), tmp_path)


def test_a_text_with_another_hash_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    with pytest.raises(ValueError, match=r"text\.txt is not the text wanted: its SHA-256 should be 86c4e6aa\w+; it is \w{64}$"):
        read_corpus(path)


# Its parts


def test_attention_in_training_is_attention(generator):
    q = torch.randn(2, 7, 4, 8, generator=generator)
    k, v = (torch.randn(2, 7, 2, 8, generator=generator) for _ in "kv")
    positions = torch.arange(7).expand(2, 7)
    mask = causal_mask(positions, positions)
    assert_same(train_tiny.attend_in_training(q, k, v, mask), attend(q, k, v, mask), tolerance=1e-6)
    assert_same(train_tiny.attend_in_training(q, k, v, None), attend(q, k, v, None), tolerance=1e-6)


def test_dropout_drops_its_share_and_keeps_the_mean():
    dropout, ones = Dropout(0.25, device="cpu"), torch.ones(301, 333)
    assert dropout(ones) is ones  # not training
    dropout.active = True
    dropout.reseed(1)
    first = dropout(ones)
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(dropout(ones), first)
    dropout.reseed(1)
    assert torch.equal(dropout(ones), first)


def test_forgetful_encoding_is_the_same_text_cut_otherwise(tokenizer):
    plain = tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert encode_forgetfully(tokenizer, TEXT, forget=0, pieces=1, seed=0).tolist() == plain
    readings = [encode_forgetfully(tokenizer, TEXT, forget=0.3, pieces=4, seed=seed).tolist() for seed in (0, 1)]
    assert readings[0] != readings[1]
    for reading in readings:
        assert len(reading) > len(plain) and tokenizer.decode(reading) == TEXT


@pytest.mark.parametrize("words", [3, 12, 400])
def test_nats_per_character_counts_every_token_once(tokenizer, words):
    model = Training(SMALL).averaged  # its blocks add nothing yet: what it predicts hangs on the last token alone
    model.use_attention(attend)
    text = made_up(words, seed=words)
    tokens = torch.tensor(tokenizer.encode(text).ids)  # with <|begin_of_text|> in front
    logits = model(tokens[:-1, None])[:, 0]
    expected = F.cross_entropy(logits, tokens[1:], reduction="sum").item() / len(text)
    assert nats_per_character(model, Tokenizer(tokenizer), text) == pytest.approx(expected, rel=1e-5)


# The bundled checkpoint


def test_the_bundled_checkpoint_is_what_the_script_makes():
    model, tokenizer = load_tiny()
    assert model.config == Recipe().config()
    assert tokenizer.vocab_size == model.config.vocab_size
    assert tuple(tokenizer.special_ids) == train_tiny.SPECIAL_TOKENS


def test_the_bundled_checkpoint_takes_at_most_8_megabytes():
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 8_000_000


def test_transformers_loads_the_bundled_checkpoint_and_agrees():
    theirs, report = LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, _ = load_tiny()
    tokens = random_tokens(2, 200, config=ours.config)
    with torch.inference_mode():
        assert_same(ours(tokens), theirs(tokens).logits, tolerance=1e-4)


def test_transformers_reads_the_same_tokens_and_ids():
    theirs, (_, ours) = AutoTokenizer.from_pretrained(TINY), load_tiny()
    text = "ROMEO:\nIt is the east, and Juliet is the sun. 'Tis 1597 — naïve?\n\n  O"
    assert theirs(text)["input_ids"] == ours.encode(text, bos=True)
    assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text)) == text
    config = LlamaForCausalLM.config_class.from_pretrained(TINY)
    assert (config.bos_token_id, config.eos_token_id) == (ours.bos_id, [ours.eos_id, ours.eot_id])


def test_the_bundled_weights_have_hugging_faces_names_and_type():
    reference = LlamaForCausalLM(LlamaForCausalLM.config_class.from_pretrained(TINY))
    with safe_open(TINY / "model.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
        assert file.metadata() == {"format": "pt"}
    expected = {name: weight.shape for name, weight in reference.named_parameters()}
    assert {name: weight.shape for name, weight in stored.items()} == expected
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}


def test_the_bundled_model_has_learnt_the_plays():
    model, tokenizer = load_tiny()
    assert isinstance(model, Llama)
    line = "ROMEO:\nWhat is the matter with thee, my good lord?\n"
    shuffled = "".join(random.Random(0).sample(line, len(line)))
    assert nats_per_character(model, tokenizer, line) < 2 < nats_per_character(model, tokenizer, shuffled)
