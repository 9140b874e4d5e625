"""What the chapters of part Foundations show."""
