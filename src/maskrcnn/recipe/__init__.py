"""Settings of a model and its training, chosen from the data and the machine, each with its reason.

Belongs here: statistics of a data set, the choices, fitted anchors, the memory estimate.
Not here: the training itself (`training`), presets and default settings (`presets`, `config`).
"""
