"""What people run: each file is one flat loop that reads like the paper's algorithm box."""
