"""Annotation formats: each module reads one format into COCO dictionaries and writes it from them.

`load_dataset` and `convert_annotations` are the two entry points. A format is one module that ends
in a `Format` (format.py), and one line in all_formats.py. reading.py serves the readers, writing.py
the writers, id_maps.py both.

Not in this package: checks of the annotations themselves (`annotations`, `dataset_checks`),
and the geometry of masks (`annotations.rle`, `annotations.contours`).
"""
