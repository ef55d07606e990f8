"""Train the small Llama 3 that the package carries: `python tools/train_tiny.py`, about half an hour on two CPU cores.

The text is tiny Shakespeare. Its last tenth is held out: neither the tokenizer nor the model learns from it. What is left is
a million characters, read some thirty times, so most of what stands here is there to keep the model from learning them by
heart: dropout, weight decay, an average of the weights, and an encoding of the text that differs at every reading.

Everything random at step s is drawn from generators seeded with the recipe's seed and s. A run that is stopped (Ctrl-C) and
started again ends with the same weights as one that was not.
"""

import argparse
import copy
import hashlib
import json
import math
import os
import random
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from llama3_edu import Llama, LlamaConfig, Tokenizer
from llama3_edu.checkpoint import load_checkpoint, save_checkpoint

CORPUS_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
CORPUS_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
HELD_OUT = 0.1
"""The share of the text, at its end, that nothing is trained on."""

SPECIAL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SPLIT = (  # Llama 3's: contractions, words, up to three digits, punctuation, line ends, spaces
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number that shapes the trained model. The defaults made the bundled one.

    Args:
        steps: weight updates. The learning rate rises for `warmup` of them, falls slowly along a line that would reach 0 at step
            `horizon`, and in the last `cooldown` steps falls to 0 quickly.
        batch_tokens: tokens that one update learns from.
        window: tokens read in one piece; `long_window` during the cooldown.
        matrix_lr: learning rate of the matrices, which Muon updates; `vector_lr`: of the embeddings and norms, by AdamW.
        weight_decay: how fast matrices shrink, in units of their learning rate.
        dropout: share of activations set to 0, after the embedding and after each half of each block, and inside the halves.
        forget: share of BPE merges left out when the text is encoded, at the start; it falls as the learning rate does.
        reencode_every: steps between two encodings of the text.
        average: share of itself that the running average of the weights keeps at a step.
    """

    dim: int = 256
    n_layers: int = 6
    n_heads: int = 8
    n_kv_heads: int = 2
    hidden_dim: int = 576
    vocab_size: int = 512
    window: int = 256
    long_window: int = 512
    batch_tokens: int = 8192
    steps: int = 2000
    warmup: int = 100
    horizon: int = 3800
    cooldown: int = 460
    matrix_lr: float = 2e-3
    vector_lr: float = 2e-3
    weight_decay: float = 0.3
    dropout: float = 0.2
    forget: float = 0.2
    reencode_every: int = 64
    average: float = 0.995
    seed: int = 1623

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            dim=self.dim, n_layers=self.n_layers, n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, hidden_dim=self.hidden_dim,
            vocab_size=self.vocab_size, max_seq_len=self.long_window, tie_embeddings=True,
        )  # fmt: skip

    def window_at(self, step: int) -> int:
        return self.long_window if step >= self.steps - self.cooldown else self.window

    def lr_share(self, step: int) -> float:
        """The learning rate at a step, as a share of its peak."""
        slow_fall = (self.horizon - step) / (self.horizon - self.warmup)
        return min((step + 1) / self.warmup, slow_fall) * self._cooldown_left(step)

    def forget_at(self, step: int) -> float:
        """The share of merges left out at a step."""
        return self.forget * (1 - step / self.horizon) * self._cooldown_left(step)

    def _cooldown_left(self, step: int) -> float:
        """1 until the cooldown begins, then down to 0 at the last step."""
        return min(1.0, (self.steps - step) / self.cooldown)


# The text


def read_corpus(path: Path) -> str:
    """Return the text of a file, after checking that it is tiny Shakespeare.

    Raises:
        ValueError: its SHA-256 is another.
    """
    return checked(path.read_bytes(), source=str(path))


def download_corpus(path: Path) -> None:
    """Fetch the text from its public address, and keep it if it is the right one."""
    with urllib.request.urlopen(CORPUS_URL, timeout=60) as answer:
        text = checked(answer.read(), source=CORPUS_URL)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


def checked(data: bytes, *, source: str) -> str:
    found = hashlib.sha256(data).hexdigest()
    if found != CORPUS_SHA256:
        raise ValueError(f"{source} is not the text wanted: its SHA-256 should be {CORPUS_SHA256}; it is {found}")
    return data.decode("utf-8")


def split(text: str) -> tuple[str, str]:
    """Return what is trained on, and what is held out."""
    end = int(len(text) * (1 - HELD_OUT))
    return text[:end], text[end:]


def train_tokenizer(text: str, vocab_size: int) -> Backend:
    """Learn a byte-level BPE in Llama 3's form: its way of splitting, its special tokens at the end of the vocabulary."""
    tokenizer = Backend(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    begin = SPECIAL_TOKENS[0]
    template = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def encode_forgetfully(tokenizer: Backend, text: str, *, forget: float, pieces: int, seed: int) -> Int[Tensor, "length"]:
    """Encode the text in pieces, each with its own random subset of the tokenizer's merges.

    The same words come out cut in other places at every reading. After arXiv 1910.13267, with merges left out for a whole
    piece of text instead of one by one, so that the fast encoder can be used as it is.
    """
    chance = random.Random(seed)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    forgetful = Backend.from_str(tokenizer.to_str())
    token_ids: list[int] = []
    for piece in range(pieces):
        kept = [merge for merge in merges if chance.random() >= forget]
        forgetful.model = models.BPE(model["vocab"], kept)
        start, end = (len(text) * i // pieces for i in (piece, piece + 1))
        token_ids += forgetful.encode(text[start:end], add_special_tokens=False).ids
    return torch.tensor(token_ids)


class Batches:
    """The windows of text that each step learns from: `batches[step]` is the same whenever it is asked for."""

    def __init__(self, tokenizer: Backend, text: str, recipe: Recipe) -> None:
        self._tokenizer, self._text, self._recipe = tokenizer, text, recipe
        self._begin = tokenizer.token_to_id(SPECIAL_TOKENS[0])
        self._reading, self._tokens = -1, torch.empty(0)

    def __getitem__(self, step: int) -> tuple[Int[Tensor, "rows window"], Int[Tensor, "rows window"]]:
        """Return tokens, and the token that follows each. Half of the rows open with the token that begins a text."""
        self._read(step // self._recipe.reencode_every)
        window = self._recipe.window_at(step)
        rows = max(1, self._recipe.batch_tokens // window)
        generator = torch.Generator().manual_seed(_seed(self._recipe, step))
        starts = torch.randint(len(self._tokens) - window, (rows, 1), generator=generator)
        taken = self._tokens[starts + torch.arange(window + 1)]
        taken[: rows // 2, 0] = self._begin
        return taken[:, :-1], taken[:, 1:]

    def _read(self, reading: int) -> None:
        if reading == self._reading:
            return
        forget = self._recipe.forget_at(reading * self._recipe.reencode_every)
        self._reading = reading
        self._tokens = encode_forgetfully(
            self._tokenizer, self._text, forget=forget, pieces=16, seed=_seed(self._recipe, reading)
        )


def _seed(recipe: Recipe, step: int) -> int:
    return recipe.seed * 1_000_003 + step


# The model in training


class Dropout:
    """Sets random activations to 0 and scales up the rest. Hooked onto a model's modules, so that the model stays as it is.

    Args:
        share: how many to drop; rounded to 256ths, because one random byte decides.
    """

    def __init__(self, share: float, *, device: str) -> None:
        self._limit = round(share * 256)
        self._generator = torch.Generator(device)
        self.active = False

    def reseed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.active or self._limit == 0:
            return x
        # Random numbers are the dear part on a CPU, and one of 64 bits decides for eight activations.
        numbers = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        octets = numbers.random_(-(2**63), None, generator=self._generator).view(torch.uint8)
        kept = (octets[: x.numel()] >= self._limit).view(x.shape)
        return x * kept.to(x.dtype).mul_(256 / (256 - self._limit))

    def hook_onto(self, model: Llama) -> None:
        model.tok_embeddings.register_forward_hook(lambda module, args, out: self(out))
        for block in model.layers:
            for module in (block.attention, block.feed_forward):
                module.register_forward_hook(lambda module, args, out: self(out))
            for module in (block.attention.wo, block.feed_forward.w2):
                module.register_forward_pre_hook(lambda module, args: (self(args[0]),))


def attend_in_training(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return what `attend` returns where all rows share one mask. Plain products of bfloat16: on a CPU twice as fast as fused."""
    batch, new_len, n_heads, head_dim = q.shape
    n_kv_heads = k.shape[2]
    grouped = q.to(v.dtype).view(batch, new_len, n_kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch * n_kv_heads, -1, head_dim)  # all queries of one KV head, head by head
    keys, values = (x.to(v.dtype).transpose(1, 2).flatten(0, 1) for x in (k, v))
    bias = torch.zeros(1, new_len, new_len, dtype=v.dtype, device=v.device)
    if mask is not None:
        bias = bias.masked_fill(~mask[:1], torch.finfo(v.dtype).min)
    bias = bias.repeat(1, n_heads // n_kv_heads, 1)
    weights = torch.baddbmm(bias, grouped, keys.transpose(1, 2), alpha=1 / math.sqrt(head_dim)).softmax(dim=-1).to(v.dtype)
    out = torch.bmm(weights, values).view(batch, n_kv_heads, -1, new_len, head_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, new_len, n_heads, head_dim)


def initialise(model: Llama, seed: int) -> None:
    """Draw the weights. What writes to the residual stream starts at 0, so that every block starts as no block."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith(("wo.weight", "w2.weight")):
            nn.init.zeros_(weight)
        elif weight.ndim == 2:
            std = 0.02 if name == "tok_embeddings.weight" else 0.5 / math.sqrt(weight.shape[1])
            nn.init.normal_(weight, std=std, generator=generator)


class Training:
    """A model, its optimisers and its averaged weights, at some step of a recipe."""

    def __init__(self, recipe: Recipe, *, device: str = "cpu") -> None:
        self.recipe, self.device, self.step = recipe, device, 0
        self.model = Llama(recipe.config(), attend=attend_in_training)
        initialise(self.model, recipe.seed)
        self.model.to(device)
        self.averaged = copy.deepcopy(self.model)
        self.dropout = Dropout(recipe.dropout, device=device)
        self.dropout.hook_onto(self.model)
        matrices = [weight for name, weight in self.model.layers.named_parameters() if weight.ndim == 2]
        others = [weight for name, weight in self.model.named_parameters() if not name.startswith("layers.") or weight.ndim == 1]
        self.optimisers = (
            torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=recipe.vector_lr, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def learn(self, tokens: Int[Tensor, "rows window"], targets: Int[Tensor, "rows window"]) -> float:
        """Take one step; return the loss it started from, in nats per token."""
        self.dropout.active = True
        self.dropout.reseed(_seed(self.recipe, self.step))
        with torch.autocast(self.device, torch.bfloat16):
            logits = self.model(tokens.to(self.device))
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.to(self.device).flatten())
        loss.backward()
        self.dropout.active = False
        self._update()
        self.step += 1
        return loss.item()

    def _update(self) -> None:
        share = self.recipe.lr_share(self.step)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, peak in zip(self.optimisers, (self.recipe.matrix_lr, self.recipe.vector_lr)):
            for group in optimiser.param_groups:
                group["lr"] = peak * share
            optimiser.step()
            optimiser.zero_grad()
        keep = min(self.recipe.average, (self.step + 1) / (self.step + 10))  # the first steps are soon forgotten
        with torch.no_grad():
            for average, weight in zip(self.averaged.parameters(), self.model.parameters()):
                average.lerp_(weight, 1 - keep)

    def save(self, path: Path) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        torch.save(state, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)  # whole or not at all

    def load(self, path: Path) -> None:
        """Go on from where a saved run stood.

        Raises:
            ValueError: the run followed another recipe.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(f"{path} was saved with another recipe: {state['recipe']}; wanted {asdict(self.recipe)}")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)


def train(text: str, recipe: Recipe, work: Path, *, device: str = "cpu", save_every: int = 200) -> Training:
    """Train on all but the end of the text, going on from what is in `work`; leave state and a checkpoint there."""
    work.mkdir(parents=True, exist_ok=True)
    trained_on, held_out = split(text)
    tokenizer = train_tokenizer(trained_on, recipe.vocab_size)
    batches = Batches(tokenizer, trained_on, recipe)
    training = Training(recipe, device=device)
    if (work / "state.pt").exists():
        training.load(work / "state.pt")
    with stop_requests() as stop, tqdm(total=recipe.steps, initial=training.step, unit="step") as bar:
        while training.step < recipe.steps and not stop:
            bar.set_postfix(loss=f"{training.learn(*batches[training.step]):.3f}", refresh=False)
            bar.update()
            if training.step % save_every == 0 or training.step == recipe.steps or stop:
                training.save(work / "state.pt")
                export(training, tokenizer, work / "checkpoint")
                nats = evaluate(work / "checkpoint", held_out, window=recipe.window_at(training.step - 1))
                bar.write(f"step {training.step}: {nats:.4f} nats per character on the held-out text")
    return training


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list that fills when somebody asks to stop (Ctrl-C or `kill`), so that a step is never left half done."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# The checkpoint


def export(training: Training, tokenizer: Backend, folder: Path) -> None:
    """Write the averaged weights, in bfloat16, and all that Hugging Face's tools want beside them."""
    save_checkpoint(training.averaged, folder, dtype=torch.bfloat16)
    begin, end, *_, turn_end = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
    ids = {"bos_token_id": begin, "eos_token_id": [end, turn_end]}
    names = {"bos_token": SPECIAL_TOKENS[0], "eos_token": SPECIAL_TOKENS[1], "clean_up_tokenization_spaces": False}
    names |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": training.recipe.long_window}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for file, fields in {"config": config | ids, "generation_config": ids, "tokenizer_config": names}.items():
        (folder / f"{file}.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def evaluate(folder: Path, text: str, *, window: int | None = None) -> float:
    """Return the nats per character of a checkpoint as it lies on disk, computed in float32."""
    model, tokenizer = load_checkpoint(folder, dtype=torch.float32), Tokenizer.from_pretrained(folder)
    return nats_per_character(model, tokenizer, text, window=window)


@torch.inference_mode()
def nats_per_character(model: Llama, tokenizer: Tokenizer, text: str, *, window: int | None = None) -> float:
    """Return how surprised a model is by a text: minus the log-probability of all its tokens, over the number of its characters.

    The text is encoded in one way, the tokenizer's own, with one `<|begin_of_text|>` in front, so that every token of the text
    is predicted, and each once. It is read in windows, each starting half a window after the one before; a window counts only
    for what no earlier one has predicted. So everything but the first half window is predicted from at least half a window.

    Args:
        window: tokens read in one piece; the model's `max_seq_len` when left out.
    """
    tokens = torch.tensor(tokenizer.encode(text, bos=True))
    window, total, predicted = window or model.config.max_seq_len, 0.0, 0
    for start in range(0, len(tokens) - 1, window // 2):
        piece = tokens[start : start + window + 1]
        fresh = predicted - start  # the first target of this window that has not been counted
        losses = F.cross_entropy(model(piece[None, :-1])[0].float(), piece[1:], reduction="none")
        total += losses[fresh:].double().sum().item()
        predicted = start + len(piece) - 1
        if predicted == len(tokens) - 1:
            break
    return total / len(text)


def main() -> None:
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="the text; downloaded when left out")
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="folder of state and checkpoint: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=best, help="default here: %(default)s")
    parser.add_argument("--evaluate", type=Path, metavar="CHECKPOINT", help="print its nats per character; train nothing")
    options = parser.parse_args()
    corpus = options.corpus or options.work / "tinyshakespeare.txt"
    try:
        if options.corpus is None and not corpus.exists():
            download_corpus(corpus)
        text = read_corpus(corpus)
        if options.evaluate is None:
            train_to_the_end(text, options.work, device=options.device)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    checkpoint = options.evaluate or options.work / "checkpoint"
    print(f"{checkpoint}: {evaluate(checkpoint, split(text)[1]):.4f} nats per character on the held-out tenth")


def train_to_the_end(text: str, work: Path, *, device: str) -> None:
    if not hasattr(torch.optim, "Muon"):
        raise SystemExit(f"training needs torch 2.9 or later, which brings the optimiser Muon; this is torch {torch.__version__}")
    training = train(text, Recipe(), work, device=device)
    if training.step < training.recipe.steps:
        raise SystemExit(f"stopped after step {training.step} of {training.recipe.steps}; the same command goes on from there")


if __name__ == "__main__":
    main()
