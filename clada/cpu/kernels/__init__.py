"""Compiled functions of one decoded token, by what they compute. They know arrays alone."""
