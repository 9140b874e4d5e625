"""From chapters to a book: execute the notebooks, stage the pages, build the HTML.

Only the commands of the Makefile use this package (``python -m reprolib.book``). Nothing that trains or records imports
it, so those parts run on a machine without any of the book's tools.
"""
