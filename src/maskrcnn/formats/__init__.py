"""Annotation formats: each module reads one into a COCO dict and writes it from one.

open.py recognises and opens (`open_data`), convert.py writes (`convert`). coco, yolo, labelme, via, cvat, voc and png each have `recognise(source)`,
`splits(source)`, `read(source, images, split)` and `write(annotated, target, losses)`. content.py serves readers, parts.py writers, maps.py both.
"""
