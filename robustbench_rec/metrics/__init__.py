"""What a number means: tensors in, one value a user out."""
