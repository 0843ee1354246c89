"""What is wrong with annotated images, all of it: `maskrcnn check`.

annotations/problems.py   every annotation and every header; also at the start of a training (the lower layer)
look.py         what only the whole set shows: rare categories, objects beyond the anchors, boxes in another form
sides.py        left and right keypoints that look swapped
images.py     full decoding, remembered on the disk (memory.py); copies within the set and between training and validation
fix.py          mends what has one right answer (mend.py: one annotation)
check.py        `check` runs all of it and gives a `Report`
page.py         the report as one HTML file, with charts.py and drawn samples (samples.py)
"""
