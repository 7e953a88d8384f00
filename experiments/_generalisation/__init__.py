"""Parts of the experiment on train and test collapse: data, training, records, claims."""
