"""A run, around the loop of `trainer.py`: what makes it exact, resumable and observable.

    loop.py         from the cfg to a finished run
    runs.py         where a run keeps its files
    schedule.py     learning rates
    prefetch.py     the next batch on its way to the GPU
    checkpoint.py, rng.py, stopping.py, lock.py       going on exactly, stopping when asked to, a folder to itself
    validation.py   evaluations in training, and the best network so far
    logs.py, monitor.py, drawing.py                   scalars, class histograms and pictures in TensorBoard
    bad_files.py, memory.py, post_mortem.py, replay.py   when something goes wrong
    jobs.py         many runs side by side
"""
