"""The process and its environment: the cache folder, atomic files, memory, progress bars.

Nothing here knows images, annotations or models, so every package may import it.
"""
