"""Weights in and out: our own files, torchvision's, Detectron2's, and the catalog of published ones. `load` is the door."""
