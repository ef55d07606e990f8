"""Models from a hub: the real client against a hub of our own, and what the reader is told when it does not go well."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import FakeHub, Repository
from packaging.requirements import Requirement

from llama3_edu import hub

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCRIPT = Path(__file__).with_name("hub_client.py")
CONFIG, WEIGHTS, TOKENIZER = b'{"model_type": "llama"}', b"weights" * 5000, b'{"version": "1.0"}'
HF = ["model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json"]
META = [["consolidated*.safetensors", "params.json"], ["original/consolidated*.safetensors", "original/params.json"]]


class Client:
    """Asks one question after the other of a process that has one environment."""

    def __init__(self, python, cache, **environ):
        # What the machine that runs the tests has set, a token for example, stays out.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        ours = {"HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        self.bars = cache / "stderr.txt"
        cache.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [python, SCRIPT], env={**kept, **ours, **environ}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(self.bars, "a"),
        )  # fmt: skip

    def __call__(self, place, *, files=HF, otherwise=META, **environ):
        request = {"place": str(place), "files": files, "otherwise": otherwise, "environ": environ}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0


def lowest():
    """The oldest huggingface-hub that the package accepts, as pip names it."""
    project = tomllib.loads((SCRIPT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    accepted = next(found for found in map(Requirement, project["dependencies"]) if found.name == "huggingface-hub")
    return f"huggingface-hub=={next(iter(accepted.specifier)).version}"


@pytest.fixture(scope="module", params=["what the tests have", pytest.param("the lowest version", marks=pytest.mark.slow)])
def python(request, tmp_path_factory):
    """An interpreter with the pinned huggingface-hub, then one with the oldest that the package accepts."""
    if request.param == "what the tests have":
        return sys.executable
    venv = tmp_path_factory.mktemp("lowest") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin" / "python", "-m", "pip", "install", "--quiet", lowest()], check=True)
    return str(venv / "bin" / "python")


@pytest.fixture(scope="module")
def server():
    server = FakeHub()
    yield server
    server.close()


@pytest.fixture
def fake(server):
    server.repositories.clear()
    server.sent.clear()
    return server


@pytest.fixture(scope="module")
def cache(python, tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def online(python, server, cache):
    client = Client(python, cache, HF_ENDPOINT=server.address)
    yield client
    client.close()


@pytest.fixture(scope="module")
def switched_off(python, server, cache):
    client = Client(python, cache, HF_ENDPOINT=server.address, HF_HUB_OFFLINE="1")
    yield client
    client.close()


@pytest.fixture(scope="module")
def unplugged(python, cache):
    client = Client(python, cache, HF_ENDPOINT="http://127.0.0.1:9")  # where nothing listens
    yield client
    client.close()


def held(answer):
    """What a folder that came back holds, by name."""
    folder = Path(answer["folder"])
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


HF_FILES = {
    "config.json": CONFIG, "generation_config.json": b"{}", "model.safetensors.index.json": b"{ }", "tokenizer.json": TOKENIZER,
    "model-00001-of-00002.safetensors": WEIGHTS, "model-00002-of-00002.safetensors": WEIGHTS[::-1],
}  # fmt: skip
NOT_NEEDED = {
    "original/consolidated.00.pth": b"pickle", "original/params.json": b"{}", "README.md": b"#", "pytorch_model.bin": b"pickle",
    "onnx/model.safetensors": b"other", "original/consolidated.safetensors": b"Meta's", ".gitattributes": b"",
}  # fmt: skip


def test_only_what_is_needed_comes_and_comes_once(online, fake):
    fake.repositories["some/model"] = Repository(HF_FILES | NOT_NEEDED)
    assert held(online("some/model")) == HF_FILES
    assert set(fake.sent) == set(HF_FILES)
    fake.sent.clear()
    assert held(online("some/model")) == HF_FILES
    assert not fake.sent


def test_progress_is_shown(online, fake):
    before = len(online.bars.read_text())
    fake.repositories["some/bars"] = Repository(HF_FILES)
    online("some/bars")
    assert "Fetching 6 files" in online.bars.read_text()[before:]


@pytest.mark.parametrize("folder", ["", "original/"])
def test_meta_s_layout_comes_where_there_is_no_other(folder, online, fake):
    files = {"consolidated.00.safetensors": WEIGHTS, "consolidated.01.safetensors": WEIGHTS, "params.json": b"{}"}
    stored = {folder + name: content for name, content in files.items()}
    fake.repositories[f"meta/in-{folder.strip('/') or 'root'}"] = Repository(stored | {"original/consolidated.00.pth": b"pickle"})
    answer = online(f"meta/in-{folder.strip('/') or 'root'}")
    assert held(answer) == files
    assert Path(answer["folder"]).name == "original" if folder else True


def test_a_repository_of_pickles_is_refused_before_any_of_it_is_fetched(online, fake):
    fake.repositories["old/model"] = Repository({"config.json": CONFIG, "pytorch_model.bin": b"pickle"})
    found = online("old/model")
    assert found["error"] == "FileNotFoundError" and not fake.sent
    for words in ("old/model", "holds no model*.safetensors nor", "pytorch_model.bin", "pickle", "unsloth/Llama-3.2-1B-Instruct"):
        assert words in found["message"]


@pytest.mark.parametrize(
    ("repo", "token", "state", "copy"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", None, "nobody is logged in", "unsloth/Llama-3.1-8B-Instruct"),
        ("meta-llama/Meta-Llama-3-8B", "not-let-in", "you are logged in, but", "unsloth/llama-3-8b"),
        ("who/knows", None, "nobody is logged in", "unsloth/Llama-3.2-1B-Instruct"),
        ("who/else", "not-let-in", "you are logged in, but", "unsloth/Llama-3.2-1B-Instruct"),
    ],
)
def test_a_gated_repository_says_how_to_get_in_and_what_is_open(repo, token, state, copy, online, fake):
    fake.repositories[repo] = Repository(HF_FILES, gated=True)
    found = online(repo, **({"HF_TOKEN": token} if token else {}))
    assert found["error"] == "PermissionError"
    for words in (f"'{repo}' is gated", state, f"huggingface.co/{repo}", "hf auth login", "HF_TOKEN", copy, "load_tiny()"):
        assert words in found["message"]
    assert held(online(repo, HF_TOKEN="let-in")) == HF_FILES


def test_a_repository_that_is_not_there_is_named(online, fake):
    found = online("nobody/nothing")
    assert found["error"] == "FileNotFoundError"
    for words in ("'nobody/nothing' is not a directory here", "hub has no repository of that name", "private", "load_tiny()"):
        assert words in found["message"]


def test_a_model_that_is_larger_than_the_disk_is_refused_before_it_is_fetched(online, fake):
    fake.repositories["too/large"] = Repository(HF_FILES, sizes={"model-00001-of-00002.safetensors": 2**60})
    found = online("too/large")
    assert found["errno"] == errno.ENOSPC and not fake.sent
    for words in ("no room for 'too/large'", "1024 PiB more are needed", "are free", "HF_HOME", "unsloth/Llama-3.2-1B-Instruct"):
        assert words in found["message"]


def test_what_the_cache_holds_needs_no_room(online, fake):
    repository = fake.repositories["half/there"] = Repository(HF_FILES)
    online("half/there")
    repository.sizes = {"model-00001-of-00002.safetensors": 2**60}
    assert held(online("half/there")) == HF_FILES


def test_a_download_that_breaks_goes_on_where_it_is_asked_again(online, fake):
    name = "model-00001-of-00002.safetensors"
    fake.repositories["shaky/model"] = Repository(HF_FILES, cut={name: 1000})
    found = online("shaky/model")
    if "error" in found:  # newer clients try again by themselves
        assert found["error"] == "ConnectionError" and "the download is not complete" in found["message"], found
        found = online("shaky/model")
    assert held(found) == HF_FILES
    whole = {other: len(content) for other, content in HF_FILES.items() if other != name}
    assert {other: fake.sent[other] for other in whole} == whole


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_broken_says_so_and_a_copy_still_serves(status, online, fake):
    repository = fake.repositories[f"ill/model-{status}"] = Repository(HF_FILES, broken=status)
    found = online(f"ill/model-{status}")
    assert found["error"] == "ConnectionError" and "the Hugging Face hub cannot be reached" in found["message"]
    repository.broken = None
    online(f"ill/model-{status}")
    repository.broken = status
    assert held(online(f"ill/model-{status}")) == HF_FILES


def test_offline_the_copy_serves_and_without_one_the_way_out_is_named(online, switched_off, unplugged, fake):
    fake.repositories["far/away"] = Repository(HF_FILES)
    for client, words in ((switched_off, "Unset HF_HUB_OFFLINE"), (unplugged, "Look after the network")):
        found = client("far/away-never-had")
        assert found["error"] == "ConnectionError"
        for expected in ("'far/away-never-had' is not a directory here", words, "hf download", "load_tiny()"):
            assert expected in found["message"]
    online("far/away", files=["tokenizer.json"])
    for client in (switched_off, unplugged):
        assert "no complete copy of an earlier download" in client("far/away")["message"]  # its weights were never fetched
    online("far/away")
    for client in (switched_off, unplugged):
        assert held(client("far/away")) == HF_FILES


def test_a_directory_behaves_alike(tmp_path, fake):
    assert hub.local_directory(tmp_path, files=HF, otherwise=META) == tmp_path
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "consolidated.00.safetensors").write_bytes(WEIGHTS)
    assert hub.local_directory(tmp_path, files=HF, otherwise=META) == tmp_path / "original"
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    assert hub.local_directory(tmp_path, files=HF, otherwise=META) == tmp_path


LOAD = """
import sys, torch
from llama3_edu import Llama, Tokenizer, stop_ids
for place in sys.argv[1:]:
    model, tokenizer = Llama.from_pretrained(place, dtype=torch.float32), Tokenizer.from_pretrained(place)
    tokens = torch.tensor([tokenizer.encode("ROMEO:", bos=True)])
    print(model(tokens).double().sum().item(), tokenizer.decode(tokens[0].tolist()), stop_ids(place))
"""


def test_a_model_from_the_hub_is_the_model_from_a_directory(fake, tmp_path):
    tiny = SCRIPT.parents[1] / "llama3_edu" / "tiny"
    files = {path.name: path.read_bytes() for path in tiny.iterdir() if path.is_file()}
    fake.repositories["our/tiny"] = Repository(files | {"original/consolidated.00.pth": b"pickle"})
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environ |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": fake.address, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    run = subprocess.run([sys.executable, "-c", LOAD, tiny, "our/tiny"], env=environ, check=True, capture_output=True, text=True)
    from_directory, from_hub = run.stdout.splitlines()
    assert from_hub == from_directory and "ROMEO:" in from_hub
    assert "original/consolidated.00.pth" not in fake.sent


def raising(error):
    def call(*_, **__):
        raise error

    return call


FULL = [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("Io: No space left on device (os error 28)")]


@pytest.mark.parametrize("error", FULL, ids=["Python's", "the downloader's"])
def test_a_disk_that_fills_up_on_the_way_is_named(error, monkeypatch):
    monkeypatch.setattr(hub, "_listing", lambda repo: {"model.safetensors": 7})
    monkeypatch.setattr("huggingface_hub.snapshot_download", raising(error))
    with pytest.raises(OSError, match="no room for 'some/model' in .*: the disk filled up") as caught:
        hub.local_directory("some/model", files=HF)
    assert caught.value.errno == errno.ENOSPC and caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("something else"), ValueError("not a name"), OSError("odd")])
def test_what_nobody_foresaw_is_passed_on_with_the_name(error, monkeypatch):
    monkeypatch.setattr(hub, "_listing", raising(error))
    with pytest.raises(FileNotFoundError, match=f"'some/model' is not a directory here, and .*: {error}"):
        hub.local_directory("some/model", files=HF)
