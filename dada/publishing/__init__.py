"""A trained network for others.

release_file.py, model_card.py       one file that says what it is, and its page
hub.py                               both in a folder, or on the Hugging Face Hub
commit.py                            which commit of the project this is
"""
