"""Pure functions of tensors: nothing here knows a model, a file, a device count or a recipe."""
