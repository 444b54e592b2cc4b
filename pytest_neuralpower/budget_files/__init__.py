"""Budget files: ``*.budget.yaml``, models with their inputs and budgets, collected as tests."""
