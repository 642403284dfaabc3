"""What the commands besides training, testing and the two pages do.

    demo.py                              source-only against adapted
    bench.py, bench_methods.py, bench_tables.py   all methods over seeds
    jobs.py                              many runs side by side
    check_data.py, data_problems.py, data_report.py   read all that a run would read, and say what is wrong with it
    pack_dataset.py                      copy a dataset into one mapped file
    predict.py, predict_video.py         predictions as files
    visualize.py                         figures of checkpoints, test reports and logs
    export.py, resampling.py             ONNX and torch.export, with the resizing of images inside
    merge.py                             networks averaged into one
    environment.py                       what a maintainer asks for first
    replay.py                            a step whose loss was not finite, once more

One of them may use another; nothing below imports any.
"""
