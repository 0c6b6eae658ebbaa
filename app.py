"""The web page. ``python app.py`` starts it, as ``accel ui`` does; ``--help`` lists the options."""

import sys

from accel.cli import main

if __name__ == "__main__":
    sys.exit(main(["ui", *sys.argv[1:]]))
