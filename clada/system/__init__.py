"""Files that are whole or absent, the cache folder, the machine, the command line. Knows nothing of models."""
