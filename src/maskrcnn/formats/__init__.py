"""Annotation formats: each module reads one into a COCO dict and writes it from one.

open.py recognizes and opens (`load_dataset`), convert.py writes (`convert`). coco, yolo, labelme, via, cvat, voc and png each have `recognize(source)`,
`splits(source)`, `read(source, images, split)` and `write(annotated, target, losses)`. content.py serves readers, parts.py writers, maps.py both.
"""
