"""Checks of annotated images: `maskrcnn check` and its fixes.

This package reports, fixes and shows the problems of a whole data set. Checks of a single
annotation or image header, which also run when training opens its data, are in
annotations/problems.py.

check_dataset.py      runs every check and returns a `CheckReport`
whole_dataset.py      problems of the set as a whole: rare categories, box format, object sizes
left_right.py         left and right keypoints that look swapped
decode_images.py      full decoding, copies, training images in the validation set
training_refusals.py  what training would refuse
decoded_cache.py      results of decoding, kept on disk for the next check
fix_dataset.py        fixes problems with an unambiguous fix (fix_annotation.py: one annotation)
check_page.py         the report as one HTML file, with check_charts.py and samples.py
"""
