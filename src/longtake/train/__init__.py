"""What every training recipe shares: rollout, step, resume."""
