"""A trained model as one file that other runtimes execute, and the proof that it predicts the same.

Here: the network as a graph, its translation to each format, and the certificate that compares the
file with the model. Not here: running such a file (`graph_files`), which needs no PyTorch.
"""
