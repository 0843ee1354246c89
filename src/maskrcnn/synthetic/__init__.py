"""Drawn images with exact truth, for the demo, tests and first experiments without data.

This package draws and annotates images: scenes of balls, stars, rings and figures
(scenes.py, shapes.py) and a fluorescence micrograph (micrograph.py). Everything is a function of a
seed. Augmentation of existing images is in augmentation/.
"""
