"""The tool that follows Colab reads what `pip freeze` writes, and says what moved."""

from datetime import date

import colab_versions as tool
import pytest

FREEZE = """\
# Do not modify
anywidget==0.9.22
huggingface_hub==1.30.0
google-colab @ file:///colabtools/dist/google_colab-1.0.0.tar.gz
torch==2.12.0+cu128
"""
KNOWN = "# Seen on 2026-01-02, of what is imported.\nanywidget==0.9.21\nhuggingface-hub==1.30.0\n"


def test_versions_are_read_and_addresses_are_not() -> None:
    assert tool.frozen(FREEZE) == {"anywidget": "0.9.22", "huggingface-hub": "1.30.0", "torch": "2.12.0+cu128"}


def test_names_stay_and_versions_follow() -> None:
    after = tool.updated(KNOWN, tool.frozen(FREEZE), today=date(2026, 3, 4))
    assert after == "# Seen on 2026-03-04, of what is imported.\nanywidget==0.9.22\nhuggingface-hub==1.30.0\n"
    assert tool.differences(KNOWN, after) == ["anywidget==0.9.21 → 0.9.22"]
    assert tool.updated(after, tool.frozen(FREEZE), today=date(2026, 3, 4)) == after


def test_what_colab_lost_is_named() -> None:
    with pytest.raises(ValueError, match="does not have psutil any more"):
        tool.updated("psutil==5.9.5\n", tool.frozen(FREEZE), today=date(2026, 3, 4))
