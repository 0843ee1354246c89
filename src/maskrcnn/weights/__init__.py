"""Model files: our own, torchvision's and Detectron2's, and the catalog of published weights.

`load` reads any of them and `save` writes our own. The initial weights of training (`pretrained`)
and the transfer of weights to other categories (`transfer`) are also here. Networks are in `model`,
checkpoints of unfinished runs in `training`.
"""
