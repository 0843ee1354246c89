"""Prediction on many machines: a source of images in parts, workers, part files, and their join.

Each part of the source becomes one file. Which images a part has depends on the source alone, so
that any number of processes, or Ray, makes the same files, and a second run repeats nothing.
"""
