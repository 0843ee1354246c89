"""Predictions against annotations: COCO's average precision and recall, by hotcoco.

Here belong the metric, the matching of a model's categories to those of the data, and the rules for
images that are annotated only in part. Running the model is the work of `prediction`.
"""
