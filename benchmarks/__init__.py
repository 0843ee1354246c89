"""Speed of the package, compared with other libraries and with the limits of the machine:
`python -m benchmarks [name ...] [--quick]`.

Compared programs alternate in one process (A B A B ...), so that background load affects all of
them alike; the result is the ratio of neighboring runs. Each benchmark is one file with a function
`run(quick)`; results are stored in results/<name>.json.
"""
