"""From what a reader types to a directory on disk: a path, or the name of a repository on the Hugging Face hub."""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from llama3_edu.memory import format_bytes

__all__ = ["local_directory"]

_SMALL = "unsloth/Llama-3.2-1B-Instruct"
_UNGATED = {
    "meta-llama/Llama-3.2-1B": "unsloth/Llama-3.2-1B",
    "meta-llama/Llama-3.2-1B-Instruct": "unsloth/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.2-3B": "unsloth/Llama-3.2-3B",
    "meta-llama/Llama-3.2-3B-Instruct": "unsloth/Llama-3.2-3B-Instruct",
    "meta-llama/Llama-3.1-8B": "unsloth/Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct": "unsloth/Llama-3.1-8B-Instruct",
    "meta-llama/Meta-Llama-3.1-8B": "unsloth/Meta-Llama-3.1-8B",
    "meta-llama/Meta-Llama-3.1-8B-Instruct": "unsloth/Meta-Llama-3.1-8B-Instruct",
    "meta-llama/Meta-Llama-3-8B": "unsloth/llama-3-8b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "unsloth/llama-3-8b-Instruct",
}
"""Gated repositories, and copies that another publisher gives to anyone. Source: the table in unsloth's `models/mapper.py`."""

_WITHOUT = "llama3_edu.load_tiny() needs no download at all"


def local_directory(path_or_repo: str | Path, *, files: Sequence[str], otherwise: Sequence[Sequence[str]] = ()) -> Path:
    """Return the directory that holds a model's files; download them first where a repository is named.

    Args:
        path_or_repo: a directory, or `owner/name` on the hub. A directory of that name wins.
        files: which files to have, as shell patterns. The first is the one without which the others are worth nothing.
        otherwise: what to look for instead, in order of preference, where no file matches the first of `files`.

    Returns:
        The directory that holds a match of the first pattern: `…/original` where that is `original/params.json`. A directory
        on disk that holds none is returned as it is.

    Raises:
        NotADirectoryError: the path is a file.
        FileNotFoundError: there is no such directory, and no repository of that name, or it holds nothing that matches.
        PermissionError: the repository is gated or private, and its publisher has not let this reader in.
        ConnectionError: the hub cannot be reached, and the cache holds no copy.
        OSError: the disk is full; its `errno` is `ENOSPC`.
    """
    path, alternatives = Path(path_or_repo), [files, *otherwise]
    if path.is_dir():
        return _inside(path, alternatives) or path
    if path.exists():
        raise NotADirectoryError(f"{path} is a file; give the directory that holds it")
    if isinstance(path_or_repo, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path_or_repo):
        return _download(path_or_repo, alternatives)
    raise FileNotFoundError(f"{str(path_or_repo)!r} is neither a directory nor a repository name of the form owner/name")


def _inside(folder: Path, alternatives: Sequence[Sequence[str]]) -> Path | None:
    """Return where in a folder the first of the alternatives lies that it holds, or None."""
    found = next((patterns[0] for patterns in alternatives if any(folder.glob(patterns[0]))), None)
    return None if found is None else folder / PurePosixPath(found).parent


def _download(repo: str, alternatives: Sequence[Sequence[str]]) -> Path:
    """Return the folder of the hub's cache that holds a repository's files, once they are there."""
    from huggingface_hub import snapshot_download  # only who names a repository needs it

    try:
        sizes = _listing(repo)
    except Exception as error:  # which libraries' errors these are depends on the version of huggingface-hub
        if not _is_unreachable(error):
            raise _explained(repo, error) from error
        return _cached(repo, alternatives, error)
    names, folder = _wanted(repo, list(sizes), alternatives)
    _check_room(repo, {name: sizes[name] for name in names})
    try:
        return Path(snapshot_download(repo, allow_patterns=names)) / folder
    except Exception as error:
        raise _explained(repo, error) from error


def _listing(repo: str) -> dict[str, int]:
    """Ask the hub what a repository holds: the size of every file in bytes, 0 where the hub does not say."""
    from huggingface_hub import HfApi

    return {file.rfilename: file.size or 0 for file in HfApi().model_info(repo, files_metadata=True).siblings or ()}


def _wanted(repo: str, names: Sequence[str], alternatives: Sequence[Sequence[str]]) -> tuple[list[str], PurePosixPath]:
    """Return which of a repository's files to download, and the folder they are in."""
    for patterns in alternatives:
        if any(_matches(name, patterns[0]) for name in names):
            wanted = [name for name in names if any(_matches(name, pattern) for pattern in patterns)]
            return wanted, PurePosixPath(patterns[0]).parent
    looked_for = " nor ".join(patterns[0] for patterns in alternatives)
    pickles = " It holds pickle files, which run code when they are read." if any(n.endswith((".pth", ".bin")) for n in names) else ""
    raise FileNotFoundError(
        f"the repository {repo!r} on the Hugging Face hub holds no {looked_for}, but {', '.join(sorted(names)[:8]) or 'nothing'}."
        f"{pickles} Look for a safetensors version of this model, such as {_UNGATED.get(repo, _SMALL)!r}"
    )


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _check_room(repo: str, sizes: Mapping[str, int]) -> None:
    """Raise OSError unless the cache's disk has room for those files that are not there yet."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    missing = sum(size for name, size in sizes.items() if not isinstance(try_to_load_from_cache(repo, name), str))
    cache = Path(HF_HUB_CACHE).expanduser()
    place = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    begun = (cache / f"models--{repo.replace('/', '--')}" / "blobs").glob("*.incomplete")
    # An interrupted file is gone on with where it keeps its plain name; newer clients start it again under another.
    missing -= sum(path.stat().st_size for path in begun if path.stem.count(".") == 0)
    free = shutil.disk_usage(place).free
    if missing > free:
        raise _no_room(repo, f"{format_bytes(missing)} more are needed, and {format_bytes(free)} are free")


def _cached(repo: str, alternatives: Sequence[Sequence[str]], reason: Exception) -> Path:
    """Return the copy an earlier download left, or say that there is none and why the hub was not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    try:
        # No patterns: newer clients would refuse a copy that lacks a file which we could do without.
        folder = _inside(Path(snapshot_download(repo, allow_patterns=[], local_files_only=True)), alternatives)
    except LocalEntryNotFoundError:
        folder = None
    if folder is None:
        raise _unreachable(repo, reason, "no complete copy of an earlier download is on this machine") from reason
    return folder


def _explained(repo: str, error: Exception) -> OSError:
    """Return the error that tells the reader what to do about the one that the hub's client raised."""
    from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    chain = list(_chain(error))
    status = next((code for code in map(_status, chain) if code), None)
    if any(isinstance(link, GatedRepoError) for link in chain) or status == 403:
        return _gated(repo, status)
    if any(isinstance(link, (RepositoryNotFoundError, RevisionNotFoundError)) for link in chain):
        return FileNotFoundError(
            f"{repo!r} is not a directory here, and the Hugging Face hub has no repository of that name that it shows you. "
            f"Look for a slip at https://huggingface.co/{repo}; if it is private, log in with `hf auth login` or set HF_TOKEN. "
            f"{_SMALL!r} can be had by anyone, and {_WITHOUT}"
        )
    if status == 401:
        return PermissionError(
            f"the Hugging Face hub refuses the token it was sent for {repo!r}. Make a new one at "
            f"https://huggingface.co/settings/tokens and log in with `hf auth login`, or unset HF_TOKEN"
        )
    if any(getattr(link, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(link) for link in chain):
        return _no_room(repo, "the disk filled up while it was downloaded")
    if any(map(_is_unreachable, chain)):
        return _unreachable(repo, error, "the download is not complete; files that are will not be fetched again")
    return FileNotFoundError(f"{repo!r} is not a directory here, and the Hugging Face hub does not give it: {error}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_unreachable(error: BaseException) -> bool:
    """Tell whether an error says that the hub did not answer, or not now, rather than that it said no."""
    if _status(error) is not None:
        return _status(error) == 429 or _status(error) >= 500
    library = type(error).__module__.partition(".")[0]  # requests before huggingface-hub 1.0, then httpx and what follows it
    return isinstance(error, (ConnectionError, TimeoutError)) or library in ("requests", "urllib3", "httpx", "httpx2", "httpcore")


def _gated(repo: str, status: int | None) -> PermissionError:
    if status == 403:
        state = "you are logged in, but your account or your token may not read it (yet)"
    else:
        state = "nobody is logged in on this machine, or the token is of no use"
    return PermissionError(
        f"{repo!r} is gated, and {state}. Accept its conditions at https://huggingface.co/{repo}, make a token with leave to read "
        f"gated repositories at https://huggingface.co/settings/tokens, and log in with `hf auth login` or set HF_TOKEN. "
        f"Without an account: {_UNGATED.get(repo, _SMALL)!r} can be had by anyone, and {_WITHOUT}"
    )


def _unreachable(repo: str, reason: Exception, state: str) -> ConnectionError:
    switched_off = any(type(link).__name__ == "OfflineModeIsEnabled" for link in _chain(reason))
    why = "HF_HUB_OFFLINE is set" if switched_off else f"the Hugging Face hub cannot be reached ({reason})"
    advice = "Unset HF_HUB_OFFLINE" if switched_off else "Look after the network and try again"
    return ConnectionError(
        f"{repo!r} is not a directory here, {why}, and {state}. {advice}, or download it elsewhere (`hf download {repo}`), copy the "
        f"folder here and give its path; {_WITHOUT}"
    )


def _no_room(repo: str, state: str) -> OSError:
    from huggingface_hub.constants import HF_HUB_CACHE

    return OSError(
        errno.ENOSPC,
        f"there is no room for {repo!r} in {HF_HUB_CACHE}: {state}. Make room, or set HF_HOME to a folder on a larger disk before "
        f"Python starts. A smaller model is {_SMALL!r} (2.5 GB), and {_WITHOUT}",
    )
