"""Rewards: what an answer's text is worth, by rule or by a user's function."""
