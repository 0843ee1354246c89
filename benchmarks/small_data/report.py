"""Tables and charts of the runs at equal steps, for docs/small_data.md and docs/results.md.

In: the lines of results, and the CPU seconds of a step. Out: the parts of the pages between
`<!-- name -->` and `<!-- end -->`, and images/small_data_*.svg.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..charts import save_charts
from .annotation_kinds import KINDS, seconds_per_object
from .arms import LITE, MAIN_KINDS, SCRATCH, THIRD, TWO_HOURS
from .queue import HERE, Line, groups, read_lines
from .sources import IMAGES

DOCS = HERE.parent / "docs"
PAGE, FRONT_PAGE = DOCS / "small_data.md", DOCS / "results.md"
STARTS = {SCRATCH: "random", LITE: "EfficientNet-Lite0"}
NAMES = {
    "nuclei": "nuclei",
    "scenes": "drawn scenes",
    "many_scenes": "1,200 drawn scenes",
    "plants": "plants",
    "coco_mini_kp": "COCO photographs",
}
WHOLE = {"budget": 0, "choice": "random", "variant": ""}


def write(results: Path, step_cost: Path) -> None:
    """Prints the tables and writes them into the pages.

    Raises:
        SystemExit: there are no finished runs.
    """
    lines = read_lines(results)
    finished = [line for line in lines if line.get("final")]
    if not finished:
        raise SystemExit(f"{results}: no finished runs")
    cost = json.loads(step_cost.read_text())["seconds"] if step_cost.exists() else {}
    # A start's third has fewer steps than the other runs on the same data, some variants have more.
    steps: dict[str, int] = {}
    for line in groups(finished, variant=""):
        steps[line["data"]] = max(line["steps"], steps.get(line["data"], 0))
    study = [line for line in finished if line["steps"] == steps.get(line["data"])]

    parts = {
        "kinds": table_of_kinds(study),
        "types": table_of_types(study),
        "hours": table_of_hours(study),
        "starts": table_of_starts(finished, steps, cost),
        "rank": table_of_rank(study),
        "variants": table_of_variants(study),
    }
    for name, text in parts.items():
        print(f"{name}\n\n{text}\n")
        replace_part(PAGE, name, text)
    front = [line for line in lines if "front" in line]
    print(table_of_front(front))
    replace_part(FRONT_PAGE, "front", table_of_front(front))
    draw(lines, study, steps, cost)


def replace_part(page: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- name -->` and the next `<!-- end -->`, if the page has it
    and there is something to write.
    """
    if text:
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        new = re.sub(
            pattern, lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page.read_text(), flags=re.DOTALL
        )
        page.write_text(new)


# Numbers


def value(line: Line, name: str) -> float | None:
    """A number of a line; None where the run has none."""
    return line.get(name)


def spread(lines: Sequence[Line], name: str) -> str:
    """The mean over the seeds; with several also the smallest and the largest value."""
    values = [v for line in lines if (v := value(line, name)) is not None and v >= 0]
    if not values:
        return ""
    text = f"{statistics.mean(values):.3f}"
    return f"{text} ({min(values):.3f}..{max(values):.3f})" if len(values) > 1 else text


def mean(lines: Sequence[Line], name: str, part: str = "") -> float:
    """The mean of a number, or of one inside a part of the lines."""
    return statistics.mean((line[part] if part else line)[name] for line in lines)


def usual(lines: Sequence[Line], data: str, **wanted: object) -> list[Line]:
    """The runs on a data set's usual number of images."""
    return groups(lines, data=data, images=IMAGES[data], **WHOLE, **wanted)


def same_seeds(lines: Sequence[Line], others: Sequence[Line]) -> list[Line]:
    """The lines whose seed the others have too."""
    seeds = {line["seed"] for line in others}
    return [line for line in lines if line["seed"] in seeds]


def rows(header: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """A table; empty without rows."""
    if not body:
        return ""
    texts = [list(header), ["---"] * len(header), *([str(cell) for cell in row] for row in body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in texts)


# Tables


def table_of_kinds(lines: Sequence[Line]) -> str:
    """Each kind of annotation against masks, on the same images."""
    body: list[list[object]] = []
    for start in STARTS:
        for data in NAMES:
            whole = usual(lines, data, kind="masks", start=start)
            for kind in MAIN_KINDS:
                selected = usual(lines, data, kind=kind, start=start)
                if selected and whole:
                    body.append(_row_of_kind(selected, whole, kind, data, start))
    header = (
        "data",
        "start",
        "annotation",
        "seeds",
        "mask AP",
        "AP50",
        "AP75",
        "box AP",
        "of masks: AP",
        "AP75",
        "ellipses",
        "above ellipses",
    )
    return rows(header, body)


def _row_of_kind(
    selected: Sequence[Line], whole: Sequence[Line], kind: str, data: str, start: str
) -> list[object]:
    numbers = [spread(selected, f"mask {n}") for n in ("AP", "AP50", "AP75")]
    shared = same_seeds(whole, selected)
    floor = mean(shared, "mask AP", "ellipses") if shared else float("nan")
    shares = ["", "", "", ""]
    if shared and kind != "masks":
        own = same_seeds(selected, shared)
        above = (mean(own, "mask AP") - floor) / (mean(shared, "mask AP") - floor)
        shares = [
            f"{mean(own, 'mask AP') / mean(shared, 'mask AP'):.0%}",
            f"{mean(own, 'mask AP75') / mean(shared, 'mask AP75'):.0%}",
            "",
            f"{above:.0%}",
        ]
    elif shared:
        shares[2] = f"{floor:.3f}"
    row = [NAMES[data], STARTS[start], KINDS[kind], len(selected), *numbers]
    return [*row, spread(selected, "box AP"), *shares]


def table_of_types(lines: Sequence[Line]) -> str:
    """The nuclei by type of image, from random weights."""
    body: list[list[object]] = []
    whole = usual(lines, "nuclei", kind="masks", start=SCRATCH)
    if not whole:
        return ""
    types = [name for name in ("fluorescence", "histology", "brightfield") if name in whole[0]]
    for kind_of_image in types:
        for kind in MAIN_KINDS:
            selected = usual(lines, "nuclei", kind=kind, start=SCRATCH)
            shared = same_seeds(whole, selected)
            if not shared:
                continue
            parts = [line[kind_of_image] for line in selected]
            own = mean(same_seeds(selected, shared), "mask AP", kind_of_image)
            full = mean(shared, "mask AP", kind_of_image)
            floors = [line[kind_of_image]["ellipses"]["mask AP"] for line in shared]
            body.append(
                [
                    f"{kind_of_image} ({_range(part['images'] for part in parts)})",
                    KINDS[kind],
                    spread(parts, "mask AP"),
                    spread(parts, "mask AP75"),
                    "" if kind == "masks" else f"{own / full:.0%}",
                    f"{statistics.mean(floors):.3f}" if kind == "masks" else "",
                ]
            )
    return rows(("images", "annotation", "mask AP", "AP75", "of masks: AP", "ellipses"), body)


def table_of_hours(lines: Sequence[Line]) -> str:
    """AP and the hours of annotation: two hours, and the whole data set."""
    body: list[list[object]] = []
    for data in ("nuclei", "plants"):
        for budget in (TWO_HOURS, 0):
            for kind in MAIN_KINDS:
                both = [_with_budget(lines, data, budget, kind, start) for start in STARTS]
                if any(both):
                    some = both[0] or both[1]
                    hours = statistics.mean(line["annotation seconds"] for line in some) / 3600
                    body.append(
                        [
                            NAMES[data],
                            KINDS[kind],
                            f"{seconds_per_object(kind):.1f}",
                            _range(line["images used"] for line in some),
                            _range(line["objects"] for line in some),
                            f"{hours:.1f}",
                            *(spread(selected, "mask AP") for selected in both),
                        ]
                    )
    header = (
        "data",
        "annotation",
        "seconds per object",
        "images",
        "objects",
        "hours",
        *(f"mask AP from {name} weights" for name in STARTS.values()),
    )
    return rows(header, body)


def _with_budget(
    lines: Sequence[Line], data: str, budget: int, kind: str, start: str
) -> list[Line]:
    """Two hours, or all images. Two hours of some kinds are more than all plants take."""
    if budget == 0:
        return usual(lines, data, kind=kind, start=start)
    return groups(lines, data=data, budget=budget, kind=kind, start=start, variant="")


def _range(values: object) -> str:
    numbers = sorted(set(values))  # ty: ignore[invalid-argument-type]
    return f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"


def table_of_starts(
    lines: Sequence[Line], steps: Mapping[str, int], cost: Mapping[str, float]
) -> str:
    """Each start, also with a third of the steps."""
    body: list[list[object]] = []
    for data in steps:
        if not usual(lines, data, kind="masks", start=LITE):
            continue
        for start, count in started(steps[data]):
            selected = usual(lines, data, kind="masks", start=start, steps=count)
            if selected:
                step = cost.get(f"{data} masks {start}")
                names = ("mask AP", "mask AP50", "box AP", "keypoint AP")
                body.append(
                    [
                        NAMES[data],
                        STARTS[start],
                        count,
                        f"{step * count:.0f}" if step else "",
                        len(selected),
                        *(spread(selected, name) for name in names),
                    ]
                )
    header = (
        "data",
        "start",
        "steps",
        "CPU seconds",
        "seeds",
        "mask AP",
        "AP50",
        "box AP",
        "keypoint AP",
    )
    return rows(header, body)


def started(steps: int) -> list[tuple[str, int]]:
    """Starts and steps that are compared."""
    return [(SCRATCH, steps), (LITE, steps), (LITE, steps // THIRD)]


def table_of_rank(lines: Sequence[Line]) -> str:
    """Images chosen by `rank` against the same number of random ones."""
    body: list[list[object]] = []
    masks = groups(lines, data="nuclei", kind="masks", start=SCRATCH, budget=0, variant="")
    for count in sorted({line["images"] for line in masks if line["choice"] == "rank"}):
        ranked = groups(masks, images=count, choice="rank")
        random = groups(masks, images=count, choice="random")
        pairs = [
            (line["mask AP"] - other["mask AP"], line["seed"])
            for line in ranked
            for other in groups(random, seed=line["seed"])
        ]
        changes = ", ".join(f"{change:+.3f}" for change, _ in sorted(pairs, key=lambda p: p[1]))
        objects = (_range(line["objects"] for line in part) for part in (random, ranked) if part)
        body.append(
            [count, spread(random, "mask AP"), spread(ranked, "mask AP"), changes, *objects]
        )
    header = (
        "images",
        "random: mask AP",
        "rank: mask AP",
        "change for each seed",
        "objects, random",
        "objects, rank",
    )
    return rows(header, body)


def table_of_variants(lines: Sequence[Line]) -> str:
    """Other settings against those of the recipe, on the same images and seeds."""
    body: list[list[object]] = []
    for variant in dict.fromkeys(line["variant"] for line in lines if line["variant"]):
        for data in NAMES:
            selected = groups(lines, variant=variant, data=data, budget=0)
            for kind in dict.fromkeys(line["kind"] for line in selected):
                own = groups(selected, kind=kind)
                base = same_seeds(usual(lines, data, kind=kind, start=own[0]["start"]), own)
                row = [variant, NAMES[data], KINDS[kind], len(own)]
                row += [spread(own, name) for name in ("mask AP", "mask AP75")]
                body.append([*row, spread(base, "mask AP")])
    header = ("variant", "data", "annotation", "seeds", "mask AP", "AP75", "without it: mask AP")
    return rows(header, body)


def table_of_front(lines: Sequence[Line]) -> str:
    """The longer runs on real images."""
    body: list[list[object]] = []
    for line in lines:
        names = ("mask AP", "mask AP50", "mask AP75", "box AP", "keypoint AP")
        side = line["mask side"]
        row = [NAMES[line["front"]], f"{side} x {side}", line["steps"]]
        body.append([*row, *(f"{line[n]:.3f}" if n in line else "" for n in names)])
    header = ("data", "mask", "steps", "mask AP", "AP50", "AP75", "box AP", "keypoint AP")
    return rows(header, body)


# Charts


def draw(
    lines: Sequence[Line],
    study: Sequence[Line],
    steps: Mapping[str, int],
    cost: Mapping[str, float],
) -> None:
    """Draws AP over the CPU time for each start, and over the hours of annotation."""
    starts = {
        f"{NAMES[data]}: mask AP": ("CPU seconds of one core", curves)
        for data in steps
        if usual(study, data, kind="masks", start=LITE)
        and (curves := curves_of_starts(lines, data, steps[data], cost))
    }
    if starts:
        save_charts(DOCS / "images" / "small_data_starts.svg", starts)
    hours = {
        f"{NAMES[data]}, {name} weights: mask AP": ("hours of annotation, logarithmic", curves)
        for data in ("nuclei", "plants")
        for start, name in STARTS.items()
        if len(curves := curves_of_hours(study, data, start)) > 1
    }
    if hours:
        save_charts(DOCS / "images" / "small_data_hours.svg", hours, columns=2, logarithmic=True)


def curves_of_starts(
    lines: Sequence[Line], data: str, steps: int, cost: Mapping[str, float]
) -> dict[str, list[tuple[float, float]]]:
    """Mean AP on few images over CPU seconds, at the points of the runs."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for start, count in started(steps):
        runs = [line for line in lines if "few" in line]
        selected = usual(runs, data, kind="masks", start=start, steps=count)
        each = cost.get(f"{data} masks {start}")
        if selected and each:
            name = "Lite0, 1/3 of the steps" if count < steps else STARTS[start]
            curves[name] = [
                (step * each, mean(groups(selected, step=step), "mask AP", "few"))
                for step in sorted({line["step"] for line in selected})
            ]
    return curves


def curves_of_hours(
    study: Sequence[Line], data: str, start: str
) -> dict[str, list[tuple[float, float]]]:
    """Mean AP over the hours of annotation, for each kind."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for kind in MAIN_KINDS:
        selected = [_with_budget(study, data, budget, kind, start) for budget in (TWO_HOURS, 0)]
        points = [
            (mean(part, "annotation seconds") / 3600, mean(part, "mask AP"))
            for part in selected
            if part
        ]
        if points:
            curves[KINDS[kind]] = points
    return curves
