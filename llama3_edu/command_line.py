"""What `python -m llama3_edu` does: write text with any cache, and work out what a model and its cache take.

Text goes to standard output, everything else to standard error. What a user can get wrong is said in one line, with status 2.
"""

import argparse
import io
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import torch

from llama3_edu.cache import BlockPool, ContiguousCache, GrowingCache, KVCache, NoCache, PagedCache, QuantizedCache
from llama3_edu.cache.blocks import blocks_for
from llama3_edu.checkpoint import load_checkpoint, load_tiny, stop_ids
from llama3_edu.config import PRESETS, LlamaConfig
from llama3_edu.events import Event, TokenChosen, TokensComputed
from llama3_edu.generate import stream
from llama3_edu.hardware import default_device
from llama3_edu.hub import local_directory
from llama3_edu.memory import format_bytes
from llama3_edu.memory_maths import memory_lines
from llama3_edu.model import Llama
from llama3_edu.sampling import Choose, greedy, sampler
from llama3_edu.tokenizer import Tokenizer

__all__ = ["main"]

PROGRAM = "python -m llama3_edu"
CACHES = ("naive", "growing", "contiguous", "quantised", "paged")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BITS = (8, 4, 2)
TINY = "tiny"
"""What the bundled model is called where presets have names."""

_MISTAKE, _INTERRUPTED, _NOBODY_READS = 2, 130, 141
_NEW_TOKENS = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what stands behind the program's name; what this process was started with where it is left out.

    Returns:
        The status to exit with: 0; 2 for a user's mistake, which is then said on standard error; 130 after Ctrl-C; 141 if
        whoever read the output stopped reading. The last two are what a shell reports for SIGINT and SIGPIPE.
    """
    _speak_utf8()
    try:
        options = _options(sys.argv[1:] if arguments is None else list(arguments))
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more at exit, and would complain of the same pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS
    except (ValueError, OSError, MemoryError) as error:
        return _complain(error)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return _complain(error)
    return 0


# -- Options --


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where to find more."""

    def __init__(self, **settings: object) -> None:
        self.option_names: list[str] = []
        super().__init__(**settings)

    def add_argument(self, *names: str, **settings: object) -> argparse.Action:
        self.option_names += names
        return super().add_argument(*names, **settings)

    def add_choice(self, name: str, among: Iterable[str | int], **settings: object) -> None:
        """Add an option that is one of some names or numbers."""
        self.add_argument(name, type=_one_of(among), metavar="{" + ",".join(map(str, among)) + "}", **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(_MISTAKE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _options(arguments: list[str]) -> argparse.Namespace:
    parser, commands = _parser()
    if not arguments:
        parser.error(f"say what to do: {' or '.join(commands)}")
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        parser.error(f"there is no command {_not_among(arguments[0], commands)}")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command, word = commands[options.command], unknown[0].split("=")[0]
        is_option = word.startswith("-")
        command.error(f"there is no option {_not_among(word, command.option_names)}" if is_option else f"what is {word!r} for?")
    return options


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog=PROGRAM, description="A Llama 3 and its KV cache.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=_version())
    places = parser.add_subparsers(dest="command", metavar="command")
    commands = {}
    for name, run, add_options in (("generate", _generate, _add_generate_options), ("memory", _memory, _add_memory_options)):
        commands[name] = places.add_parser(name, allow_abbrev=False, help=run.__doc__, description=run.__doc__)
        commands[name].set_defaults(run=run)
        add_options(commands[name])
    return parser, commands


def _add_generate_options(parser: _Parser) -> None:
    add, add_choice = parser.add_argument, parser.add_choice
    add("--prompt", metavar="TEXT", help="what the text begins with, or what the user says in a chat; -: read standard input")
    add("--chat", action="store_true", help="put the prompt into Llama 3's chat format, for Instruct models")
    add("--system", metavar="TEXT", help="with --chat: what the system says first")
    add("--model", metavar="PATH_OR_REPO", help="a directory, or owner/name on the Hugging Face hub (default: the bundled model)")
    add_choice("--cache", CACHES, default="contiguous", help="where keys and values are kept (default: %(default)s)")
    add_choice("--bits", BITS, help="of a quantised cache (default: 8), or of a paged one (default: not quantised)")
    add("--max-new-tokens", type=_whole, metavar="N", help=f"(default: {_NEW_TOKENS}, or as many as the model has room for)")
    add("--temperature", type=_number, default=0.8, metavar="T", help="0: always the most likely token (default: %(default)s)")
    add("--top-p", type=_number, metavar="P", help="choose among the most likely tokens that add up to this probability")
    add("--seed", type=int, default=0, metavar="N", help="of the dice (default: %(default)s)")
    add("--device", type=_device, metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add_choice("--dtype", DTYPES, help="of weights and cache (default: the checkpoint's)")
    add_choice("--weight-bits", (8,), help="keep weights as 8-bit whole numbers (default: as --dtype says)")
    add("--stats", action="store_true", help="say on standard error how fast it was and what the cache took")


def _add_memory_options(parser: _Parser) -> None:
    add, add_choice = parser.add_argument, parser.add_choice
    names = ", ".join((*PRESETS, TINY))
    add("--model", default="llama3-8b", metavar="NAME", help=f"{names}, or a directory or repository (default: %(default)s)")
    add("--context", type=_whole, metavar="N", help="tokens per row (default: 8192, or the model's own limit where that is less)")
    add("--batch", type=_whole, default=1, metavar="N", help="rows (default: %(default)s)")
    add_choice("--bits", (32, 16, *BITS), default=16, help="of keys and values (default: %(default)s)")
    add_choice("--weight-bits", (32, 16, 8, 4), default=16, help="(default: %(default)s)")


def _one_of(names: Iterable[str | int]) -> Callable[[str], str | int]:
    """Return what turns text into one of some names or numbers, or says which come near."""
    by_text = {str(name): name for name in names}

    def chosen(text: str) -> str | int:
        if text not in by_text:
            raise argparse.ArgumentTypeError(f"there is no {_not_among(text, by_text)}")
        return by_text[text]

    return chosen


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it should be a whole number from 1 on; it is {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"it should be a number from 0 on; it is {text!r}")
    return number


def _device(text: str) -> torch.device:
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    there += ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if text not in there:
        raise argparse.ArgumentTypeError(f"there is no {text!r} here; there is {', '.join(sorted(there))}")
    return torch.device(text)


def _not_among(given: str, names: Iterable[str]) -> str:
    """What was given, and the name that was probably meant, or all there are."""
    names = list(names)
    near = get_close_matches(given, names, n=1)
    return f"{given!r}; did you mean {near[0]}?" if near else f"{given!r}; there is {', '.join(names)}"


def _version() -> str:
    try:
        ours = metadata.version("llama3-edu")
    except metadata.PackageNotFoundError:
        ours = "(not installed)"
    return f"llama3-edu {ours}, torch {torch.__version__}, Python {platform.python_version()}"


# -- Text --


def _generate(options: argparse.Namespace) -> None:
    """Write the text that follows a prompt."""
    prompt, choose = _prompt(options), _chooser(options)
    model, tokenizer, stops = _load(options)
    token_ids = _token_ids(tokenizer, prompt, options)
    num_new = _num_new(model.config, len(token_ids), options.max_new_tokens)
    cache = _make_cache(options, model, slots=len(token_ids) + num_new)
    meter = _Meter()
    tokens = torch.tensor([token_ids], device=model.device)
    steps = stream(model, tokens, max_new_tokens=num_new, cache=cache, choose=choose, stop_ids=stops, observer=meter)
    try:
        for piece in tokenizer.decode_stream(_until(stops, steps)):
            print(piece, end="", flush=True)
    finally:
        # After Ctrl-C, too: what was written stays, and whatever comes next begins on a line of its own.
        print(flush=True)
        if options.stats:
            print(*_statistics(options.cache, cache, meter), sep="\n", file=sys.stderr)


def _prompt(options: argparse.Namespace) -> str:
    if options.prompt is None:
        raise ValueError("generate needs --prompt TEXT, or --prompt - to read it from standard input")
    if options.system is not None and not options.chat:
        raise ValueError("--system is part of a chat; add --chat")
    if options.bits is not None and options.cache not in ("quantised", "paged"):
        raise ValueError(f"--bits is for --cache quantised or paged; the cache is {options.cache}")
    if options.prompt != "-":
        return options.prompt
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt on standard input should be UTF-8; it is not, from byte {error.start} on") from None


def _chooser(options: argparse.Namespace) -> Choose:
    if options.temperature == 0:
        return _numbers_only(greedy)
    dice = torch.Generator(options.device or default_device()).manual_seed(options.seed)
    return _numbers_only(sampler(temperature=options.temperature, top_p=options.top_p, generator=dice))


def _numbers_only(choose: Choose) -> Choose:
    """Let nothing be chosen from NaN: greedy would write nonsense, and the dice fail without a word about the model."""

    def chosen(logits: torch.Tensor) -> torch.Tensor:
        if logits.isnan().any():
            raise ValueError(
                "the model computes logits that are not numbers (NaN). Its weights are damaged, then fetch the checkpoint anew; or "
                "too large for float16, then take --dtype bfloat16 or float32"
            )
        return choose(logits)

    return chosen


def _load(options: argparse.Namespace) -> tuple[Llama, Tokenizer, tuple[int, ...]]:
    """Return the model, its tokenizer, and the tokens after which it has finished."""
    place = {"device": options.device or default_device(), "weight_bits": options.weight_bits}
    place |= {"dtype": DTYPES[options.dtype]} if options.dtype else {}
    if options.model is None:
        model, tokenizer = load_tiny(**place)
        return model, tokenizer, tokenizer.stop_ids
    tokenizer = Tokenizer.from_pretrained(options.model)  # first: it is small, and a slip in the name costs no more than that
    stops = stop_ids(options.model) or tokenizer.stop_ids
    # A base model's file does not list the end of a turn; in a chat, somebody else speaks after it.
    stops = (*stops, tokenizer.eot_id) if options.chat else stops
    return load_checkpoint(options.model, **place), tokenizer, stops


def _token_ids(tokenizer: Tokenizer, prompt: str, options: argparse.Namespace) -> list[int]:
    if not options.chat:
        return tokenizer.encode(prompt, bos=True)
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return tokenizer.encode_chat([*system, {"role": "user", "content": prompt}])


def _num_new(config: LlamaConfig, prompt_len: int, asked: int | None) -> int:
    """Return how many tokens to write: as many as were asked for, or as fit."""
    room = config.max_seq_len - prompt_len
    if room < 1:
        raise ValueError(
            f"the prompt has {prompt_len:,} tokens; the model has room for {config.max_seq_len:,}, new ones included"
        )
    if asked is not None and asked > room:
        raise ValueError(f"--max-new-tokens should be at most {room:,} after a prompt of {prompt_len:,} tokens; it is {asked:,}")
    return asked or min(_NEW_TOKENS, room)


def _make_cache(options: argparse.Namespace, model: Llama, *, slots: int) -> KVCache:
    config, place = model.config, {"device": model.device, "dtype": model.dtype}
    match options.cache:
        case "naive":
            return NoCache()
        case "growing":
            return GrowingCache(config, **place)
        case "contiguous":
            return ContiguousCache(config, max_seq_len=slots, **place)
        case "quantised":
            return QuantizedCache(config, max_seq_len=slots, bits=options.bits or 8, **place)
    size = 16
    return PagedCache(BlockPool(config, num_blocks=blocks_for(slots, size), block_size=size, bits=options.bits, **place), [[]])


def _until(stops: Sequence[int], steps: Iterable[torch.Tensor]) -> Iterator[int]:
    """Yield the tokens of the one row there is, up to the one that ends it."""
    for token_id in (int(step) for step in steps):
        if token_id in stops:
            return
        yield token_id


@dataclass
class _Meter:
    """An observer that notes how much each forward computed, and when each token was known."""

    started: float = field(default_factory=time.perf_counter)
    computed: list[int] = field(default_factory=list)
    chosen_at: list[float] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, TokensComputed):
            self.computed.append(len(event.positions[0]))
        elif isinstance(event, TokenChosen):
            self.chosen_at.append(time.perf_counter())


def _statistics(name: str, cache: KVCache, meter: _Meter) -> Iterator[str]:
    if not meter.chosen_at:
        yield "no token was computed"
        return
    first, last = meter.chosen_at[0], meter.chosen_at[-1]
    yield _speed("prefill", meter.computed[0], first - meter.started)
    if len(meter.chosen_at) > 1:
        yield _speed("decode", len(meter.chosen_at) - 1, last - first)
    distinct = meter.computed[0] + len(meter.chosen_at) - 1
    again = sum(meter.computed[: len(meter.chosen_at)]) - distinct
    yield f"computed  {distinct:,} tokens once, {again:,} again"
    held, size = int(cache.seq_lens.max()), cache.nbytes
    yield f"cache     {name}: {held:,} tokens held, {size:,} bytes allocated ({format_bytes(size)})"
    if isinstance(cache, PagedCache):
        pool = cache.pool
        used = f"{pool.num_used:,} of {pool.num_blocks:,} used"
        yield f"blocks    {used}, {pool.block_size} tokens and {pool.block_nbytes:,} bytes each"


def _speed(what: str, tokens: int, seconds: float) -> str:
    return f"{what:<9} {tokens:,} tokens in {seconds:.3f} s: {tokens / seconds:,.1f} tokens/s"


# -- Arithmetic --


def _memory(options: argparse.Namespace) -> None:
    """Work out, line by line, what keys, values and weights take, and what fits on common cards."""
    config = _config(options.model)
    lines = memory_lines(
        config, name=options.model, seq_len=options.context or min(8192, config.max_seq_len), batch=options.batch, bits=options.bits,
        bits_of_weights=options.weight_bits,
    )  # fmt: skip
    print(*lines, sep="\n")


def _config(name: str) -> LlamaConfig:
    """Return the shape that is meant: a preset's, the bundled model's, or that of a directory, file or repository."""
    if name in PRESETS:
        return PRESETS[name]
    path = Path(__file__).parent / "tiny" if name == TINY else Path(name)
    if path.is_file():
        return LlamaConfig.from_json(path)
    if "/" not in name and not path.exists():
        raise ValueError(f"there is no model {_not_among(name, (*PRESETS, TINY))}")
    others = (["params.json"], ["original/params.json"])
    folder = local_directory(path if path.exists() else name, files=["config.json"], otherwise=others)
    return LlamaConfig.from_json(folder / ("config.json" if (folder / "config.json").is_file() else "params.json"))


# -- What is around it --


def _speak_utf8() -> None:
    """Write and read UTF-8 whatever the console is set to: text of a model holds characters that others lack."""
    for console in (sys.stdout, sys.stderr):
        if isinstance(console, io.TextIOWrapper):
            console.reconfigure(encoding="utf-8", errors="replace")


def _complain(error: BaseException) -> int:
    """Say in one line what went wrong; return the status for it."""
    first, *others = str(error).splitlines() or [type(error).__name__]
    shown = "; ".join(line.strip() for line in others[:3])
    more = f"; and {len(others) - 3} more" if len(others) > 3 else ""
    print(f"{PROGRAM}: {first} {shown}{more}".rstrip(), file=sys.stderr)
    return _MISTAKE
