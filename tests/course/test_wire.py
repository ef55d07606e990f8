"""What comes out of a sandbox is data: values come as they went, and nothing else comes at all."""

import json
import os
import struct

import pytest
import torch
from coursework import wire

from llama3_edu.checks.compare import difference

VALUES = [
    None, True, 0, -7, 2**80, 1.5, float("inf"), float("nan"), "text ✓", [1, [2.0, "x"]], (1, (2,)), {"a": [1], 3: (None,)},
    torch.tensor(3), torch.randn(2, 3), torch.zeros(0, 4), torch.ones(2, dtype=torch.bool), torch.randn(3, 2).T,
    torch.randn(4).to(torch.bfloat16), torch.tensor([1 + 2j]), torch.arange(6, dtype=torch.int8)[::2],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_as_they_went(value) -> None:
    came = wire.decoded(json.loads(json.dumps(wire.encoded(value))))
    assert type(came) is type(value) and difference(came, value) == ""


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", lambda: 1, [object()], torch.randn(2, 2).to_sparse()])
def test_nothing_else_goes(value) -> None:
    with pytest.raises(wire.NotPlain):
        wire.encoded(value)


def test_containers_that_hold_themselves_do_not_go() -> None:
    loop: list = []
    loop.append(loop)
    with pytest.raises(wire.NotPlain, match="deep"):
        wire.encoded(loop)


@pytest.mark.parametrize(
    "sent",
    [
        {"pickle": "x"}, {}, {"list": 3}, {"float": "x"}, {"int": "z"}, {"dict": [[{"list": []}, 1]]}, {"dict": [1]},
        {"tensor": ["float32", [10**12], ""]}, {"tensor": ["float32", [3], "AAAA"]}, {"tensor": ["no", [0], ""]},
        {"tensor": ["float32", [-1, 0], ""]},
        {"tensor": ["float32", [10**9], "AAAAAA=="]}, {"a": 1, "b": 2},
    ],
)  # fmt: skip
def test_what_was_never_sent_is_refused(sent) -> None:
    with pytest.raises(wire.Closed, match="cannot be read"):
        wire.decoded(sent)


@pytest.mark.parametrize("payload", [b"not json", b"[1]", b"\xff\xfe", b"[" * 10**5])
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    there, here = os.pipe()
    os.write(here, struct.pack(">I", min(len(payload), 9)) + payload[:9])
    os.close(here)
    with pytest.raises(wire.Closed):
        wire.read_json(there)
    os.close(there)


def test_a_message_that_is_announced_too_long_is_not_waited_for() -> None:
    there, here = os.pipe()
    os.write(here, struct.pack(">I", wire.LARGEST_MESSAGE + 1))
    with pytest.raises(wire.Closed, match="announced"):
        wire.read_frame(there)
    os.close(here)
    os.close(there)
