"""Parts of the experiment on kernel limits: data with their limits, measurement, record and claims."""
