"""The runs at equal steps that answer: what should a person annotate, and from what start?

In: a number of steps and of seeds. Out: jobs, the most important first; within one question the
seeds come one after the other, so that an early end leaves whole comparisons.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .queue import Job, Line, Setup, groups, read_lines
from .sources import BATCH, IMAGES, SCENES, STEPS

SEEDS = 3
SCRATCH = "scratch"
LITE = "efficientnet_lite0_imagenet"
MAIN_KINDS = ("masks", "points", "boxes", "boxes_masks")
TWO_HOURS = 2 * 3600
TWO_HOUR_KINDS = ("masks", "points", "boxes")
OVERHEAD = 15.0  # seconds of a run beside its steps: the recipe, and the measurement at the end
RANK_SIZES = (20, 60)
THIRD = 3  # the goal: the AP of a start from scratch in a third of the steps


@dataclass(frozen=True)
class Arm:
    """One training at a fixed number of steps."""

    data: str
    kind: str = "masks"
    start: str = SCRATCH
    seed: int = 0
    steps: int = 0
    """0 = as many as the data set's usual."""
    images: int = 0
    """0 = as many as the data set's usual."""
    budget: int = 0
    """Seconds of annotation that decide the number of images; 0 = `images` does."""
    choice: str = "random"
    """How the images were chosen: random or rank."""
    variant: str = ""
    """Names `settings`."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Settings by dotted name that replace those of the recipe."""

    @property
    def key(self) -> dict[str, Any]:
        """What identifies the run in the results."""
        return {
            "data": self.data,
            "kind": self.kind,
            "start": self.start,
            "images": self.images or IMAGES[self.data],
            "budget": self.budget,
            "choice": self.choice,
            "variant": self.variant,
            "seed": self.seed,
            "steps": self.count,
            "batch": self.batch,
        }

    @property
    def count(self) -> int:
        """The steps of the run."""
        return self.steps or STEPS[self.data]

    @property
    def has_curve(self) -> bool:
        """Whether it is measured during the run, for AP over the CPU time of a start."""
        is_usual = not (self.images or self.budget or self.variant)
        return is_usual and self.kind == "masks" and self.data not in SCENES

    @property
    def batch(self) -> int:
        """Images per step."""
        return dict(self.settings).get("batch_size", BATCH[self.data])

    @property
    def name(self) -> str:
        parts = {
            "": (self.data, self.kind, self.start.split("_")[0], self.variant, self.choice),
            "images": (self.images,),
            "s": (self.budget,),
            "seed": (self.seed + 1,),
            "steps": (self.count,),
        }
        words = [
            f"{prefix}{value}" for prefix, values in parts.items() for value in values if value
        ]
        return "-".join(word for word in words if word != "random")

    def lines(self, setup: Setup) -> list[Line]:
        """The lines that this run has in the results."""
        return groups(read_lines(setup.results), **self.key)

    def is_finished(self, setup: Setup) -> bool:
        return any(line["final"] for line in self.lines(setup))

    def expected_seconds(self, setup: Setup) -> float:
        each = seconds_per_step(self, setup)
        return self.count * each + OVERHEAD if each else 0.0

    def run(self, setup: Setup) -> None:
        from .equal_steps import run

        run(self, setup)


def seconds_per_step(arm: Arm, setup: Setup) -> float:
    """From lines of the same data and start on such a device; 0 if there are none."""
    known = groups(read_lines(setup.results), data=arm.data, start=arm.start, device=setup.device)
    lines = groups(known, final=True)
    speeds = [line["seconds"] / line["step"] for line in lines if line["seconds"]]
    return statistics.median(speeds) if speeds else 0.0


@dataclass(frozen=True)
class RankedArms:
    """A model chooses its next images, several times: runs that depend on each other."""

    data: str
    seed: int
    steps: int = 0
    sizes: tuple[int, ...] = RANK_SIZES

    @property
    def name(self) -> str:
        return f"{self.data}-ranked-seed{self.seed + 1}-steps{self.arms()[0].count}"

    def arms(self) -> list[Arm]:
        """The first is trained on random images, each other on those that the one before chose."""
        first = Arm(self.data, seed=self.seed, steps=self.steps, images=self.sizes[0])
        return [
            first,
            *(replace(first, images=size, choice="rank") for size in self.sizes[1:]),
        ]

    def is_finished(self, setup: Setup) -> bool:
        return all(arm.is_finished(setup) for arm in self.arms())

    def expected_seconds(self, setup: Setup) -> float:
        left = sum(not arm.is_finished(setup) for arm in self.arms())
        return left * self.arms()[0].expected_seconds(setup)

    def run(self, setup: Setup) -> None:
        from .equal_steps import run_ranked

        run_ranked(self, setup)


@dataclass(frozen=True)
class Front:
    """A longer training whose model and overlays are kept."""

    data: str
    mask_side: int
    """Cells of a mask's side: 28, 56 or 112."""
    steps: int
    start: str = LITE
    seconds: float = 0.0
    """Time after which it ends, with fewer steps; 0 = none."""

    @property
    def name(self) -> str:
        return f"front-{self.data}-{self.mask_side}"

    @property
    def key(self) -> dict[str, Any]:
        """What identifies the run in the results."""
        return {"front": self.data, "mask side": self.mask_side, "start": self.start}

    def is_finished(self, setup: Setup) -> bool:
        return bool(groups(read_lines(setup.results), **self.key))

    def expected_seconds(self, setup: Setup) -> float:
        return self.seconds

    def run(self, setup: Setup) -> None:
        from .front import run

        run(self, setup)


def questions(steps: int = 0, seeds: int = SEEDS) -> dict[str, list[Job]]:
    """All runs at equal steps by the question that they answer, the most important first.

    A run that answers several questions is in each of them.

    Args:
        steps: of every run; 0 = as many as the data set's usual.
        seeds: how many.
    """
    several = range(seeds)
    ranked: list[Job] = []
    for seed in several:
        ranked.append(RankedArms("nuclei", seed, steps))
        # The first of the ranked ones is random.
        ranked += [Arm("nuclei", seed=seed, steps=steps, images=n) for n in RANK_SIZES[1:]]

    return {
        "kinds": [arm for seed in several for arm in _kinds(("nuclei", "scenes"), seed, steps)],
        "starts": [arm for seed in several for arm in _starts(seed, steps)],
        "plants": [arm for seed in several for arm in _kinds(("plants",), seed, steps, LITE)],
        "started_kinds": [
            arm for seed in several for arm in _kinds(("nuclei", "scenes"), seed, steps, LITE)
        ],
        "two_hours": [arm for seed in several for arm in _two_hours(seed, steps)],
        "rank": ranked,
    }


def _kinds(sources: Sequence[str], seed: int, steps: int, start: str = SCRATCH) -> Iterator[Arm]:
    for kind in MAIN_KINDS:
        yield from (Arm(data, kind, start, seed, steps) for data in sources)


def _starts(seed: int, steps: int) -> Iterator[Arm]:
    # What the photographs of COCO tell is the same with two seeds.
    sources = ("nuclei", "plants", "coco_mini_kp") if seed < 2 else ("nuclei", "plants")
    for data in sources:
        scratch = Arm(data, seed=seed, steps=steps)
        started = replace(scratch, start=LITE)
        yield from (scratch, started, replace(started, steps=started.count // THIRD))


def _two_hours(seed: int, steps: int) -> Iterator[Arm]:
    """Plants are so few that two hours of points or boxes annotate them all."""
    for start in (SCRATCH, LITE):
        for kind in TWO_HOUR_KINDS:
            yield Arm("nuclei", kind, start, seed, steps, budget=TWO_HOURS)
    yield Arm("plants", "masks", LITE, seed, steps, budget=TWO_HOURS)


def front(steps: int, seconds: float) -> list[Job]:
    """The trainings of the front window: thin parts with three sizes of masks, and everyday
    photographs.
    """
    wanted = (("plants", 112), ("plants", 56), ("plants", 28), ("coco_mini_kp", 28))
    return [Front(data, side, steps, seconds=seconds) for data, side in wanted]


def variants(path: Path, steps: int, seeds: int) -> list[Job]:
    """Runs with other settings, from a file with one `name setting=value ...` a line.

    `kind`, `data`, `start` and `steps` are those of the arm, and `seeds` says how many there are at
    most; all other settings are the configuration's.
    Without `data`, nuclei and scenes are used; without `kind`, boxes.
    """
    texts = [text.split("#")[0].split() for text in path.read_text().splitlines()]
    jobs: list[Job] = []
    for seed in range(seeds):
        for name, *pairs in filter(None, texts):
            settings = {k: _value(v) for k, _, v in (pair.partition("=") for pair in pairs)}
            kind = settings.pop("kind", "boxes")
            start = settings.pop("start", SCRATCH)
            sources = settings.pop("data", "nuclei,scenes").split(",")
            count = settings.pop("steps", steps)
            if seed >= settings.pop("seeds", seeds):
                continue
            rest = tuple(settings.items())
            jobs += [
                Arm(data, kind, start, seed, count, variant=name, settings=rest) for data in sources
            ]
    return jobs


def _value(text: str) -> Any:
    """A value as JSON, else as text; lists, also without brackets, are tuples."""
    for form in (text, f"[{text}]"):
        try:
            value = json.loads(form)
        except json.JSONDecodeError:
            continue
        return tuple(value) if isinstance(value, list) else value
    return text
