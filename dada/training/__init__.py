"""A run: one step, the loop over steps, and what makes runs reproducible, resumable and observable.

trainer.py      one iteration: losses, gradients, optimizers
loop.py         from the cfg to a finished run
schedule.py, repeating_sgd.py    learning rates; ADVENT's and DADA's optimizer
adabn.py        batch-norm statistics of the target, before a snapshot is written
prefetch.py     the next batch on its way to the GPU
checkpoint.py, rng.py, stopping.py, lock.py       going on exactly, stopping when asked to, a folder to itself
validation.py   evaluations in training, and the best network so far
monitor.py, loggers.py, drawing.py                scalars, class histograms and pictures, in TensorBoard and elsewhere
bad_files.py, memory.py, post_mortem.py           when something goes wrong
"""
