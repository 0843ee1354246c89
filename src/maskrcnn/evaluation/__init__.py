"""Predictions against annotations: COCO's average precision and recall, by hotcoco.

This package holds the metric, the matching of a model's categories to those of the data, and the
rules for partially annotated images. `prediction` runs the model.
"""
