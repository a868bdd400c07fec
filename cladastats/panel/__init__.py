"""Panel regressions of the response on prefix and load, their robustness, and the claims they bear on."""
