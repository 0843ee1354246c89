"""From images to detected objects: `Predictor`, `predict`, test-time augmentation, folders.

This package runs a trained model on images that have no annotations and writes the results. Metrics
against annotations are in `evaluation`; overlays are drawn by `draw`.
"""
