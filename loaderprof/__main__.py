"""`python -m loaderprof` is `loaderprof`."""

import sys

from loaderprof.cli import main

if __name__ == "__main__":
    sys.exit(main())
