"""Several processes as one run; see CONTRIBUTING.md.

distributed.py        how processes start, share a step and end
ranks.py              sums and means over all processes, for losses
joint_batch_norm.py   batch norm over the batch of all processes
device.py             which device a process computes on, and why that one
place.py              where a process stands among others, from the variables of its launcher
signals.py            signals that are heard while a process waits for another one
"""
