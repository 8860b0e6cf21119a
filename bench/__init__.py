"""What is measured and how: scripts that write bench/results/*.json, and the README's tables and picture from them."""
