"""Generated cases are the same in every run, and no slow machine fails them."""

from hypothesis import settings

settings.register_profile("opd", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("opd")
