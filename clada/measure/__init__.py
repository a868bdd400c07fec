"""What leaving out costs and gains: loss, speed, tasks, other engines. Knows the engine; nothing of command lines."""
