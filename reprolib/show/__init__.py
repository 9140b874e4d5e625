"""How results are shown: style, figures, what a page says of a record, slices through a loss."""
