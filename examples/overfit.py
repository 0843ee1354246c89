"""Overfits the joint model on a few images: a sanity check of a new dataset and of the network.

python examples/overfit.py coco_mini_kp/annotations/train.json coco_mini_kp/images --images 20
--minutes 30 --out runs/overfit
"""

from __future__ import annotations

import argparse

import maskrcnn as mr


def main() -> None:
    """Trains on the first images of a dataset and evaluates on the same images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations")
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", default="runs/overfit")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    data = mr.CocoDataset(args.annotations, images=args.folder)
    data = data.subset(range(min(args.images, len(data))))

    config = mr.TrainConfig(
        max_time=args.minutes * 60,
        batch_size=2,
        reference_batch=2,
        learning_rate=1e-3,
        weight_decay=0.0,  # the model should memorize, not generalize
        evaluate_every=100_000,
        dtype="bfloat16",
        augment=mr.AugmentConfig(flip_horizontal=0.0, scale=(1.0, 1.0)),
    )
    run = mr.train(
        mr.maskrcnn_r18_small(data.categories),
        data,
        val=data,
        config=config,
        out=args.out,
        resume=args.resume,
    )
    print(mr.evaluate(run.model, data))


if __name__ == "__main__":
    main()
