"""``python -m reprolib`` is ``reprolib``."""

import sys

try:
    from reprolib.cli import main
except ModuleNotFoundError as error:
    if error.name != "click":
        raise
    sys.exit("the command line needs click: pip install 'reprolib[data]'")

if __name__ == "__main__":
    main(prog_name="reprolib")
