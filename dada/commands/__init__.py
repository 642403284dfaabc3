"""What the commands besides training, testing and the two pages do.

One of them may use another; nothing below imports any.
"""
