"""What runs beside training in a job's namespace, on a CPU and for seconds: it opens S3, which the operator never does.

`preflight` finds out before a GPU is asked for what can be known without one, `recover` reads how a run ended whose
record is lost, `cleanup` deletes what it has written.
"""
