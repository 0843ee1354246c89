"""Images as files and pixels: reading any kind as uint8 RGB, listing a folder, near-duplicates.

Nothing here knows annotations or models. The model's resize rule is in `preprocess`, random changes
are in `augmentation`.
"""
