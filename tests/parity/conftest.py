"""Parity with transformers: one measure for every comparison, and the worst of them in the summary."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here needs a network

import pytest
import transformers

transformers.utils.logging.disable_progress_bar()

TOLERANCE = 1e-4
_WORST = pytest.StashKey[tuple[float, str]]()


@pytest.fixture
def agree(request):
    """Assert that our logits are theirs to 1e-4, and remember the largest difference of the whole run."""

    def compare(ours, theirs):
        assert ours.shape == theirs.shape
        error = (ours.double() - theirs.double()).abs().max().item()
        request.config.stash[_WORST] = max(request.config.stash.get(_WORST, (0.0, "")), (error, request.node.name))
        assert error <= TOLERANCE, f"logits differ by {error:.2e}, more than {TOLERANCE:.0e}"

    return compare


def pytest_terminal_summary(terminalreporter, config):
    if _WORST in config.stash:
        error, name = config.stash[_WORST]
        terminalreporter.write_line(f"worst parity error: {error:.2e} ({name}; allowed {TOLERANCE:.0e})")
