"""Model files: our own, torchvision's and Detectron2's, and the catalog of published weights.

`load` reads any of them and `save` writes our own. What a training starts from (`pretrained`) and
how weights move to other categories (`transfer`) is here, too. Networks are in `model`, checkpoints
of an unfinished training in `training`.
"""
