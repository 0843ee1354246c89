"""Overlays of anything that has boxes, masks or keypoints: `overlay.draw_instances`.

`overlay` draws masks, boxes and skeletons, `labels` finds free space for names and scores, and
`style` reads the colors and fonts that a user chooses.
"""
