"""What every test shares: shapes in signatures are checked at every call, and devices are those this machine has."""

import os
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from hypothesis import settings

# Before anything imports the package: from here on a wrong shape or type at any call into it is an error.
jaxtyping.install_import_hook("llama3_edu", "typecheck.typecheck")

# Triton settles when it is first imported whether it compiles kernels or interprets them. Without a GPU it can only interpret.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A shared machine is slow now and then; that says nothing about the code.
settings.register_profile("no deadline", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("no deadline")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES, scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    """A source of randomness that starts from the same seed in every test."""
    return torch.Generator().manual_seed(20)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations go unchecked, as everywhere outside these tests: for wrong input that the package itself must refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
