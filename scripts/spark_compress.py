"""What spark-submit is given: `spark-submit scripts/spark_compress.py --help`.

In a checkout the package need not be installed on the driver.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from twinsqueeze.inference.spark import main

main()
