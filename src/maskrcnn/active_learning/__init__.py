"""Which images to annotate next.

This package measures a model's uncertainty about an image, ranks many images by uncertainty and
novelty, and writes a page of the top images.
"""
