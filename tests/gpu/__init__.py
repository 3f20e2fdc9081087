"""What a GPU is asked, once there is one: `make gpu`. The same code at tiny sizes on a CPU: `python -m tests.gpu --dry-run`."""
