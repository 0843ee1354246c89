"""How fast the package is, beside its peers and beside what the machine could do: `python -m
benchmarks [name ...] [--quick]`.

Things that are compared run in turns in one process (A B A B ..), so that a busy machine is busy
for all of them; what counts is the ratio of neighboring runs. Each benchmark is one file with a
function `run(quick)`; results are kept in results/<name>.json.
"""
