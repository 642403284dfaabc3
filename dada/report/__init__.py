"""One self-contained HTML page that compares runs.

    run_records.py       what is there of a run: configuration, tests, logs, weights
    groups.py            runs that differ in their seed alone are one method; what differs between methods
    prediction_grid.py   test images with the prediction of each method
    comparison_page.py   the file
    report.css           its style

See docs/pictures.md.
"""
