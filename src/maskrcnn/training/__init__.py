"""Training: from a model's configuration and annotated images to a run folder with trained models.

Belongs here: the loop, one optimizer step, which images a step gets, validation, checkpoints, logs,
the time budget, pseudo-labels for unlabeled images, and the plan of a run (`plan_training`). Not
here: the choice of settings (`recipe`), image augmentation (`augmentation`), losses (`model`).
"""
