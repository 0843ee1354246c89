"""Which images to annotate next.

Here belong the uncertainty of a model about an image, the ranking of many images by uncertainty and
novelty, and the page that shows the first ones.
"""
