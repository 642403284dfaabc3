"""What the scripts besides training, testing and drawing do.

    demo.py, bench.py          source-only against adapted; all methods over seeds
    check_data.py, packing.py  read all that a run would read; copy a dataset into one mapped file
    predict.py, video.py       predictions as files
    export.py                  ONNX and torch.export
    release.py, model_card.py  a network as one file for others, and its page
    environment.py, commit.py  what a maintainer asks for first; which commit this code is
"""
