"""A comparison of methods: what is run, what the runs found, which claims they bear out."""
