"""A thousand bad inputs over the whole command line and API; each must get one clear line.

``python -m bad_inputs`` in ``tests/`` runs them all in this process and counts;
`tests/test_bad_inputs.py` runs a share of them. A case has failed if the input was taken, if a
traceback or several lines came, or if what came isn't regaze's own error.
"""
