"""The page of licences: whole, current, and read from what packages say of themselves."""

import licences
import pytest


def test_the_page_is_current() -> None:
    problems = licences.stale(licences.PAGE.read_text(encoding="utf-8"))
    assert problems == [], "run tools/licences.py"


def test_every_requirement_is_listed_with_a_licence() -> None:
    listed = licences.written(licences.PAGE.read_text(encoding="utf-8"))
    assert listed.keys() == licences.pinned().keys() >= licences.of_the_package() and len(listed) > 100
    assert all(said.strip() for said in listed.values())


def test_what_is_missing_surplus_or_changed_is_named() -> None:
    listed = licences.written(licences.PAGE.read_text(encoding="utf-8"))
    changed = {name: said for name, said in listed.items() if name != "numpy"} | {"leftpad": "WTFPL", "pytest": "Secret"}
    assert licences.stale(licences.page_of(changed)) == [
        "numpy is missing", "leftpad is installed no more", f"pytest says {listed['pytest']}; the page says Secret",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "texts", "said"),
    [
        (
            {
                "license_expression": "MIT AND PSF-2.0",
                "license": "other",
                "classifier": ["License :: OSI Approved :: BSD License"],
            },
            [],
            "MIT AND PSF-2.0",
        ),
        (
            {
                "classifier": ["Topic :: Text", "License :: OSI Approved", "License :: OSI Approved :: BSD License"],
                "license": "long",
            },
            [],
            "BSD",
        ),
        ({"license": "Apache License, Version 2.0\n\nTERMS"}, [], "Apache-2.0"),
        ({"license": "UNKNOWN"}, ["", "\nMIT License\n\nCopyright"], "MIT"),
        ({}, [], ""),
    ],
)
def test_the_most_exact_word_counts(fields: dict[str, object], texts: list[str], said: str) -> None:
    assert licences.licence(fields, texts) == said
