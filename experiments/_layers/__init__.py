"""Parts of the experiments on collapse in every layer: recipes, conditions, record, claims."""
