"""Entry points for `python -m` and `ray job submit`."""
