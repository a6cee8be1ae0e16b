"""The training of the demo policies: tokenizer, reference policy, pairs, recipes, model cards."""
