"""What was graded already: a file beside the grades, one line for each submission, so that grading can stop and go on."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coursework.judge import Outcome, Verdict

__all__ = ["Journal", "fingerprint"]


class Journal:
    """Results on disk, each written when it is known.

    Args:
        path: the file; made where it is missing. A last line that was cut short is left out.
        plan: names everything that grades hang on besides the submission. Results of another plan do not count.
        seed: makes the inputs of the checks, unless the journal holds another one for this plan: all submissions get the same.
    """

    def __init__(self, path: Path, *, plan: str, seed: int) -> None:
        self._path, self._plan = path, plan
        records = [record for record in self._read() if record.get("plan") == plan]
        seeds = [record["seed"] for record in records if "seed" in record]
        self._results = {record["key"]: record["result"] for record in records if "key" in record}
        self.seed: int = seeds[0] if seeds else seed
        if not seeds:
            self._append({"plan": plan, "seed": seed})

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def __getitem__(self, key: str) -> list[Verdict]:
        return [_verdict(fields) for fields in self._results[key]]

    def add(self, key: str, verdicts: list[Verdict]) -> None:
        """Keep what came of a submission."""
        self._results[key] = [asdict(verdict) for verdict in verdicts]
        self._append({"plan": self._plan, "key": key, "result": self._results[key]})

    def _read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        records = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def _append(self, record: dict[str, Any]) -> None:
        cut = self._path.exists() and not self._path.read_bytes().endswith(b"\n") and self._path.stat().st_size
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("\n" if cut else "") + json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def fingerprint(*parts: str | bytes | Path) -> str:
    """Return a name for some texts and files: another one where any of them differs."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()


def _verdict(fields: dict[str, Any]) -> Verdict:
    outcomes = tuple(Outcome(**outcome) for outcome in fields["outcomes"])
    return Verdict(fields["name"], outcomes, tuple(fields["notes"]))
