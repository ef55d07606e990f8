"""Inputs of exercises come from the seed alone, and leave everything outside as it was."""

import pytest
import torch

from llama3_edu.checks import EXERCISES, CheckFailed, check
from llama3_edu.checks.material import TOLERANCES, counting_up, devices, kinds, random_llama
from llama3_edu.memory import parameter_count
from llama3_edu.model import Llama


def test_a_random_llama_comes_from_its_generator_alone(generator: torch.Generator):
    torch.manual_seed(1)
    one = random_llama(torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    other = random_llama(torch.Generator().manual_seed(3))
    third = random_llama(generator)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(one(tokens), other(tokens))
    assert not torch.equal(one(tokens), third(tokens))


def test_what_a_random_llama_writes_depends_on_what_stands_before(generator: torch.Generator):
    texts = torch.randint(13, (20, 2), generator=generator)
    model = random_llama(generator)
    same = (model(texts)[:, -1].argmax(-1) == model(texts[:, 1:])[:, -1].argmax(-1)).sum()
    assert same < 15


def test_making_inputs_leaves_the_randomness_of_others_alone():
    for exercise in EXERCISES:
        before = torch.get_rng_state()
        list(exercise.cases(torch.Generator().manual_seed(0)))
        assert torch.equal(torch.get_rng_state(), before), exercise.name


def test_every_type_is_tried_on_the_processor_and_float32_elsewhere():
    tried = list(kinds(*TOLERANCES))
    assert [(dtype, device.type) for dtype, device in tried[: len(TOLERANCES)]] == [(dtype, "cpu") for dtype in TOLERANCES]
    assert tried[len(TOLERANCES) :] == [(torch.float32, device) for device in devices()[1:]]


def test_counting_up_names_each_place():
    assert counting_up(1, 2, 3).tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert counting_up(2, first=7).tolist() == [7, 8]


def test_models_can_be_built_again_after_a_check_that_forbids_it(generator: torch.Generator):
    build = Llama.__init__
    with pytest.raises(CheckFailed, match="it built a model"):
        check("count_parameters", lambda config: Llama(config))
    check("count_parameters", parameter_count)
    assert Llama.__init__ is build and random_llama(generator)
