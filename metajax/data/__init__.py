"""Prepare and load image data sets without TensorFlow."""
