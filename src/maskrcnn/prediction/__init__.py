"""From images to detected objects: `Predictor`, `predict`, test-time augmentation, folders.

Here belongs what runs a trained model on images that have no annotations, and what writes the
results. Metrics against annotations are in `evaluation`; overlays are drawn by `draw`.
"""
