"""What may be left out of a token's computation: methods, plans, load rules. Knows nothing of how it is computed."""
