"""Exported model files, and running them without PyTorch.

Here: what a file's inputs, outputs and metadata mean (`contract`), and the runner. Only numpy and
the file's own runtime are imported. Not here: how files are made (`export`), and results as
`Instances` (`prediction`).
"""
