"""Ranks: the only folder that speaks torch.distributed."""
