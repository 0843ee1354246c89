"""COCO annotations: read, check, merge and split data sets; masks as RLE and polygons.

`coco_dataset` is the entry point. This package covers annotations regardless of what uses them.
Reading and writing other formats is in `formats`, deeper checks and fixes are in `dataset_checks`,
training examples in `augmentation`.
"""
