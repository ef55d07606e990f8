"""From what a reader types to a directory on disk: a path, or the name of a repository on the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["local_directory"]


def local_directory(path_or_repo: str | Path, *, files: Sequence[str]) -> Path:
    """Return the directory that holds a model's files; download them first where a repository is named.

    Args:
        path_or_repo: a directory, or `owner/name` on the hub. A directory of that name wins.
        files: which files to download, as shell patterns. A directory on disk is returned whatever it holds.

    Raises:
        NotADirectoryError: the path is a file.
        FileNotFoundError: there is no such directory, and no repository of that name that can be reached.
    """
    path = Path(path_or_repo)
    if path.is_dir():
        return path
    if path.exists():
        raise NotADirectoryError(f"{path} is a file; give the directory that holds it")
    if isinstance(path_or_repo, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path_or_repo):
        return _download(path_or_repo, files)
    raise FileNotFoundError(f"{str(path_or_repo)!r} is neither a directory nor a repository name of the form owner/name")


def _download(repo: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download  # only who names a repository needs it

    try:
        return Path(snapshot_download(repo, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{repo!r} is not a directory here, and the Hugging Face hub does not give it: {error}"
        ) from error
