"""`python -m pytest_moeperf.testing`: a fake engine as a process."""

import sys

from pytest_moeperf.testing.process import main

sys.exit(main())
