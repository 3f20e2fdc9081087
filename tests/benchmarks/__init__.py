"""Time and memory of ours against peers, as ratios measured in one run: `make bench`. Not collected by pytest."""
