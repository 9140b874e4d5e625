"""What the chapters about RED draw and say: a module a chapter."""
