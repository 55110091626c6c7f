"""What spark-submit is given: `spark-submit scripts/spark_compress.py --help`."""

from twinsqueeze.spark import main

main()
