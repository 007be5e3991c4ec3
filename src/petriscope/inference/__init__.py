"""Prediction with trained models: predictors, test-time augmentation, fitting on val, image files, and speed."""
