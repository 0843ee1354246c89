"""The front window: a longer training on real images, with the model and overlays kept.

In: data, the size of the masks, a start. Out: a line of results, the model in half precision, and
overlays of validation images.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

import maskrcnn as mr
from maskrcnn.model.maskrcnn import MaskRCNN

from .arms import Arm, Front
from .equal_steps import log_of, recipe_of, shown, trained_in
from .measure import Validation
from .queue import Setup, append, commit
from .sources import IMAGES, dataset, first_images, selected, validation, whole_training_set

OVERLAYS = 4
QUALITY = 80
LONGEST = 1024  # px of an overlay
MIN_SCORE = 0.5
DOUBLINGS = {28: 1, 56: 2, 112: 3}


def run(front: Front, setup: Setup) -> None:
    """Trains, measures and draws; the run is repeated from the beginning if it was cut."""
    chosen = first_images(front.data, setup, 0, IMAGES[front.data])
    content = selected(whole_training_set(front.data, setup), chosen)
    data = dataset(front.data, setup, content)
    channels = (64,) * DOUBLINGS[front.mask_side]
    settings = (("model.mask.upsample", channels), ("model.mask.truth_size", 112))
    recipe = recipe_of(
        Arm(front.data, start=front.start, steps=front.steps, settings=settings), data
    )
    config = replace(
        recipe.training,
        max_time=front.seconds or None,
        tensorboard=False,
        evaluate_every=1e6,
        checkpoint_every=1e6,
    )
    out = setup.out / front.name
    print(f"{front.name}: {recipe}", file=log_of(out), flush=True)

    begin = time.monotonic()
    trained = trained_in(out, recipe, data, config, setup)
    seconds = time.monotonic() - begin

    model = trained.model
    steps = len((trained.out / "metrics.csv").read_text().splitlines()) - 1
    mr.save(model, setup.out / f"{front.name}.safetensors", dtype=torch.float16)
    measured = validation(front.data, setup)
    numbers = measured.all_numbers(model, setup.device)
    facts = {"device": setup.device, "commit": commit(), "steps": steps, "seconds": round(seconds)}
    append(setup.results, {**front.key, **facts, **numbers})
    print(f"{front.name}: {steps} steps, {seconds:.0f} s, {shown(numbers)}", flush=True)
    draw(front, model, measured, setup)


def draw(front: Front, model: MaskRCNN, measured: Validation, setup: Setup) -> None:
    """Writes overlays of validation images that are spread over the set."""
    predictor = mr.Predictor(model, device=setup.device, min_score=MIN_SCORE)
    data = measured.data
    for number in range(OVERLAYS):
        index = int((number + 0.5) * len(data) / OVERLAYS)
        overlay = mr.draw_instances(predictor(data.image(index)), data.image(index))
        overlay.thumbnail((LONGEST, LONGEST))
        name = f"{front.name}-{number + 1}.jpg"
        overlay.convert("RGB").save(setup.out / name, quality=QUALITY)
