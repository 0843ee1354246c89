"""The network. Read the files in the order in which an image meets them; `maskrcnn.py` is the table of contents.

1 maskrcnn   2 resnet (backbone: any other trunk)   3 fpn   4 anchors   5 rpn   6 assign   7 roi_align   8 box_head   9 mask_head
10 keypoint_head.  `layers` holds the bricks that all use, `fuse` the forms in which a trained model answers.
"""
