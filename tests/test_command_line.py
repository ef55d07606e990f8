"""The command line: the text is `generate`'s whatever the cache, the arithmetic is `memory`'s, and mistakes cost one line."""

import os
import re
import shutil
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch

import llama3_edu as le
from llama3_edu.command_line import CACHES, main
from llama3_edu.config import PRESETS

ROOT = Path(__file__).resolve().parents[1]
TINY = resources.files("llama3_edu") / "tiny"
COMMAND = [sys.executable, "-m", "llama3_edu"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def started(*arguments: str, **how: object) -> subprocess.Popen:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment()}
    if os.name == "posix":
        # Who runs the tests in the background may have told them to ignore Ctrl-C, and a process inherits that.
        how["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([*COMMAND, *arguments], **{**pipes, **how})


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]):
    """Run a command in this process; return its status, and what it wrote to standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(arguments)
        except SystemExit as left:
            status = left.code or 0
        return status, *capsys.readouterr()

    return run


def greedy_text(prompt: str, num_new: int) -> str:
    model, tokenizer = le.load_tiny()
    tokens = torch.tensor([tokenizer.encode(prompt, bos=True)])
    return tokenizer.decode(
        le.generate(model, tokens, max_new_tokens=num_new, stop_ids=tokenizer.stop_ids)[0, tokens.shape[1] :].tolist()
    )


@pytest.mark.parametrize("cache", [name for name in CACHES if name != "quantised"])
def test_the_text_is_the_same_with_any_cache(say, cache: str) -> None:
    status, out, err = say(
        "generate", "--prompt", "ROMEO:", "--max-new-tokens", "8", "--temperature", "0", "--cache", cache, "--device", "cpu"
    )
    assert (status, out, err) == (0, greedy_text("ROMEO:", 8) + "\n", "")


@pytest.mark.parametrize("seed", [0, 7])
def test_the_dice_start_from_the_seed(say, seed: int) -> None:
    ask = ("generate", "--prompt", "ROMEO:", "--max-new-tokens", "8", "--device", "cpu", "--seed", str(seed), "--top-p", "0.9")
    model, tokenizer = le.load_tiny()
    dice = le.sampler(temperature=0.8, top_p=0.9, generator=torch.Generator().manual_seed(seed))
    prompt = tokenizer.encode("ROMEO:", bos=True)
    expected = le.generate(model, torch.tensor([prompt]), max_new_tokens=8, choose=dice)[0, len(prompt) :].tolist()
    assert say(*ask) == (0, tokenizer.decode(expected) + "\n", "")


def test_a_chat_asks_in_the_chat_format(say) -> None:
    ask = (
        "generate",
        "--chat",
        "--system",
        "Be brief.",
        "--prompt",
        "Who?",
        "--max-new-tokens",
        "8",
        "--temperature",
        "0",
        "--device",
        "cpu",
    )
    model, tokenizer = le.load_tiny()
    prompt = tokenizer.encode_chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}])
    ids = le.generate(model, torch.tensor([prompt]), max_new_tokens=8, stop_ids=tokenizer.stop_ids)[0, len(prompt) :].tolist()
    assert say(*ask) == (0, tokenizer.decode([token_id for token_id in ids if token_id not in tokenizer.stop_ids]) + "\n", "")


def test_a_stop_token_of_the_checkpoint_ends_the_text_and_is_not_written(say, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    tokenizer = le.Tokenizer.from_pretrained(TINY)
    text = greedy_text("ROMEO:", 12)
    stop = tokenizer.encode(text)[5]
    (tmp_path / "model" / "generation_config.json").write_text(f'{{"eos_token_id": [{stop}]}}')
    status, out, _ = say(
        "generate", "--prompt", "ROMEO:", "--max-new-tokens", "12", "--temperature", "0", "--device", "cpu", "--dtype", "float32",
        "--model", str(tmp_path / "model"),
    )  # fmt: skip
    assert status == 0 and text.startswith(out[:-1]) and out[-1] == "\n"
    assert stop not in tokenizer.encode(out[:-1]) and len(out) < len(text)


STATS = {
    "naive": ("naive: 0 tokens held, 0 bytes", "24 again"),
    "growing": ("growing: 10 tokens held, 30,720 bytes", "0 again"),
    "contiguous": ("contiguous: 10 tokens held, 33,792 bytes", "0 again"),
    "quantised": ("quantised: 10 tokens held", "0 again"),
    "paged": ("paged: 10 tokens held, 49,152 bytes", "0 again"),
}


@pytest.mark.parametrize("cache", CACHES)
def test_stats_count_what_was_computed_and_kept(say, cache: str) -> None:
    ask = (
        "generate",
        "--prompt",
        "ROMEO:",
        "--max-new-tokens",
        "4",
        "--cache",
        cache,
        "--stats",
        "--device",
        "cpu",
        "--temperature",
        "0",
    )
    status, out, err = say(*ask)
    prompt = len(le.Tokenizer.from_pretrained(TINY).encode("ROMEO:", bos=True))
    assert status == 0 and prompt == 7 and "tokens/s" not in out
    held, again = STATS[cache]
    assert re.search(r"^prefill   7 tokens in [\d.]+ s: [\d.,]+ tokens/s$", err, re.MULTILINE)
    assert re.search(r"^decode    3 tokens in [\d.]+ s: [\d.,]+ tokens/s$", err, re.MULTILINE)
    assert held in err and f"10 tokens once, {again}" in err.replace("24 again", "24 again")
    assert ("blocks    1 of 1 used, 16 tokens and 49,152 bytes each" in err) == (cache == "paged")


def test_fewer_bits_make_blocks_smaller(say) -> None:
    ask = ("generate", "--prompt", "ROMEO:", "--max-new-tokens", "2", "--stats", "--device", "cpu", "--cache", "paged")
    sizes = [
        int(re.search(r"([\d,]+) bytes each", say(*ask, *bits)[2])[1].replace(",", ""))
        for bits in ((), ("--bits", "8"), ("--bits", "2"))
    ]
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]


def test_a_prompt_may_come_from_standard_input() -> None:
    ask = ("generate", "--prompt", "-", "--max-new-tokens", "6", "--temperature", "0", "--device", "cpu")
    process = started(*ask, stdin=subprocess.PIPE, env=environment(PYTHONIOENCODING="ascii"))
    out, err = process.communicate("Who’s there? Été, 日本\r\n".encode())
    assert (process.returncode, err) == (0, b"")
    assert out.decode("utf-8") == greedy_text("Who’s there? Été, 日本", 6) + "\n"


def test_a_prompt_that_is_not_utf8_is_refused() -> None:
    process = started("generate", "--prompt", "-", stdin=subprocess.PIPE)
    out, err = process.communicate("Été".encode("latin-1"))
    assert process.returncode == 2 and out == b""
    assert err.decode().count("\n") == 1 and "should be UTF-8; it is not, from byte 0 on" in err.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="a console event there, not a signal")
def test_ctrl_c_keeps_the_text_and_ends_the_line() -> None:
    process = started(
        "generate", "--prompt", "ROMEO:", "--max-new-tokens", "500", "--cache", "naive", "--device", "cpu", "--stats"
    )
    beginning = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert (beginning + out).endswith(b"\n") and b"Traceback" not in err and b"tokens/s" in err


def test_a_reader_that_leaves_hears_nothing() -> None:
    process = started("generate", "--prompt", "ROMEO:", "--max-new-tokens", "500", "--cache", "naive", "--device", "cpu")
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 141 and process.stderr.read() == b""


@pytest.mark.parametrize("name", PRESETS)
def test_the_arithmetic_is_that_of_memory(say, name: str) -> None:
    status, out, _ = say("memory", "--model", name, "--context", "8192", "--batch", "32", "--bits", "8", "--weight-bits", "16")
    config = PRESETS[name]
    kv = le.kv_bytes(config, seq_len=8192, batch=32, bits=8)
    for number in (le.kv_bytes_per_token(config, bits=8), kv, le.weight_bytes(config), kv + le.weight_bytes(config)):
        assert f"= {number:,} bytes ({le.format_bytes(number)})" in re.sub("= +", "= ", out)
    sums = re.findall(r"  ([\d,]+(?: [×+÷] [\d,]+)+) = +([\d,]+) bytes", out)
    assert len(sums) == 5
    for factors, result in sums:
        assert eval(factors.replace(",", "").replace("×", "*").replace("÷", "//")) == int(result.replace(",", ""))
    for machine in le.MACHINES.values():
        rows = le.max_batch(config, seq_len=8192, memory_bytes=machine.memory_bytes, bits=8, bits_of_weights=16)
        assert re.search(rf"{machine.name} +{rows:,} rows? ", out)
        verdict = "left" if machine.memory_bytes >= kv + le.weight_bytes(config) else "missing"
        assert re.search(rf"{machine.name} .*{verdict} with 32$", out, re.MULTILINE)
    assert status == 0 and "4.5 bits" not in out and "8.5 bits" in out


def test_the_worked_example_of_the_book(say) -> None:
    _, out, _ = say("memory", "--model", "llama3-8b", "--context", "8191", "--batch", "32")
    assert "2 × 32 × 8 × 128 × 16 ÷ 8 =        131,072 bytes" in out
    assert "32 × 1,073,610,752 = 34,355,544,064 bytes" in out


def test_the_page_shows_what_the_command_writes(say) -> None:
    page = (ROOT / "book" / "command_line.md").read_text(encoding="utf-8")
    shown = re.findall(r"```console\n\$ python -m llama3_edu (.*)\n((?s:.*?))```", page)
    assert shown and [say(*command.split()) for command, _ in shown] == [(0, output, "") for _, output in shown]


def test_shapes_are_read_from_files_too(say, tmp_path: Path) -> None:
    said = {say("memory", "--model", place)[1].partition(":")[2] for place in ("tiny", str(TINY), str(TINY / "config.json"))}
    assert len(said) == 1 and "6 layers" in said.pop()
    (tmp_path / "params.json").write_text(
        '{"dim": 64, "n_layers": 3, "n_heads": 4, "vocab_size": 9, "multiple_of": 8, "norm_eps": 1e-5}'
    )
    assert "3 layers, 4 query heads" in say("memory", "--model", str(tmp_path))[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "say what to do: generate or memory"),
        ("generat", "there is no command 'generat'; did you mean generate?"),
        ("sing", "there is no command 'sing'; there is generate, memory"),
        ("generate", "needs --prompt TEXT"),
        ("generate --promt x", "there is no option '--promt'; did you mean --prompt?"),
        ("generate --max=3 --prompt x", "there is no option '--max'"),
        ("generate ROMEO:", "what is 'ROMEO:' for?"),
        ("generate --prompt", "expected one argument"),
        ("generate --prompt x --cache quantized", "there is no 'quantized'; did you mean quantised?"),
        ("generate --prompt x --cache vllm", "there is no 'vllm'; there is naive, growing, contiguous, quantised, paged"),
        ("generate --prompt x --bits 3 --cache paged", "there is no '3'; there is 8, 4, 2"),
        ("generate --prompt x --bits 8", "--bits is for --cache quantised or paged; the cache is contiguous"),
        ("generate --prompt x --system y", "add --chat"),
        ("generate --prompt x --max-new-tokens 0", "--max-new-tokens: it should be a whole number from 1 on; it is '0'"),
        ("generate --prompt x --max-new-tokens 511", "should be at most 510 after a prompt of 2 tokens; it is 511"),
        ("generate --prompt x --temperature warm", "--temperature: it should be a number from 0 on; it is 'warm'"),
        ("generate --prompt x --temperature nan", "it should be a number from 0 on; it is 'nan'"),
        ("generate --prompt x --top-p 1.5", "top_p should be above 0 and at most 1; it is 1.5"),
        ("generate --prompt x --device gpu", "there is no 'gpu' here; there is cpu"),
        ("generate --prompt x --device meta", "there is no 'meta' here"),
        ("generate --prompt x --dtype float31", "did you mean float32?"),
        ("generate --prompt x --model nowhere", "'nowhere' is neither a directory nor a repository name"),
        (f"generate --prompt x --model {ROOT}", "holds no tokenizer.json and no tokenizer.model"),
        ("memory --model llama3-8B", "there is no model 'llama3-8B'; did you mean llama3-8b?"),
        ("memory --model gpt", "there is no model 'gpt'; there is llama3-8b, "),
        (f"memory --model {ROOT}", "params.json"),
        ("memory --context -1", "it should be a whole number from 1 on; it is '-1'"),
        ("memory --bits 5", "there is no '5'; there is 32, 16, 8, 4, 2"),
    ],
)  # fmt: skip
def test_a_mistake_costs_one_line(say, arguments: str, complaint: str) -> None:
    status, out, err = say(*arguments.split())
    assert (status, out) == (2, "")
    assert complaint in err and err.count("\n") == 1 and err.endswith("\n")


def test_a_prompt_without_room_is_refused(say) -> None:
    status, _, err = say("generate", "--prompt", "no " * 600)
    assert status == 2 and "the model has room for 512, new ones included" in err


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_weights_that_make_no_numbers_cost_one_line(say, tmp_path: Path, temperature: str) -> None:
    model, _ = le.load_tiny()
    model.norm.weight.fill_(float("nan"))
    shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    le.save_checkpoint(model, tmp_path / "model")
    status, out, err = say("generate", "--prompt", "x", "--temperature", temperature, "--model", str(tmp_path / "model"))
    assert (status, out.strip()) == (2, "")
    assert err.count("\n") == 1 and "not numbers (NaN)" in err and "fetch the checkpoint anew" in err


def test_a_model_larger_than_memory_costs_one_line(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama3_edu.checkpoint.available_memory", lambda: 1000)
    status, out, err = say("generate", "--prompt", "x", "--device", "cpu")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and "1,000 bytes (1000 B) of this machine's memory are available" in err


def test_a_damaged_checkpoint_costs_one_line(say, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 256', '"hidden_size": 128'))
    status, out, err = say("generate", "--prompt", "x", "--model", str(tmp_path / "model"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "do not fit its config.json" in err and re.search(r"and \d+ more", err)


def test_versions_are_said(say) -> None:
    status, out, _ = say("--version")
    assert status == 0 and re.fullmatch(rf"llama3-edu \S+( \S+)?, torch {re.escape(torch.__version__)}, Python [\d.]+\n", out)


@pytest.mark.parametrize("command", [(), ("generate",), ("memory",)], ids=str)
def test_help_names_every_option(say, command: tuple[str, ...]) -> None:
    status, out, _ = say(*command, "--help")
    assert status == 0
    for option in {(): ["--version"], ("generate",): ["--prompt", "--cache", "--stats"], ("memory",): ["--context", "--bits"]}[
        command
    ]:
        assert option in out
