"""Tensor operations without weights: boxes, heatmaps, mask pasting, random keys.

Belongs here: functions of tensors that know nothing of the network, of files or of datasets, and
everything that treats asynchronous devices specially. Does not belong here: layers with weights
(`model`) and alternative implementations of one operation for speed (`kernels`).
"""
