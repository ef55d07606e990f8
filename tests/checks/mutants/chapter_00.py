"""Wrong answers to the exercises of chapter 0, each with what its learner must be told."""

MUTANTS: dict[str, dict[str, tuple[str, str]]] = {}
