"""One HTML page that compares runs, with nothing but a browser.

    run_records.py       what is there of a run: configuration, tests, logs, weights
    groups.py            runs that differ in their seed alone are one method; what differs between methods
    plots.py             curves as SVG
    prediction_grid.py   test images with the prediction of each method
    comparison_page.py   the file
    report.css, report.js    its style, and the values under the pointer

See docs/figures.md.
"""
