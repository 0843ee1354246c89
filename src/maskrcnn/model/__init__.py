"""The network, as the paper describes it.

Belongs here: modules with weights, and the losses and targets that train them. Hardware-dependent
implementations are in `kernels`, operations without weights in `ops`.

Read the files in the order in which an image meets them; `maskrcnn.py` is the table of contents:
1 maskrcnn, 2 resnet (or timm_trunk), 3 fpn, 4 anchors, 5 rpn, 6 assign, 7 roi_align, 8 box_head,
9 mask_head, 10 keypoint_head. `layers` holds the building blocks that all of them share, `optimize`
makes faster or exact versions of a trained model.
"""
