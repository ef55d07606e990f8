import torch

from llama3_edu.checks import Case, Exercise, Wrong

points = 2


def cases(generator: torch.Generator):
    for steps in (1, 3):
        yield Case(f"{steps} steps", (), steps)


def judge(exercise: Exercise, solution: type, case: Case):
    counter, other = solution(), solution()
    for _ in range(case.wanted):
        counter.step()
    if counter.count != case.wanted or other.count != 0:
        raise Wrong(f"count is {counter.count}, wanted is {case.wanted}")
