"""From films and rows of any kind to frames, questions and examples. No torch but for batches."""
