"""What a run needs, before it is started: parameters, memory by part, FLOPs, from configurations alone."""
