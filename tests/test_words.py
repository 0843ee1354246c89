"""The words of the code and the documents: docs/glossary.md lists one word per idea."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Old words that have no other use here, each as a pattern of whole words; the second field says what to write.
OLD = {
    "picture": (r"pictur\w*", "image"),
    "joint": (r"joints|joint(?!_r50_fpn)", "keypoint; joint only as an adjective: joint model"),
    "outline": (r"outlin\w*", "polygon, or contour where it is traced from a mask"),
    "colour": (r"colour\w*", "color"),
    "run lengths": (r"run[ _]lengths?", "RLE"),
    "runs_ahead": (r"runs?_ahead|runs ahead", "is_async"),
    "doubt": (r"doubt\w*", "uncertainty; ignore band for a range of scores"),
    "mend": (r"mend(?:s|ed|ing)?", "fix"),
    "taught": (r"taught", "pseudo-label"),
    "lesson": (r"lessons?", "pseudo-labels"),
    "sitting": (r"sittings?", "session"),
    "magnification": (r"magnif\w*", "scale"),
    "doctor": (r"doctor\w*", "dataset checks"),
}
# After "joint": what can be joint. "jointly" is another word and does not match.
JOINT_THINGS = (
    r"(?= (?:model|training|network|demo|one|box|batch|answer|loss|R-?50|ResNet|small|run|Mask)"
    r"|-|[\"'`)]|=\"curve\")"
)
BEGINNING = "(?<![a-z])"  # of a word
BRITISH = re.compile(
    r"\b(?:colour|grey|centre|neighbour|behaviour|catalogue|licence|labelled|unlabelled|"
    r"normalis|initialis|recognis|optimis(?!t)|rasteris|favour)\w*",
    re.IGNORECASE,
)

# Where old words may stand: the glossary's column of them, tables of old names for saved files, history,
# and this list itself.
EXEMPT = {
    "docs/glossary.md",
    "src/maskrcnn/settings.py",
    "tests/golden_record/record.py",
    "tests/test_saved_before.py",
    "tests/test_words.py",
    "LICENSE",
}
EXEMPT_FOLDERS = ("tests/fixtures/", "docs/decisions/0049", "benchmarks/results/", "docs/images/")
TEXTS = {".py", ".md", ".html", ".toml", ".txt", ".sh", ""}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Every text file that belongs to the project, by name, with the words of names parted."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("needs a git checkout to know the files of the project")
    names = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    names = [name for name in names if name not in EXEMPT and not name.startswith(EXEMPT_FOLDERS)]
    return {
        name: parted((ROOT / name).read_text(encoding="utf-8", errors="ignore"))
        for name in names
        if Path(name).suffix in TEXTS
    }


def parted(text: str) -> str:
    """A text with spaces where underscores and capitals part the words of a name."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text.replace("_", " _ "))


def found_in(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The lines of a text that hold an old word."""
    # Beginning with a letter, and in one case, a pattern is searched for ten times as fast.
    if not re.search(pattern.pattern.removeprefix(BEGINNING).lower(), text.lower()):
        return []
    return [line.strip()[:120] for line in text.splitlines() if pattern.search(line)]


def pattern_of(word: str) -> re.Pattern[str]:
    expression = OLD[word][0].replace("_", "(?: _ )?")
    if word == "joint":
        expression = rf"joints|joint(?! _ r50)(?!{JOINT_THINGS[3:-1]})"
    return re.compile(rf"{BEGINNING}(?:{expression})(?![a-z])", re.IGNORECASE)


@pytest.mark.parametrize("word", OLD)
def test_old_words_are_gone(word: str, texts: dict[str, str]) -> None:
    pattern = pattern_of(word)
    lines = {name: hits for name, text in texts.items() if (hits := found_in(text, pattern))}
    assert not lines, f"write {OLD[word][1]}: {lines}"


def test_spelling_is_american(texts: dict[str, str]) -> None:
    lines = {name: hits for name, text in texts.items() if (hits := found_in(text, BRITISH))}
    assert not lines


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("picture", "def pictures_of(x):"),
        ("joint", "the joints of a person"),
        ("joint", "num_joints = 3"),
        ("joint", "each joint has a score"),
        ("outline", "Outlines"),
        ("mend", "mended.json"),
    ],
)
def test_an_old_word_would_be_detected(word: str, text: str) -> None:
    assert found_in(parted(text), pattern_of(word))


@pytest.mark.parametrize(
    "text", ["joint_r50_fpn", "a joint model", "jointly trained", "joint training"]
)
def test_joint_as_an_adjective_is_fine(text: str) -> None:
    assert not found_in(parted(text), pattern_of("joint"))
