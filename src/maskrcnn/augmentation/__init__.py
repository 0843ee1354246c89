"""Training examples: a random view of an image, and the truth moved into that view.

`training_set` is the entry point and lists the steps in order; `loader` makes batches of examples
in worker processes. This package covers what happens to images and truth between the data set and
the model in training. The choice of the images to train on is in `training`; the resize rule that
prediction shares is in `preprocess`.
"""
