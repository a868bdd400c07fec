"""Language models by any kind of name, taken apart. Knows architectures; nothing of what may be left out."""
