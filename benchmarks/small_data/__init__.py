"""What helps when data are few, measured: `python -m benchmarks.small_data`.

Two experiments, each a queue of trainings that can be interrupted and continued: `recipe_parts`
compares recipes at equal CPU time, `arms` compares kinds of annotation and initial weights at equal
steps.
"""
